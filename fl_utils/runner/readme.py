"""The generated sections of README.md: the gallery of notebooks, the scorecard of claims, the data of the paper scale.

All follow from the saved notebooks, the papers' claims and the data cards alone: no dates, no machine, no order of
files, so that a test can tell whether README.md is stale.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fl_utils.paths import DATASETS, PAPERS, write_whole
from fl_utils.runner.catalog import card_names, parse_parameters
from fl_utils.runner.outcomes import Entry, ReportError, read
from fl_utils.runner.page import by_paper, claim_order
from fl_utils.runner.records import mapping, one_line

SECTIONS = ("gallery", "data", "scorecard")
NONE = "–"
ROMAN = ("I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X")


def escape(text: str) -> str:
    """``text`` as plain words inside one cell of a Markdown table."""
    return re.sub(r"([\\|*\[\]`<])", r"\\\1", one_line(text))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the cells are Markdown already."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def load_yaml(path: Path) -> Any:
    """The file's content; None where there is no such file.

    Raises:
        ReportError: the file is not YAML.
    """
    import yaml

    if not path.exists():
        return None
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ReportError(f"{path.parent.name}/{path.name}: not YAML ({one_line(error)})") from None


def paper_titles(papers_dir: Path = PAPERS) -> dict[str, str]:
    """Paper key -> title, from each ``papers/<paper>/paper.yaml``; the key itself where that gives none."""
    return {
        path.parent.name: one_line(mapping(load_yaml(path)).get("title")) or path.parent.name
        for path in sorted(papers_dir.glob("*/paper.yaml"))
    }


def known_claims(papers_dir: Path = PAPERS) -> dict[str, dict[str, str]]:
    """Paper key -> {claim id: experiment}, from each ``papers/<paper>/claims.yaml``."""
    known: dict[str, dict[str, str]] = {}
    for path in sorted(papers_dir.glob("*/claims.yaml")):
        claims = load_yaml(path) or []
        if not isinstance(claims, list) or not all(isinstance(claim, dict) and "id" in claim for claim in claims):
            raise ReportError(f"{path.parent.name}/{path.name}: want a list of claims, each with an id")
        known[path.parent.name] = {one_line(c["id"]): one_line(c.get("experiment")) for c in claims}
    return known


def _data(entry: Entry, datasets_dir: Path) -> str:
    """The titles of the cards that the notebook's default names."""
    try:
        dataset = parse_parameters(entry.parameters)["dataset"].default
    except (KeyError, ValueError, SyntaxError):
        return NONE
    names = card_names(dataset) if isinstance(dataset, str) else []
    titles = [one_line(mapping(load_yaml(datasets_dir / f"{Path(name).name}.yaml")).get("title")) for name in names]
    return " + ".join(escape(title or name) for title, name in zip(titles, names, strict=True)) or NONE


def _compact(where: str) -> str:
    """``Table II`` and ``table 2`` alike: lower case, Arabic numerals, no spaces or dots."""
    arabic = re.sub(r"\b(?:VI{0,3}|I[VX]|I{1,3}|V|X)\b", lambda match: str(ROMAN.index(match[0]) + 1), where)
    return re.sub(r"[\s._-]", "", arabic.lower())


def source_of(entry: Entry) -> str:
    """The paper's name of the table or figure: from the notebook's file name, spelled as its record spells it."""
    kinds = "table|figure|section|chapter|appendix|equation"
    match = re.match(rf"\d+_((?:{kinds})s?)([^_]*)(?:_|$)", Path(entry.notebook).stem)
    if not match:
        return NONE
    kind, place = match.groups()
    for value in entry.record.values if entry.record else ():
        if _compact(value.where) == _compact(kind + place):
            return value.where[:1].upper() + value.where[1:]
    if not kind.endswith("s"):  # tables1-2 are two, figure4-2 is one
        place = re.sub(r"(?<=\d)-(?=\d)", ".", place)
    return f"{kind.capitalize()} {place}".strip()


def verdict_of(entry: Entry) -> str:
    """One notebook's verdict: how many of its claims hold, or why it has none."""
    if not entry.ran:
        return f"{entry.status}: {entry.error}"
    decided = [claim for claim in entry.claims if claim.holds is not None]
    if not entry.claims:
        return "no claims" if entry.experiments else NONE
    holding = sum(claim.holds for claim in decided)
    verdict = f"{holding} of {_plural(len(entry.claims), 'claim')} {'hold' if len(entry.claims) != 1 else 'holds'}"
    undecided = len(entry.claims) - len(decided)
    return f"{verdict}, {undecided} not decided" if undecided else verdict


def _gallery(entries: Iterable[Entry], titles: dict[str, str], datasets_dir: Path, prefix: str) -> str:
    """One table per paper, the tutorials first; neither the index nor the tutorials' solutions."""
    shown = [e for e in entries if e.notebook != "index.ipynb" and "solutions" not in Path(e.notebook).parts[:-1]]
    parts = []
    for paper in ("", *by_paper(entry.paper for entry in shown if entry.paper)):
        rows = [
            (
                f"[{escape(entry.title or entry.notebook)}]({quote(f'{prefix}/{entry.notebook}')})",
                escape(source_of(entry)),
                _data(entry, datasets_dir),
                NONE if entry.minutes is None else f"{entry.minutes:g}",
                escape(verdict_of(entry)),
            )
            for entry in shown
            if entry.paper == paper
        ]
        if rows:
            heading = escape(titles.get(paper, paper)) if paper else "Tutorials"
            header = ("Notebook", "Table or figure", "Data (default scale)", "Minutes", "Verdict")
            parts.append(f"### {heading}\n\n{table(header, rows)}")
    return "\n\n".join(parts)


