"""The report as one self-contained HTML page: no scripts, no network, images inside.

All text comes from notebooks, so all of it is escaped: the template is rendered with autoescape on, and the only data
URI it takes is a PNG whose base64 `outcomes.figures_of` has checked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fl_utils.papers import LETTERS
from fl_utils.runner.outcomes import Entry, Folder
from fl_utils.runner.records import Value, finite, number, one_line

TEMPLATE = Path(__file__).parent / "templates" / "report.html.j2"
MINUS = "−"


def format_number(value: object, signed: bool = False) -> str:
    """A figure for reading: whole numbers with thousands separators, others to four significant digits."""
    if value is None:
        return ""
    if number(value) is None:
        return one_line(value)
    if not finite(value):
        return one_line(value)
    if float(value).is_integer() and abs(value) < 1e15:
        shown = f"{abs(int(value)):,}"
    else:
        shown = f"{abs(value):,.1f}" if 1e4 <= abs(value) < 1e15 else f"{abs(value):.4g}"
    sign = MINUS if value < 0 else "+" if signed and value > 0 else ""
    return sign + shown


def format_seconds(seconds: float | None) -> str:
    if seconds is None or not finite(seconds):
        return ""
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60)} s"


def format_value(value: Value) -> str:
    """The value here, with its spread over the seeds where there is one."""
    shown = format_number(value.value) or "no value"
    if value.spread is None:
        return shown
    return f"{shown} ± {format_number(float(f'{value.spread:.2g}'))}"


def by_paper(papers: Iterable[str]) -> list[str]:
    """Papers in the collection's order, unknown ones after them by name."""
    rank = {paper: position for position, paper in enumerate(LETTERS.values())}
    return sorted(set(papers), key=lambda paper: (rank.get(paper, len(rank)), paper))


def experiment_order(experiment: str) -> tuple[str, int, str]:
    """Sorts O2 before O10."""
    letters = experiment.rstrip("0123456789")
    digits = experiment[len(letters) :]
    return letters, int(digits[:9] or 0), experiment


def claim_order(claim: str) -> tuple[tuple[str, int, str], tuple[str, int, str]]:
    """Sorts claim O2.2 before O2.10, and both before O10.1."""
    experiment, _, place = claim.rpartition(".")
    return experiment_order(experiment), experiment_order(place)


def _scorecard(entries: Iterable[Entry], names: dict[str, str]) -> list[dict[str, Any]]:
    entries = [entry for entry in entries if entry.claims]
    cards = []
    for paper in by_paper(entry.paper for entry in entries):
        rows = [
            {"claim": claim, "entry": entry, "scale": entry.record.scale, "href": href(entry)}
            for entry in entries
            if entry.paper == paper
            for claim in entry.claims
        ]
        rows.sort(key=lambda row: claim_order(row["claim"].id))
        holding = sum(row["claim"].holds is True for row in rows)
        cards.append({"paper": names.get(paper, paper) or "no paper", "rows": rows, "holding": holding})
    return cards


def _comparisons(entries: Iterable[Entry], names: dict[str, str]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in entries:
        for value in entry.record.values if entry.record else ():
            groups.setdefault((entry.paper, value.experiment), []).append(
                {
                    "value": value,
                    "here": format_value(value),
                    "gap": format_number(value.gap, signed=True),
                    "scale": entry.record.scale,
                    "entry": entry,
                    "href": href(entry),
                }
            )
    papers = by_paper(paper for paper, _ in groups)
    return [
        {"paper": names.get(paper, paper) or "no paper", "experiment": experiment, "rows": rows}
        for (paper, experiment), rows in sorted(
            groups.items(), key=lambda item: (papers.index(item[0][0]), experiment_order(item[0][1]))
        )
    ]


def href(entry: Entry) -> str:
    """The executed notebook, relative to the page; empty where there is none."""
    return quote(entry.notebook) if entry.exists else ""


def _several(texts: Iterable[str], none: str) -> str:
    return ", ".join(dict.fromkeys(text for text in texts if text)) or none


def _facts(folder: Folder) -> list[tuple[str, str]]:
    records = [entry.record for entry in folder.entries if entry.record]
    batch = folder.batch
    statuses = Counter(entry.status for entry in folder.entries if not entry.ran)
    ran = sum(entry.ran for entry in folder.entries)
    counts = ", ".join([f"{ran} ran", *(f"{count} {status}" for status, count in sorted(statuses.items()))])
    claims = [claim for entry in folder.entries for claim in entry.claims]
    holding = sum(claim.holds is True for claim in claims)
    spent = [entry.seconds for entry in folder.entries if entry.seconds is not None and finite(entry.seconds)]
    return [
        ("Started", one_line(batch.get("started")) or "not a batch: notebooks as saved"),
        ("Commit", _several([one_line(batch.get("commit")), *(record.commit for record in records)], "not known")),
        ("Hardware", _several((record.hardware for record in records), "not recorded")),
        ("Scale", _several((record.scale for record in records), one_line(batch.get("scale")) or "not recorded")),
        ("Notebooks", f"{len(folder.entries)}: {counts}"),
        ("Claims", f"{holding} of {len(claims)} hold"),
        ("Time in notebooks", format_seconds(sum(spent)) if spent else "not recorded"),
    ]


def render(folder: Folder, names: dict[str, str]) -> str:
    """The page for ``folder``; ``names`` gives papers' titles by key. Ends with a line feed."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = format_number
    environment.filters["seconds"] = format_seconds
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return (
        template.render(
            facts=_facts(folder),
            scorecard=_scorecard(folder.entries, names),
            comparisons=_comparisons(folder.entries, names),
            entries=[(entry, href(entry)) for entry in folder.entries],
            failed=[(entry, href(entry)) for entry in folder.entries if not entry.ran],
            problems=folder.problems,
        ).rstrip("\n")
        + "\n"
    )
