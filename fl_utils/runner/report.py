"""The report of a batch: ``results.csv``, ``claims.csv`` and ``index.html`` beside the executed notebooks.

``report.write(runs/latest)`` reads what the notebooks recorded and lays it beside the published figures. A notebook
that failed, or whose files are broken, is named in the page and in the summary; the others are reported all the same.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from fl_utils.paths import PAPERS, write_whole
from fl_utils.runner.outcomes import Entry, Folder, ReportError, read
from fl_utils.runner.page import render
from fl_utils.runner.readme import paper_titles, readme_sections, sections_in, update_readme

__all__ = ["ReportError", "Summary", "readme_sections", "sections_in", "update_readme", "write"]

RESULT_COLUMNS = (
    *("notebook", "experiment", "metric", "value", "unit", "published", "gap", "scale", "seed", "seconds", "peak_mb"),
    *("bytes_up", "bytes_down", "commit", "versions", "spread", "seeds", "where"),
)
CLAIM_COLUMNS = ("claim", "statement", "holds", "evidence", "notebook", "scale", "experiment")


@dataclass(frozen=True)
class Summary:
    """What a report found: numbers of notebooks and claims, and ``text``, a few lines for the terminal."""

    notebooks: int
    ran: int
    failed: int
    claims: int
    holding: int
    text: str
    problems: tuple[str, ...] = ()


def result_rows(entry: Entry) -> list[dict[str, object]]:
    """One row per value that the notebook recorded; the keys are `RESULT_COLUMNS`."""
    record = entry.record
    if record is None:
        return []
    run = {name: getattr(record, name) for name in ("scale", "seed", "bytes_up", "bytes_down", "commit", "versions")}
    run |= {"notebook": entry.notebook, "seconds": entry.seconds, "peak_mb": entry.peak_mb}
    return [run | vars(value) for value in record.values]


def claim_rows(entry: Entry) -> list[dict[str, object]]:
    """One row per claim that the notebook names; the keys are `CLAIM_COLUMNS`, ``holds`` is true, false or empty."""
    words = {True: "true", False: "false", None: ""}
    return [
        {
            "claim": claim.id,
            "statement": claim.statement,
            "holds": words[claim.holds],
            "evidence": claim.evidence,
            "notebook": entry.notebook,
            "scale": entry.record.scale,
            "experiment": claim.experiment,
        }
        for claim in entry.claims
    ]


def to_csv(columns: tuple[str, ...], rows: Iterable[dict[str, object]]) -> str:
    """RFC 4180 quoting, LF line ends; None is an empty cell and a number keeps every digit."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def summarise(folder: Folder) -> Summary:
    entries = folder.entries
    claims = [claim for entry in entries for claim in entry.claims]
    failed = [entry for entry in entries if not entry.ran]
    holding = sum(claim.holds is True for claim in claims)
    ran = len(entries) - len(failed)
    lines = [f"{len(entries)} notebooks: {ran} ran, {len(failed)} did not; {holding} of {len(claims)} claims hold"]
    lines += [f"{entry.status}: {entry.notebook}: {entry.error}" for entry in failed]
    lines += [f"problem: {problem}" for problem in folder.problems]
    return Summary(len(entries), ran, len(failed), len(claims), holding, "\n".join(lines), folder.problems)


def write(directory: Path, papers_dir: Path = PAPERS) -> Summary:
    """Write the report of the batch folder (or folder of saved notebooks) ``directory`` into it.

    Raises:
        ReportError: ``directory`` is no folder, or holds no notebooks.
    """
    folder = read(Path(directory))
    try:
        names = paper_titles(papers_dir)
    except ReportError as error:
        names, folder = {}, replace(folder, problems=(*folder.problems, f"papers: {error}"))
    results = [row for entry in folder.entries for row in result_rows(entry)]
    claims = [row for entry in folder.entries for row in claim_rows(entry)]
    write_whole(folder.directory / "results.csv", to_csv(RESULT_COLUMNS, results))
    write_whole(folder.directory / "claims.csv", to_csv(CLAIM_COLUMNS, claims))
    page = write_whole(folder.directory / "index.html", render(folder, names))
    summary = summarise(folder)
    return replace(summary, text=f"{summary.text}\nreport: {page}")
