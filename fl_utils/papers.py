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


def paper_of(experiment: str) -> str:
    """The paper that an experiment id such as ``O2`` belongs to. Raises ValueError on another id."""
    if experiment[:1] not in LETTERS or not experiment[1:].isdigit():
        raise ValueError(f"experiment {experiment!r}: want a letter of {', '.join(LETTERS)} and a number, such as O2")
    return LETTERS[experiment[0]]


@cache
def published(experiment: str, papers: Path = paths.PAPERS) -> dict[str, Published]:
    """Every published number of ``experiment``, by metric, in the paper's order."""
    with (papers / paper_of(experiment) / "published.csv").open(encoding="utf-8", newline="") as file:
        rows = [Published(**row) for row in csv.DictReader(file) if row["experiment"] == experiment]
    return {row.metric: row for row in rows}


@cache
def claims(experiment: str, papers: Path = paths.PAPERS) -> dict[str, Claim]:
    """Every claim of ``experiment``, by id, in the paper's order."""
    import yaml

    entries = yaml.safe_load((papers / paper_of(experiment) / "claims.yaml").read_text(encoding="utf-8"))
    return {entry["id"]: Claim(**entry) for entry in entries if entry["experiment"] == experiment}
