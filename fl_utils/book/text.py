"""Small pieces of Markdown that every page of the book is made of."""

from __future__ import annotations

import re
from collections.abc import Iterable

from fl_utils.runner.records import Claim

PUNCTUATION = re.compile(r"([\\`*_{}\[\]<>#|$~^!])")


def plain(text: object) -> str:
    """``text`` on one line, every character that Markdown or its mathematics would take for a mark escaped."""
    return PUNCTUATION.sub(r"\\\1", " ".join(str(text).split()))


def code(text: object) -> str:
    """``text`` as code within a line or a table's cell; nothing where it is empty."""
    words = " ".join(str(text).split()).replace("|", "\\|")
    return f"`` {words} ``" if "`" in words else f"`{words}`" if words else ""


def contents(pages: Iterable[str], caption: str = "", depth: int = 1) -> str:
    """A hidden table of contents: what the side bar and the links to the next page are made of.

    pages: documents from the book's root, without suffix; ``title <document>`` gives one another title.
    """
    options = [":hidden:", f":maxdepth: {depth}", *([f":caption: {caption}"] if caption else [])]
    entries = [page if page.endswith(">") else f"/{page}" for page in pages]
    return "\n".join(["```{toctree}", *options, "", *entries, "```"])


def counted(count: int, noun: str) -> str:
    """``1 claim``, ``2 claims``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def held(claims: Iterable[Claim]) -> str:
    """How many of the decided ones among ``claims`` hold: ``2 of 3 decided claims hold``."""
    decided = [claim for claim in claims if claim.holds is not None]
    holding = sum(claim.holds is True for claim in decided)
    return f"{holding} of {counted(len(decided), 'decided claim')} {'holds' if len(decided) == 1 else 'hold'}"
