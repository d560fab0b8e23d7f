"""The front page: every notebook as a card with a small picture of its own figure, and the way into the book."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import PurePosixPath

from fl_utils.book.text import contents, counted, held, plain
from fl_utils.runner.outcomes import Entry
from fl_utils.runner.page import by_paper
from fl_utils.runner.readme import NONE, source_of, verdict_of

THUMBNAILS = "notebooks/figures/small"
WIDTH, HEIGHT, COLOURS = 480, 300, 48  # of a thumbnail, pixels; its palette
TITLE = "Federated learning, reproduced"


def is_tutorial(entry: Entry) -> bool:
    return PurePosixPath(entry.notebook).parts[0] == "tutorials" and not is_solution(entry)


def is_solution(entry: Entry) -> bool:
    return "solutions" in PurePosixPath(entry.notebook).parts[:-1]


def thumbnail(entry: Entry) -> bytes:
    """A small PNG of the notebook's most telling figure: the first whose caption names the paper's, or else the last.

    Empty where the notebook has no figure.
    """
    from PIL import Image

    if not entry.figures:
        return b""
    source = source_of(entry).lower()
    named = [figure for figure in entry.figures if source != NONE and source in figure.caption.lower()]
    chosen = (named or entry.figures[-1:])[0]
    with Image.open(io.BytesIO(base64.b64decode(chosen.png))) as picture:
        small = picture.convert("RGB")
        small.thumbnail((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
        framed = Image.new("RGB", (WIDTH, HEIGHT), "white")
        framed.paste(small, ((WIDTH - small.width) // 2, (HEIGHT - small.height) // 2))
        buffer = io.BytesIO()
        framed.quantize(COLOURS).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def thumbnails(entries: Sequence[Entry]) -> dict[str, bytes]:
    """Path from the book's root -> picture, for every notebook that is shown as a card."""
    found = {thumbnail_path(entry): thumbnail(entry) for entry in entries if entry.paper or is_tutorial(entry)}
    return {path: picture for path, picture in found.items() if picture}


def thumbnail_path(entry: Entry) -> str:
    return f"{THUMBNAILS}/{entry.notebook.removesuffix('.ipynb').replace('/', '-')}.png"


def page(entries: Sequence[Entry], titles: dict[str, str], reference: Sequence[str]) -> str:
    """The front page as Markdown. reference: the documents of the book's last part."""
    papers = by_paper({entry.paper for entry in entries if entry.paper})
    claims = [claim for entry in entries for claim in entry.claims]
    lines = [
        f"# {TITLE}",
        f"{counted(len(papers), 'paper')} on federated learning, mobile learning and face recognition, one notebook "
        "per published table or figure, each with the outputs of its last saved run. "
        f"**{held(claims)}** at the default scale; "
        "[the scorecard](scorecard.md) has each with its evidence.",
        "New to federated learning? Begin with [the course](course.md). With a paper in hand, go to its page:",
        "\n".join(f"* [{plain(titles.get(paper, paper))}](papers/{paper}/index.md)" for paper in papers),
        "The symbols of the papers, and what our parameters call them, are in [the glossary](glossary.md).",
    ]
    lines += ["## The course", _grid([entry for entry in entries if is_tutorial(entry)])]
    for paper in papers:
        lines += [
            f"## {plain(titles.get(paper, paper))}",
            _grid([entry for entry in entries if entry.paper == paper]),
        ]
    lines += [
        contents(["course"], "Learning", 2),
        contents([f"papers/{paper}/index" for paper in papers], "Papers", 2),
        contents(reference, "Reference"),
    ]
    return "\n\n".join(lines) + "\n"


def _grid(entries: Sequence[Entry]) -> str:
    cards = "\n".join(_card(entry) for entry in entries)
    return f":::::{{grid}} 1 2 3 3\n:gutter: 3\n:class-container: gallery\n\n{cards}\n:::::"


def _card(entry: Entry) -> str:
    picture = []
    if entry.figures:
        picture = [f":img-top: /{thumbnail_path(entry)}", f":img-alt: A figure of: {plain(entry.title)}"]
    source = source_of(entry)
    facts = [
        *([f"**{plain(source)}**"] if source != NONE else []),
        *([] if entry.minutes is None else [f"{entry.minutes:g} min"]),
    ]
    verdict = verdict_of(entry)
    return "\n".join(
        [
            "::::{grid-item-card}",
            f":link: /notebooks/{entry.notebook.removesuffix('.ipynb')}",
            ":link-type: doc",
            f":link-alt: {plain(entry.title)}",
            *picture,
            "",
            f"{plain(entry.title)}",
            "",
            ":::{card-footer}",
            " · ".join(facts) + ("" if verdict == NONE else f"\\\n{plain(verdict)}"),
            ":::",
            "::::",
            "",
        ]
    )
