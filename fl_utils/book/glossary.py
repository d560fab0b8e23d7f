"""The glossary: the papers' symbols and words beside our parameters' names, from ``papers/glossary.yaml``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_utils.book.text import code, plain
from fl_utils.runner import catalog
from fl_utils.runner.readme import NONE, load_yaml, table

KEYS = {"symbol", "name", "meaning", "papers", "parameters"}


@dataclass(frozen=True)
class Term:
    """One line of the glossary.

    symbol: in LaTeX, empty for a word that has none. papers: where it stands, paper's key -> place. parameters: names
    in our notebooks' parameters cells, none where nobody sets it.
    """

    symbol: str
    name: str
    meaning: str
    papers: dict[str, str]
    parameters: tuple[str, ...]


def terms(path: Path) -> list[Term]:
    """The terms of the file ``path``, in its order. Raises ValueError where it does not have the keys of a term."""
    entries = load_yaml(path)
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path.name}: want a list of terms")
    return [_term(entry, f"{path.name}, term {number}") for number, entry in enumerate(entries, 1)]


def _term(entry: Any, where: str) -> Term:
    if not isinstance(entry, dict) or set(entry) != KEYS:
        raise ValueError(f"{where}: want the keys {', '.join(sorted(KEYS))}")
    if not isinstance(entry["papers"], dict) or not isinstance(entry["parameters"], list):
        raise ValueError(f"{where}: want papers as a mapping and parameters as a list")
    return Term(
        symbol=str(entry["symbol"] or ""),
        name=str(entry["name"]),
        meaning=str(entry["meaning"]),
        papers={str(paper): str(place) for paper, place in entry["papers"].items()},
        parameters=tuple(map(str, entry["parameters"])),
    )


def page(known: Sequence[Term], entries: Sequence[catalog.Entry], titles: dict[str, str]) -> str:
    """The glossary as Markdown; each parameter with the notebooks that have it."""
    rows = []
    for term in known:
        places = [
            f"[{plain(short(titles.get(paper, paper)))}](papers/{paper}/index.md), {plain(place)}"
            for paper, place in term.papers.items()
        ]
        rows.append(
            (
                f"${term.symbol}$" if term.symbol else "",
                plain(term.name),
                plain(term.meaning),
                "; ".join(places) or NONE,
                ", ".join(map(code, term.parameters)) or NONE,
            )
        )
    users: dict[str, list[catalog.Entry]] = {}
    for entry in entries:
        for name in entry.parameters:
            users.setdefault(name, []).append(entry)
    named = sorted({name for term in known for name in term.parameters})
    used = [(code(name), ", ".join(_link(entry) for entry in users.get(name, [])) or NONE) for name in named]
    lines = [
        "# Glossary",
        "The papers' symbols beside the names that the notebooks' parameters have: what to set with "
        "`fl-notebooks run -p NAME VALUE` to change what the paper calls by its letter. Where two papers mean "
        "different things by one letter, both lines say so.",
        table(("Symbol", "Name", "Meaning", "In the papers", "Our parameters"), rows),
        "## Which notebooks have which parameter",
        table(("Parameter", "Notebooks"), used),
    ]
    return "\n\n".join(lines) + "\n"


def short(title: str) -> str:
    """A title's first part: up to its colon."""
    return title.split(":", 1)[0]


def _link(entry: catalog.Entry) -> str:
    label = ", ".join(entry.experiments) or entry.notebook.removesuffix(".ipynb").rsplit("/", 1)[-1][:2]
    kind = "tutorial " if not entry.experiments else ""
    kind = "solution " if "/solutions/" in entry.notebook else kind
    return f"[{kind}{plain(label)}](notebooks/{entry.notebook})"
