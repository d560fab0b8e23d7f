"""Links of the repository's own texts, made to resolve in the book.

Notebooks and Markdown files link each other, and also what is no page on its own: modules, data cards, papers' files,
folders. The first two keep their place in the book, so that their links stand as they are; a module leads to its page
of the API, a card to its page, a folder to a page that lists it, and any other file is copied and downloaded.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from posixpath import normpath
from urllib.parse import quote, unquote, urlsplit

from fl_utils.book.text import plain

LARGEST = 2_000_000  # bytes of a file that a page may carry along
SHOWN = 200  # files that the page of a folder lists


class Links:
    """Where each path of the repository ``root`` is found among the book's sources in ``folder``.

    pages: path in the repository -> page in the book, both from their roots with ``/``.
    """

    def __init__(self, root: Path, folder: Path, pages: dict[str, str]):
        self.root, self.folder, self.pages = root.resolve(), folder, pages
        self.copied: set[str] = set()
        self.listings: dict[str, str] = {}

    def rewritten(self, markdown: str, page: str) -> str:
        """``markdown``, a text that stands at ``page`` in the repository and in the book, with links that resolve.

        A link whose target is not in the repository stays as it is: Sphinx names it as dead.
        """
        for address in _addresses(markdown):
            target = self.target(page, address)
            if target is not None and target != address:
                pattern = rf'(\]\(\s*<?|^\s*\[[^\]]+\]:\s*<?|(?:href|src)="){re.escape(address)}(?=[\s)>"]|$)'
                markdown = re.sub(pattern, lambda match, new=target: match[1] + new, markdown, flags=re.MULTILINE)
        return markdown

    def target(self, page: str, address: str) -> str | None:
        """What a link from ``page`` to ``address`` has to say in the book; None where there is nothing to change."""
        parts = urlsplit(address)
        if parts.scheme or parts.netloc or not parts.path or parts.path.startswith("/"):
            return None
        path = normpath(f"{Path(page).parent.as_posix()}/{unquote(parts.path)}")
        if path.startswith("..") or not (self.root / path).exists():
            return None
        fragment = f"#{parts.fragment}" if parts.fragment else ""
        if path in self.pages:
            there = self.pages[path]
            return _way(page, there) + (fragment if there == path else "")
        if (self.root / path).is_dir():
            return _way(page, self._listed(path))
        return _way(page, self._copied(path))

    def _copied(self, path: str) -> str:
        source = self.root / path
        if source.stat().st_size > LARGEST:
            raise ValueError(f"{path}: {source.stat().st_size:,} bytes; a page carries at most {LARGEST:,} along")
        self.copied.add(path)
        return path

    def _listed(self, path: str) -> str:
        """The page that lists the folder ``path``: its README where it has one."""
        readme = normpath(f"{path}/README.md")
        if readme in self.pages:
            return self.pages[readme]
        page = f"files/{'repository' if path == '.' else path}.md"
        if page not in self.listings:
            self.listings[page] = ""  # a folder may link itself
            names = sorted(file.relative_to(self.root).as_posix() for file in _files(self.root / path))[:SHOWN]
            lines = [f"# Files of {plain(path)}", "", ":::{div} files", ""]
            for name in names:
                to = self.target(page, _way(page, name))
                lines.append(f"* [{plain(name)}]({to})")
            self.listings[page] = "---\norphan: true\n---\n\n" + "\n".join([*lines, "", ":::", ""])
        return page


def _files(folder: Path) -> list[Path]:
    found = []
    for directory, below, names in os.walk(folder):
        below[:] = [name for name in below if not name.startswith((".", "__pycache__"))]
        found += [Path(directory) / name for name in names if not name.startswith(".")]
    return [file for file in found if file.stat().st_size <= LARGEST]


def _way(page: str, path: str) -> str:
    return quote(Path(os.path.relpath(path, Path(page).parent.as_posix())).as_posix(), safe="/._-+~@")


def _addresses(markdown: str) -> list[str]:
    """The addresses of all links and pictures, as they are written."""
    from markdown_it import MarkdownIt

    found: dict[str, None] = {}
    parser = MarkdownIt("commonmark").enable("table")
    parser.normalizeLink = lambda address: address  # as written, not percent-encoded
    for token in parser.parse(markdown):
        for child in token.children or []:
            address = child.attrs.get("href") or child.attrs.get("src")
            if address:
                found[str(address)] = None
            if child.type == "html_inline":
                found.update(dict.fromkeys(re.findall(r'(?:href|src)="([^"]+)"', child.content)))
        if token.type == "html_block":
            found.update(dict.fromkeys(re.findall(r'(?:href|src)="([^"]+)"', token.content)))
    return list(found)
