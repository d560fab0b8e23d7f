"""The papers' own figures and findings, as ``papers/<paper>/`` holds them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fl_utils import paths

LETTERS = {"O": "oarf", "M": "mobile", "F": "faces", "D": "decentralized"}


@dataclass(frozen=True)
class Published:
    """One published number: ``value`` as printed, its ``unit``, and ``where`` in the paper it stands."""

    experiment: str
    metric: str
    value: str
    unit: str
    where: str
    note: str

    @property
    def number(self) -> float | None:
        """The value as a number, None where the paper prints none (``N/A``, ``~403``)."""
        try:
            return float(self.value)
        except ValueError:
            return None


@dataclass(frozen=True)
class Claim:
    """One finding in a sentence; ``beyond_paper`` where it is this collection's own question.

    needs: what it cannot be decided without and no package brings along; "" where the default run decides it.
    """

    id: str
    experiment: str
    statement: str
    source: str
    beyond_paper: bool
    needs: str = ""


@cache
def letters(papers: Path = paths.PAPERS) -> dict[str, str]:
    """Each paper's folder by the letter that begins its experiments' ids: ours, and ``letter`` in a paper.yaml."""
    import yaml

    found = dict(LETTERS)
    for file in sorted(papers.glob("*/paper.yaml")):
        letter = yaml.safe_load(file.read_text(encoding="utf-8")).get("letter")
        if letter is not None and not (isinstance(letter, str) and len(letter) == 1 and letter.isupper()):
            raise ValueError(f"{file}: letter is {letter!r}, want one capital letter, such as S")
        if letter and found.get(letter, file.parent.name) != file.parent.name:
            raise ValueError(f"{file}: letter {letter} is {found[letter]}'s already, want another")
        if letter:
            found[letter] = file.parent.name
    return found


def paper_of(experiment: str, papers: Path = paths.PAPERS) -> str:
    """The paper that an experiment id such as ``O2`` belongs to. Raises ValueError on another id."""
    known = letters(papers)
    if experiment[:1] not in known or not experiment[1:].isdigit():
        raise ValueError(f"experiment {experiment!r}: want a letter of {', '.join(known)} and a number, such as O2")
    return known[experiment[0]]


@cache
def published(experiment: str, papers: Path = paths.PAPERS) -> dict[str, Published]:
    """Every published number of ``experiment``, by metric, in the paper's order."""
    with (papers / paper_of(experiment, papers) / "published.csv").open(encoding="utf-8", newline="") as file:
        rows = [Published(**row) for row in csv.DictReader(file) if row["experiment"] == experiment]
    return {row.metric: row for row in rows}


@cache
def claims(experiment: str, papers: Path = paths.PAPERS) -> dict[str, Claim]:
    """Every claim of ``experiment``, by id, in the paper's order."""
    import yaml

    entries = yaml.safe_load((papers / paper_of(experiment, papers) / "claims.yaml").read_text(encoding="utf-8"))
    return {entry["id"]: Claim(**entry) for entry in entries if entry["experiment"] == experiment}