def _scorecard(entries: Iterable[Entry], titles: dict[str, str], known: dict[str, dict[str, str]]) -> str:
    """One table per paper of the claims that a notebook decides, and one line that counts the others."""
    decided: dict[str, list[tuple[Entry, Any]]] = {}
    for entry in entries:
        for claim in entry.claims:
            if claim.holds is not None:
                decided.setdefault(entry.paper, []).append((entry, claim))
    parts = []
    for paper in by_paper({*decided, *known}):
        pairs = sorted(decided.get(paper, []), key=lambda pair: claim_order(pair[1].id))
        lines = [f"### {escape(titles.get(paper, paper)) or 'No paper'}"]
        if pairs:
            holding = sum(claim.holds for _, claim in pairs)
            lines.append(
                f"{holding} of {_plural(len(pairs), 'decided claim')} {'hold' if len(pairs) != 1 else 'holds'}."
            )
            rows = [
                (
                    escape(claim.id),
                    escape(claim.statement),
                    claim.verdict,
                    escape(claim.evidence),
                    escape(entry.record.scale),
                )
                for entry, claim in pairs
            ]
            lines.append(table(("Claim", "Statement", "Verdict", "Evidence", "Scale"), rows))
        ids = {claim.id for _, claim in pairs}
        missing = [experiment for claim, experiment in known.get(paper, {}).items() if claim not in ids]
        if missing:
            experiments = _plural(len(set(missing)), "experiment")
            lines.append(f"{_plural(len(missing), 'claim')} of {experiments} not decided yet.")
        if len(lines) > 1:
            parts.append("\n\n".join(lines))
    return "\n\n".join(parts)


def _paper_data(entries: Iterable[Entry], papers_dir: Path, datasets_dir: Path) -> str:
    """The data sets that the paper-scale files name: official place, size, and whose experiments want them."""
    wanted: dict[str, list[str]] = {}
    for entry in entries:
        scale = load_yaml(papers_dir / entry.paper / "scales" / f"{Path(entry.notebook).stem}.yaml") or {}
        names = [name for key in ("dataset", "weights") for name in card_names(str(mapping(scale).get(key) or ""))]
        for name in dict.fromkeys(names):
            wanted.setdefault(name, []).extend(entry.experiments)
    rows = []
    for name in sorted(wanted):
        card = mapping(load_yaml(datasets_dir / f"{name}.yaml"))
        official = mapping(card.get("official"))
        if official:
            cells = (card.get("title") or name, official.get("place"), official.get("size") or NONE)
            rows.append((*(escape(one_line(cell)) for cell in cells), ", ".join(dict.fromkeys(wanted[name]))))
    return table(("Data set", "Official place", "Size", "Wanted by"), rows) if rows else ""


def readme_sections(
    notebooks_dir: Path, papers_dir: Path = PAPERS, datasets_dir: Path = DATASETS, prefix: str = ""
) -> dict[str, str]:
    """``gallery``, ``data`` and ``scorecard`` as Markdown, from the saved notebooks under ``notebooks_dir``.

    ``prefix`` is the way from README.md to that folder, its name by default.

    Raises:
        ReportError: no notebooks there, or a paper's or card's YAML is broken.
    """
    notebooks_dir = Path(notebooks_dir)
    entries, titles = read(notebooks_dir).entries, paper_titles(papers_dir)
    return {
        "gallery": _gallery(entries, titles, datasets_dir, prefix or notebooks_dir.name),
        "data": _paper_data(entries, papers_dir, datasets_dir),
        "scorecard": _scorecard(entries, titles, known_claims(papers_dir)),
    }


def _span(content: str, name: str, readme: str) -> tuple[int, int]:
    """Where the section's text begins and ends between its markers."""
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    for marker in (start, end):
        if content.count(marker) != 1:
            found = "is missing" if marker not in content else "stands more than once"
            raise ReportError(
                f"{readme}: the marker {marker} {found}; want {start} and {end} once, each on its own line"
            )
    begin, stop = content.index(start) + len(start), content.index(end)
    if stop < begin:
        raise ReportError(f"{readme}: the marker {end} stands before {start}; want it after")
    return begin, stop


def sections_in(content: str, readme: str = "README.md") -> dict[str, str]:
    """What stands between the markers of ``content`` now.

    Raises:
        ReportError: a marker is missing, doubled or out of order; the message says which.
    """
    spans = {name: _span(content, name, readme) for name in SECTIONS}
    return {name: content[begin:stop].strip("\n") for name, (begin, stop) in spans.items()}


def update_readme(readme: Path, notebooks_dir: Path, papers_dir: Path = PAPERS, datasets_dir: Path = DATASETS) -> bool:
    """Write the generated sections of ``readme``; True where that changed it.

    Raises:
        ReportError: no such file, a marker missing, or as `readme_sections`; the file is left as it was.
    """
    readme, notebooks_dir = Path(readme), Path(notebooks_dir)
    if not readme.is_file():
        raise ReportError(f"{readme}: no such file; want a README with the markers of {' and '.join(SECTIONS)}")
    content = readme.read_text(encoding="utf-8")
    sections_in(content, readme.name)
    prefix = Path(os.path.relpath(notebooks_dir.resolve(), readme.resolve().parent)).as_posix()
    updated = content
    for name, section in readme_sections(notebooks_dir, papers_dir, datasets_dir, prefix).items():
        begin, stop = _span(updated, name, readme.name)
        updated = f"{updated[:begin]}\n\n{section}\n\n{updated[stop:]}"
    if updated == content:
        return False
    write_whole(readme, updated)
    return True
