"""What a folder of executed notebooks holds: one `Entry` per notebook, whatever state its files are in.

A folder is a batch (``runs/<time>/``: executed notebooks, a job's JSON beside each, ``batch.json``) or the saved
notebooks themselves. Broken input never stops the reading: each thing wrong becomes one line that names the file, what
is wrong and what would be right, and all that can be read is kept.
"""

from __future__ import annotations

import base64
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fl_utils.runner.records import (
    RECORD_MIME,
    Claim,
    Record,
    load_json,
    mapping,
    number,
    one_line,
    parse_record,
    strings,
    text,
)

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
CAPTION_LENGTH = 400


class ReportError(ValueError):
    """The report cannot be made at all: a folder, README or marker that is not there."""


@dataclass(frozen=True)
class Figure:
    png: str  # base64, checked
    caption: str


@dataclass(frozen=True)
class Entry:
    """One notebook of the folder. ``status``: ok, or why it does not count as run; ``error`` is one line."""

    notebook: str
    status: str
    error: str = ""
    traceback: str = ""
    title: str = ""
    paper: str = ""
    experiments: tuple[str, ...] = ()
    minutes: float | None = None
    parameters: str = ""
    record: Record | None = None
    figures: tuple[Figure, ...] = ()
    seconds: float | None = None
    peak_mb: float | None = None
    problems: tuple[str, ...] = ()
    exists: bool = True

    @property
    def ran(self) -> bool:
        return self.status == "ok"

    @property
    def claims(self) -> tuple[Claim, ...]:
        return self.record.claims if self.record else ()


