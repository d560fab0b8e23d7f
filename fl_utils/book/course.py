"""The course: the tutorials in reading order, each with its time and its solution, and the page of all solutions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from fl_utils.book.gallery import is_solution, is_tutorial
from fl_utils.book.text import contents, plain
from fl_utils.runner.outcomes import Entry
from fl_utils.runner.readme import NONE, table


def pages(entries: Sequence[Entry]) -> dict[str, str]:
    """``course.md`` and ``solutions.md``: the order is that of the files' numbers."""
    tutorials = [entry for entry in entries if is_tutorial(entry)]
    solutions = {PurePosixPath(entry.notebook).name: entry for entry in entries if is_solution(entry)}
    rows = []
    for number, entry in enumerate(tutorials, 1):
        solution = solutions.get(PurePosixPath(entry.notebook).name)
        rows.append(
            (
                f"{number}",
                f"[{plain(entry.title)}](notebooks/{entry.notebook})",
                NONE if entry.minutes is None else f"{entry.minutes:g}",
                f"[solution](notebooks/{solution.notebook})" if solution else NONE,
            )
        )
    course = [
        "# The course",
        "In reading order. Each runs in under a minute on a laptop and ends in exercises; the answers are notebooks "
        "that run as well.",
        table(("", "Tutorial", "Minutes", "Exercises"), rows),
        contents([*_documents(tutorials), "solutions"]),
    ]
    answers = [
        "# Solutions",
        "The exercises of [the course](course.md), answered.",
        "\n".join(f"* [{plain(entry.title)}](notebooks/{entry.notebook})" for entry in solutions.values()),
        contents(_documents(list(solutions.values()))),
    ]
    return {"course.md": "\n\n".join(course) + "\n", "solutions.md": "\n\n".join(answers) + "\n"}


def _documents(entries: Sequence[Entry]) -> list[str]:
    return [f"notebooks/{entry.notebook.removesuffix('.ipynb')}" for entry in entries]
