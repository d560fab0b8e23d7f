"""A repository of tiny notebooks for the runner's tests, and looks at the processes that running them starts."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

COST = {"minutes": 0.1, "memory_mb": 100}
PARAMETERS = "rounds: int = 3  # R (section 4.2)\nlr: float = 0.1  # assumed"


def cell(source: str, *tags: str, kind: str = "code") -> dict:
    about = {"cell_type": kind, "metadata": {"tags": list(tags)} if tags else {}, "source": source}
    return about | ({"execution_count": None, "outputs": []} if kind == "code" else {})


def notebook(*code: str, parameters: str | None = PARAMETERS, title: str = "Title", **about) -> str:
    """The text of a notebook with a title, a parameters cell and ``code`` cells; ``about``: metadata fl_notebooks."""
    cells = [cell(f"# {title}", kind="markdown")]
    cells += [cell(parameters, "parameters")] if parameters is not None else []
    cells += [cell(source) for source in code]
    for number, each in enumerate(cells):
        each["id"] = f"cell-{number}"
    about = {"paper": "oarf", "experiments": ["O2"], "default": COST, "paper_scale": None} | about
    return json.dumps({"cells": cells, "metadata": {"fl_notebooks": about}, "nbformat": 4, "nbformat_minor": 5})


def repository(root: Path, notebooks: dict[str, str]) -> Path:
    """Write ``notebooks`` (path below notebooks/ -> text) under ``root`` and return it."""
    for name, text in notebooks.items():
        path = root / "notebooks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (root / "papers").mkdir(exist_ok=True)
    return root


def start(root: Path, *arguments: object) -> subprocess.Popen:
    """``fl-notebooks --root ROOT ARGUMENTS`` as a process, its output captured as text."""
    command = [sys.executable, "-m", "fl_utils", "--root", str(root), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root)


def until(condition: Callable[[], object], what: str, seconds: float = 40) -> None:
    """Wait until ``condition()`` is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s in vain for {what}"
        time.sleep(0.05)


def alive(*pids: int) -> list[int]:
    """Those of ``pids`` that still run (a zombie does not)."""
    import psutil

    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


def outputs(path: Path) -> str:
    """All text that an executed notebook's cells printed."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "".join("".join(output.get("text", [])) for each in cells for output in each.get("outputs", []))