@dataclass(frozen=True)
class Folder:
    """A folder as read: its notebooks in the batch's order (else by name), its ``batch.json``, what was wrong."""

    directory: Path
    entries: tuple[Entry, ...]
    batch: dict[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def cells_of(notebook: object) -> list[dict]:
    cells = mapping(notebook).get("cells")
    return [cell for cell in cells if isinstance(cell, dict)] if isinstance(cells, list) else []


def tags_of(cell: dict) -> tuple[str, ...]:
    return strings(mapping(cell.get("metadata")).get("tags"))


def outputs_of(cell: dict) -> list[dict]:
    outputs = cell.get("outputs")
    return [output for output in outputs if isinstance(output, dict)] if isinstance(outputs, list) else []


def records_in(notebook: object) -> list[object]:
    """Every record output of the notebook, in order."""
    bundles = (mapping(output.get("data")) for cell in cells_of(notebook) for output in outputs_of(cell))
    return [bundle[RECORD_MIME] for bundle in bundles if RECORD_MIME in bundle]


def title_of(notebook: object) -> str:
    """The first level-one markdown heading, without its mark."""
    for cell in cells_of(notebook):
        if cell.get("cell_type") == "markdown":
            for line in text(cell.get("source")).splitlines():
                if line.startswith("# "):
                    return one_line(line[2:])
    return ""


def _prose(markdown: str) -> str:
    """Markdown as one plain line: its paragraphs, or its headings where there is nothing else."""
    from markdown_it import MarkdownIt

    spoken = {"text": None, "code_inline": None, "image": None, "softbreak": " ", "hardbreak": " "}
    paragraphs, headings, opened = [], [], ""
    for token in MarkdownIt("commonmark").parse(markdown):
        if token.type == "inline":
            parts = [spoken[child.type] or child.content for child in token.children or [] if child.type in spoken]
            (headings if opened == "heading_open" else paragraphs).append("".join(parts))
        elif token.type.endswith("_open"):
            opened = token.type
    return textwrap.shorten(one_line(" ".join(paragraphs or headings)), CAPTION_LENGTH, placeholder=" ...")


def figures_of(notebook: object, problems: list[str]) -> tuple[Figure, ...]:
    """Every PNG output, with the caption of its output's metadata or else of the markdown before its cell."""
    figures, before = [], ""
    for cell in cells_of(notebook):
        if cell.get("cell_type") == "markdown" and "papermill-error-cell-tag" not in tags_of(cell):
            before = text(cell.get("source"))
        for output in outputs_of(cell):
            png = mapping(output.get("data")).get("image/png")
            if png is None:
                continue
            encoded = "".join(text(png).split())
            try:
                whole = base64.b64decode(encoded, validate=True).startswith(PNG_SIGNATURE)
            except ValueError:
                whole = False
            if not whole:
                problems.append(f"figure {len(figures) + 1} is no PNG in base64; left out")
                continue
            metadata = mapping(output.get("metadata"))
            described = mapping(metadata.get("image/png")) | metadata
            caption = one_line(described.get("caption") or described.get("alt")) or _prose(before)
            figures.append(Figure(encoded, caption or f"Figure {len(figures) + 1} of {title_of(notebook)}"))
    return tuple(figures)


def _failure(notebook: object) -> tuple[str, str]:
    """The first error output as one line and as its traceback; two empty texts where there is none."""
    for cell in cells_of(notebook):
        for output in outputs_of(cell):
            if output.get("output_type") == "error":
                frames = output.get("traceback")
                joined = "\n".join(map(text, frames)) if isinstance(frames, list) else text(frames)
                return one_line(f"{text(output.get('ename'))}: {text(output.get('evalue'))}"), joined
    return "", ""


def _executed(notebook: object) -> bool:
    code = [cell for cell in cells_of(notebook) if cell.get("cell_type") == "code" and text(cell.get("source")).strip()]
    return not code or any(cell.get("execution_count") for cell in code)


def _read_notebook(path: Path, name: str, job: dict[str, Any]) -> Entry:
    notebook, unreadable = load_json(path)
    if not unreadable and not isinstance(mapping(notebook).get("cells"), list):
        unreadable = "not a notebook (no list of cells); run it again"
    seconds, peak_mb = number(job.get("seconds")), number(job.get("peak_mb"))
    if unreadable:
        job_error = one_line(job.get("error"))
        return Entry(
            name,
            "unreadable",
            error=f"{unreadable}; its job said: {job_error}" if job_error else unreadable,
            traceback=text(job.get("traceback")),
            seconds=seconds,
            peak_mb=peak_mb,
        )
    metadata = mapping(mapping(mapping(notebook).get("metadata")).get("fl_notebooks"))
    raw, record, problems, refused = records_in(notebook), None, [], ""
    if len(raw) > 1:
        problems.append(f"{len(raw)} records, want exactly one, in the last cell; the last one is used")
    if raw:
        record, found = parse_record(raw[-1])
        if record is None:
            refused = "; ".join(found)
        else:
            problems += found
    figures = figures_of(notebook, problems)
    experiments = (record and record.experiments) or strings(metadata.get("experiments"))
    status, error, traceback = _status(notebook, job, record, bool(experiments), refused)
    if refused and status != "no record":
        problems.append(refused)
    if record:
        seconds = seconds if record.seconds is None else record.seconds
        peak_mb = peak_mb if record.peak_mb is None else record.peak_mb
    return Entry(
        name,
        status,
        error=error,
        traceback=traceback,
        title=title_of(notebook),
        paper=(record and record.paper) or one_line(metadata.get("paper")),
        experiments=experiments,
        minutes=number(mapping(metadata.get("default")).get("minutes")),
        parameters="\n".join(text(c.get("source")) for c in cells_of(notebook) if "parameters" in tags_of(c)),
        record=record,
        figures=figures,
        seconds=seconds,
        peak_mb=peak_mb,
        problems=tuple(problems),
    )


def _status(
    notebook: object, job: dict[str, Any], record: Record | None, named: bool, refused: str
) -> tuple[str, str, str]:
    """Status, error line and traceback of a readable notebook.

    ``named``: it names experiments, so that it owes a record. ``refused``: why a record it has could not be taken.
    """
    error, traceback = _failure(notebook)
    status = one_line(job.get("status")) or ("failed" if error else "ok")
    if status == "ok" and error:
        status = "failed"
    if status != "ok":
        error = one_line(job.get("error")) or error or f"its job ended as {status!r} and left no error"
        return status, error, text(job.get("traceback")) or traceback
    if not _executed(notebook):
        return "not run", "no cell was executed; run it", ""
    if named and not (record and (record.values or record.claims)):
        reason = refused or ("the last cell displays no record" if record is None else "its record is empty")
        return "no record", f"ran, but recorded nothing: {reason}", ""
    return "ok", "", ""


def _job(path: Path) -> tuple[dict[str, Any], str]:
    """A job's JSON, or an empty one and why."""
    job, problem = load_json(path)
    if problem or (isinstance(job, dict) and "status" in job):
        return mapping(job), problem
    return {}, "not a job's JSON (no status)"


def read(directory: Path) -> Folder:
    """Read the batch folder, or the folder of saved notebooks, ``directory``.

    Raises:
        ReportError: ``directory`` is no folder, or holds neither notebooks nor jobs.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ReportError(f"{directory}: no such folder; want a batch (runs/<time>) or a folder of executed notebooks")
    problems: list[str] = []
    batch: dict[str, Any] = {}
    batch_file = directory / "batch.json"
    if batch_file.exists():
        content, problem = load_json(batch_file)
        batch = mapping(content)
        if problem or not isinstance(content, dict):
            problems.append(f"batch.json: {problem or 'not an object'}")
    listed = batch.get("jobs") if isinstance(batch.get("jobs"), list) else []
    planned = [one_line(job.get("notebook") if isinstance(job, dict) else job) for job in listed]
    found = [path for path in sorted(directory.rglob("*")) if path.is_file() and _wanted(path.relative_to(directory))]
    notebooks = {path.relative_to(directory).as_posix(): path for path in found if path.suffix == ".ipynb"}
    jobs: dict[str, dict[str, Any]] = {}
    for path in (path for path in found if path.suffix == ".json" and path != batch_file):
        name = path.relative_to(directory).with_suffix(".ipynb").as_posix()
        job, problem = _job(path)
        if problem and not batch_file.exists() and name not in notebooks:
            continue  # some other JSON file in a folder that is no batch
        if problem:
            problems.append(f"{path.relative_to(directory).as_posix()}: {problem}")
        jobs[name] = job
    order = {name: position for position, name in enumerate(name for name in planned if name)}
    for name in {*order}.difference(jobs) & notebooks.keys():
        jobs[name] = {"status": "unfinished", "error": "its job did not end; finish the batch with --resume"}
    names = sorted({*order, *notebooks, *jobs}, key=lambda name: (order.get(name, len(order)), name))
    if not names:
        raise ReportError(
            f"{directory}: no notebooks in it; want a batch (runs/<time>) or a folder of executed notebooks"
        )
    entries = tuple(
        _read_notebook(notebooks[name], name, jobs.get(name, {}))
        if name in notebooks
        else _absent(name, jobs.get(name))
        for name in names
    )
    lines = [f"{entry.notebook}: {problem}" for entry in entries for problem in entry.problems]
    return Folder(directory, entries, batch, tuple(problems + lines))


def _wanted(relative: Path) -> bool:
    return relative.parts[0] != "checkpoints" and not any(part.startswith(".") for part in relative.parts)


def _absent(name: str, job: dict[str, Any] | None) -> Entry:
    """A notebook the batch planned, or whose job left its JSON, without an executed notebook."""
    if job is None:
        return Entry(name, "not run", error="planned but not run; finish the batch with --resume", exists=False)
    status = one_line(job.get("status"))
    return Entry(
        name,
        status if status and status != "ok" else "unreadable",
        error=one_line(job.get("error")) or "its executed notebook is missing; run it again",
        traceback=text(job.get("traceback")),
        seconds=number(job.get("seconds")),
        peak_mb=number(job.get("peak_mb")),
        exists=False,
    )
