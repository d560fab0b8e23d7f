"""A page per data card, and their list: parties, licence, sources, sizes and the official place of each data set."""

from __future__ import annotations

import re

from fl_utils.book.text import code, plain
from fl_utils.data import cards
from fl_utils.runner.readme import NONE, table

ADDRESS = re.compile(r"https?://\S*[^\s.,;:)]")
KINDS = {"pypi": "Python package", "npm": "npm package", "debian": "Debian package", "https": "download"}


def pages() -> dict[str, str]:
    """``datasets/index.md`` and a page per card, as Markdown. Raises ValueError where a card is broken."""
    known = [cards.load(name) for name in cards.names()]
    rows = [
        (
            f"[{plain(card.title)}]({card.name}.md)",
            code(card.name),
            plain(card.task),
            plain(card.official["size"]),
            "fetched" if cards.fetchable(card) else "brought by you",
        )
        for card in known
    ]
    index = [
        "# Data",
        "Every data set has a card that says who the parties are, what the licence allows and where the real thing is "
        "to be had. *Fetched*: the default run brings it along, verified by its sha256. *Brought by you*: its owner's "
        "terms ask for that; put it in a folder and name the folder with `-p data_dir`.",
        table(("Data set", "Name", "Task", "Official size", "How it comes"), rows),
    ]
    found = {f"datasets/{card.name}.md": _card(card) for card in known}
    return {"datasets/index.md": "\n\n".join(index) + "\n", **found}


def _card(card: cards.Card) -> str:
    official = card.official
    facts = [
        ("Name", code(card.name)),
        ("Task", plain(card.task)),
        ("Parties", plain(", ".join(card.parties)) or NONE),
        ("Partition", plain(card.partition)),
        ("Examples", plain(", ".join(f"{name}: {_count(count)}" for name, count in card.examples.items())) or NONE),
        ("Licence", plain(card.licence)),
        ("Citation", plain(card.citation)),
        ("Official place", _linked(official["place"])),
        ("Official size", plain(official["size"])),
        ("Official layout", plain(official["layout"])),
    ]
    lines = ["---\norphan: true\n---", f"# {plain(card.title)}", "[All data sets](index.md)", table(("", ""), facts)]
    if card.sources:
        lines += [
            "## Where the default run gets it",
            "In this order; the next is tried where one fails.",
            table(("Kind", "What", "MB"), [_source(source) for source in card.sources]),
        ]
    if card.files:
        rows = [(code(key), _megabytes(file.bytes), code(file.sha256[:16])) for key, file in card.files.items()]
        lines += ["## Files", table(("File", "MB", "sha256, first digits"), rows)]
    if card.layouts:
        rows = [(plain(layout.name), ", ".join(map(code, layout.patterns))) for layout in card.layouts]
        lines += [
            "## Layouts understood on your disk",
            "In the folder that `data_dir` names, or in a folder of the card's name in it.",
            table(("Layout", "Files"), rows),
        ]
    return "\n\n".join(lines) + "\n"


def _count(count: object) -> str:
    return f"{count:,}" if isinstance(count, int) else str(count)


def _megabytes(size: int | None) -> str:
    return NONE if size is None else f"{size / 1e6:,.2f}"


def _source(source: cards.Source) -> tuple[str, ...]:
    what = _linked(source.url) if source.url else code(f"{source.package} {source.version}".strip())
    return KINDS[source.kind], what, _megabytes(source.bytes)


def _linked(text: str) -> str:
    """``text`` with its addresses as links."""
    parts, end = [], 0
    for match in ADDRESS.finditer(text):
        address = match[0] + (")" if "(" in match[0] and not match[0].endswith(")") else "")
        parts += [plain(text[end : match.start()]), f" <{address}> "]
        end = match.start() + len(address)
    return " ".join("".join([*parts, plain(text[end:])]).split())
