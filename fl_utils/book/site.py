"""The book, whole: its sources written to ``<out>/src``, then made into ``<out>/html`` by Sphinx."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from fl_utils.book import api, course, data, gallery, glossary, notebooks, results
from fl_utils.book.links import Links
from fl_utils.paths import write_whole
from fl_utils.runner import catalog, outcomes
from fl_utils.runner.readme import paper_titles

STATIC = Path(__file__).parent / "static"
REFERENCE = ("scorecard", "glossary", "datasets/index", "api/index", "notebooks/index")
MADE_BY_SPHINX = ("search", "genindex")
SETTINGS = {
    "project": gallery.TITLE,
    "extensions": ["myst_nb", "sphinx_design", "fl_utils.book.extension"],
    "exclude_patterns": ["notebooks/figures"],
    "html_theme": "furo",
    "html_title": gallery.TITLE,
    "html_static_path": [str(STATIC)],
    "html_favicon": str(STATIC / "book.svg"),
    "html_copy_source": False,
    "html_show_sphinx": False,
    "html_last_updated_fmt": None,
    "html_math_renderer": "mathml",
    "html_domain_indices": False,
    "html_use_index": True,
    "language": "en",
    "nb_execution_mode": "off",
    "nb_merge_streams": True,
    "nb_render_markdown_format": "myst",
    "nb_ipywidgets_js": {},
    "myst_enable_extensions": ["dollarmath", "colon_fence", "html_image"],
    "myst_heading_anchors": 4,
    "myst_links_external_new_tab": False,
    "add_module_names": False,
    "python_use_unqualified_type_names": True,
    "python_maximum_signature_line_length": 100,
    "suppress_warnings": ["config.cache"],
}


@dataclass(frozen=True)
class Built:
    """The front page, the number of pages, and a line for each thing that is wrong (a dead link, a broken text)."""

    index: Path
    pages: int
    problems: tuple[str, ...]


def build(root: Path, out: Path) -> Built:
    """Make the book of the repository ``root`` in the folder ``out``; pages of an earlier book that still hold stay.

    After a book with problems every page is made anew: Sphinx would name only those of the pages that have changed.

    Raises ValueError where ``out`` is the repository itself or lies among its notebooks or texts, a notebook, card,
    paper or glossary cannot be read, or Sphinx and its extensions are not installed.
    """
    root, out = root.resolve(), out.resolve()
    if root == out or root.is_relative_to(out) or out.is_relative_to(root / "notebooks"):
        raise ValueError(f"--out {out}: want a folder of the book's own, such as {root / 'build' / 'book'}")
    _require()
    source = out / "src"
    _replace(source, dict(sources(root, source)))
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    warnings = io.StringIO()
    html, earlier = out / "html", out / "problems.txt"
    with patch_docutils(None), docutils_namespace():
        app = Sphinx(
            source,
            None,
            html,
            out / "doctrees",
            "html",
            confoverrides=SETTINGS,
            status=None,
            warning=warnings,
            freshenv=earlier.exists(),
        )
        app.build()
    lines = re.sub(r"\x1b\[[0-9;]*m", "", warnings.getvalue()).splitlines()
    problems = tuple(line.replace(f"{source}{os.sep}", "") for line in lines if line.strip())
    earlier.unlink(missing_ok=True)
    if problems:
        write_whole(earlier, "\n".join(problems) + "\n")
    drop_stale(html, app.env.found_docs)
    return Built(html / "index.html", len(app.env.found_docs), problems)


def drop_stale(html: Path, documents: Collection[str]) -> None:
    """Remove the pages in ``html`` that belong to none of ``documents`` any more."""
    for path in html.rglob("*.html"):
        name = path.relative_to(html).with_suffix("").as_posix()
        if name not in documents and name not in MADE_BY_SPHINX and not name.startswith("_static/"):
            path.unlink()


def _require() -> None:
    """Raise ValueError, naming what is not installed."""
    from importlib.util import find_spec

    missing = [name for name in ("sphinx", "myst_nb", "sphinx_design", "furo") if find_spec(name) is None]
    if missing:
        raise ValueError(f"the book needs {', '.join(missing)}: install the packages of requirements.txt (make does)")


def sources(root: Path, folder: Path) -> Iterator[tuple[str, str | bytes]]:
    """Every file of the book's sources: path from their root, and content. ``folder`` is where they are to lie."""
    notebooks_dir, papers_dir = root / "notebooks", root / "papers"
    entries = outcomes.read(notebooks_dir).entries
    listed = catalog.scan(notebooks_dir)
    broken = [f"{entry.notebook} {entry.problem}" for entry in listed if entry.problem]
    if broken:
        raise ValueError("; ".join(broken))
    titles, found = paper_titles(papers_dir), api.modules(root / "fl_utils")
    texts = _texts(root)
    links = Links(root, folder, _pages(root, entries, found, texts, titles))

    for entry in entries:
        path = f"notebooks/{entry.notebook}"
        content = json.loads((root / path).read_text(encoding="utf-8"))
        content, pictures = notebooks.prepared(content, path, links)
        yield path, json.dumps(content, ensure_ascii=False, indent=1)
        yield from pictures.items()
    for path in texts:
        yield path, links.rewritten((root / path).read_text(encoding="utf-8"), path)
    yield from gallery.thumbnails(entries).items()
    yield from course.pages(entries).items()
    yield from results.pages(entries, papers_dir).items()
    yield from data.pages().items()
    yield from api.pages(found).items()
    yield "glossary.md", glossary.page(glossary.terms(papers_dir / "glossary.yaml"), listed, titles)
    yield "index.md", gallery.page(entries, titles, [*REFERENCE, *(path.removesuffix(".md") for path in texts)])
    yield from links.listings.items()
    for path in sorted(links.copied):
        yield path, (root / path).read_bytes()


def _texts(root: Path) -> list[str]:
    """The repository's own texts, which are pages too: README first, then the others at its root and in its folders."""
    top = sorted((path.name for path in root.glob("*.md")), key=lambda name: (name != "README.md", name))
    below = sorted(path.relative_to(root).as_posix() for path in root.glob("*/README.md"))
    return [*top, *(path for path in below if not path.startswith((".", "build/", "runs/", "shared/")))]


def _pages(root, entries, found, texts, titles) -> dict[str, str]:
    """Path in the repository -> page in the book, for all that has one."""
    pages = {path: path for path in (*texts, *(f"notebooks/{entry.notebook}" for entry in entries))}
    for module in found:
        pages[module.path] = module.page
        pages[module.path.removesuffix("/__init__.py")] = module.page
    for path in (root / "datasets").glob("*.yaml"):
        pages[f"datasets/{path.name}"] = f"datasets/{path.stem}.md"
    for paper in titles:
        for path in ("", "/paper.yaml", "/claims.yaml"):
            pages[f"papers/{paper}{path}"] = f"papers/{paper}/index.md"
        pages[f"notebooks/{paper}"] = f"papers/{paper}/index.md"
    return pages | {
        "datasets": "datasets/index.md",
        "notebooks": "index.md",
        "notebooks/tutorials": "course.md",
        "notebooks/tutorials/solutions": "solutions.md",
        "papers/glossary.yaml": "glossary.md",
    }


def _replace(folder: Path, files: dict[str, str | bytes]) -> None:
    """Make ``folder`` hold exactly ``files``; one that is the same already keeps its time, so that Sphinx skips it."""
    for name, content in files.items():
        path = folder / name
        payload = content.encode("utf-8") if isinstance(content, str) else content
        if not path.is_file() or path.read_bytes() != payload:
            write_whole(path, payload)
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in files:
            path.unlink()
