"""A page per paper, published beside reproduced, and the scorecard of all claims, from the notebooks' saved records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fl_utils import papers
from fl_utils.book.text import code, contents, held, plain
from fl_utils.runner.outcomes import Entry
from fl_utils.runner.page import by_paper, claim_order, format_number, format_value
from fl_utils.runner.readme import NONE, known_claims, load_yaml, source_of, table
from fl_utils.runner.records import Claim, Value, mapping

VALUES = ("Metric", "In the paper", "Paper", "Here", "Unit", "Gap", "Scale", "Seeds")
CLAIMS = ("Claim", "Statement", "Verdict", "Evidence")


def pages(entries: Sequence[Entry], papers_dir: Path) -> dict[str, str]:
    """Every paper's page and ``scorecard.md``, as Markdown, by path from the book's root.

    Raises ReportError where a paper's file is broken.
    """
    known = known_claims(papers_dir)
    found = {}
    for paper in by_paper({*known, *(entry.paper for entry in entries if entry.paper)}):
        about = mapping(load_yaml(papers_dir / paper / "paper.yaml"))
        own = [entry for entry in entries if entry.paper == paper]
        found[f"papers/{paper}/index.md"] = _paper(about, own, _statements(known.get(paper, {}), papers_dir))
    found["scorecard.md"] = _scorecard(entries, papers_dir, known)
    return found


def _statements(known: dict[str, str], papers_dir: Path) -> dict[str, papers.Claim]:
    return {id: papers.claims(experiment, papers_dir)[id] for id, experiment in known.items()}


def _paper(about: dict[str, Any], entries: Sequence[Entry], claims: dict[str, papers.Claim]) -> str:
    lines = [f"# {plain(about.get('title', ''))}", plain(about.get("citation", ""))]
    decided = {claim.id: claim for entry in entries for claim in entry.claims if claim.holds is not None}
    lines.append(
        f"**{held(decided.values())}** at the scale that the notebooks were saved "
        "with. Numbers of a smaller scale are set beside the paper's to be compared in kind, not in size."
    )
    for entry in entries:
        lines += _experiment(entry)
    missing = [claim for id, claim in claims.items() if id not in decided]
    if missing:
        lines += ["## Not decided", "What no default run can decide, and what it would need."]
        rows = [
            (plain(claim.id), plain(claim.statement), plain(claim.source), plain(claim.needs) or NONE)
            for claim in missing
        ]
        lines.append(table(("Claim", "Statement", "In the paper", "Needs"), rows))
    setup = about.get("setup")
    if isinstance(setup, list) and setup:
        rows = [
            (plain(s.get("name")), plain(_words(s.get("value"))), plain(s.get("where"))) for s in map(mapping, setup)
        ]
        lines += ["## What the paper says of its set-up", table(("What", "Value", "Where"), rows)]
    lines.append(contents(f"notebooks/{entry.notebook.removesuffix('.ipynb')}" for entry in entries))
    return "\n\n".join(lines) + "\n"


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _experiment(entry: Entry) -> list[str]:
    """The part of a paper's page that one notebook fills."""
    lines = [f"## {plain(entry.title or entry.notebook)}"]
    facts = [
        plain(source_of(entry)),
        f"experiment {', '.join(map(plain, entry.experiments))}",
        *([] if entry.minutes is None else [f"{entry.minutes:g} min"]),
        f"[the notebook](../../notebooks/{entry.notebook})",
    ]
    lines.append(" · ".join(facts))
    if not entry.record:
        return [*lines, f"*{plain(entry.status)}: {plain(entry.error)}*"]
    if entry.record.values:
        lines.append(table(VALUES, [_value(value, entry.record.scale) for value in entry.record.values]))
    if entry.claims:
        rows = [_claim(claim) for claim in sorted(entry.claims, key=lambda claim: claim_order(claim.id))]
        lines.append(table(CLAIMS, rows))
    return lines


def _value(value: Value, scale: str) -> tuple[str, ...]:
    return (
        code(value.metric),
        plain(value.where),
        plain(value.published or ""),
        plain(format_value(value)),
        plain(value.unit),
        plain(format_number(value.gap, signed=True)),
        plain(scale),
        "" if value.seeds is None else f"{value.seeds:g}",
    )


def _claim(claim: Claim) -> tuple[str, ...]:
    return plain(claim.id), plain(claim.statement), _verdict(claim), plain(claim.evidence)


def _verdict(claim: Claim) -> str:
    return f"**{claim.verdict}**" if claim.holds is True else claim.verdict


def _scorecard(entries: Sequence[Entry], papers_dir: Path, known: dict[str, dict[str, str]]) -> str:
    lines = [
        "# The scorecard",
        "What became of the papers' claims at the default scale, as saved in the notebooks. A claim that does not hold "
        "on small embedded data is a result, and no proof against the paper.",
    ]
    for paper in by_paper(known):
        title = mapping(load_yaml(papers_dir / paper / "paper.yaml")).get("title", paper)
        pairs = [(entry, claim) for entry in entries for claim in entry.claims if entry.paper == paper]
        pairs.sort(key=lambda pair: claim_order(pair[1].id))
        rows = [
            (
                f"[{plain(claim.id)}](notebooks/{entry.notebook})",
                plain(claim.statement),
                _verdict(claim),
                plain(claim.evidence),
                plain(entry.record.scale),
            )
            for entry, claim in pairs
        ]
        lines += [
            f"## {plain(title)}",
            f"{held(claim for _, claim in pairs)}, of {len(known[paper])} in all. "
            f"[Published beside reproduced](papers/{paper}/index.md).",
        ]
        if rows:
            lines.append(table((*CLAIMS, "Scale"), rows))
    return "\n\n".join(lines) + "\n"
