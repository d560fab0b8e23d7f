"""How far a batch is, on standard error: bars in a terminal, a line per event elsewhere.

Both kinds are context managers with the same methods: ``event`` (from any thread), ``end`` and ``say``.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping, Sequence

import click

from fl_utils.runner.jobs import JobResult
from fl_utils.runner.plan import Planned

UNKNOWN_MINUTES = 1.0  # the weight of a notebook that does not say how long it takes


def open_progress(jobs: Sequence[Planned]) -> Lines | Bars:
    """Bars if standard error is a terminal, else lines."""
    return Bars(jobs) if sys.stderr is not None and sys.stderr.isatty() else Lines(jobs)


def outcome_line(result: JobResult) -> str:
    """``ok oarf/02_x.ipynb 41 s 612 MB`` or ``FAILED oarf/02_x.ipynb: ValueError: ... (cell 3)``."""
    if result.status == "ok":
        again = f", {result.attempts} attempts" if result.attempts > 1 else ""
        return f"ok {result.notebook} {result.seconds:.0f} s {result.peak_mb:.0f} MB{again}"
    return f"{'TIMEOUT' if result.status == 'timeout' else 'FAILED'} {result.notebook}: {result.error}"


class Lines:
    """Plain lines for logs."""

    def __init__(self, jobs: Sequence[Planned]):
        self._total, self._finished = len(jobs), 0
        self._started: set[str] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_) -> None:
        pass

    def event(self, event: Mapping) -> None:
        with self._lock:
            if event["notebook"] not in self._started:
                self._started.add(event["notebook"])
                self.say(f"started {event['notebook']}")

    def end(self, result: JobResult) -> None:
        self._finished += 1
        self.say(f"[{self._finished}/{self._total}] {outcome_line(result)}")

    def say(self, line: str) -> None:
        click.echo(line, err=True)


class Bars:
    """One bar for the batch, in minutes as the notebooks state them, and one for each running notebook, in cells."""

    def __init__(self, jobs: Sequence[Planned]):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._weight = {job.notebook: job.cost.get("minutes") or UNKNOWN_MINUTES for job in jobs}
        self._share = dict.fromkeys(self._weight, 0.0)
        self._tasks: dict[str, int] = {}
        self._over: set[str] = set()
        self._lock, self._start, self._finished = threading.Lock(), time.monotonic(), 0
        columns = [TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[note]}")]
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._all = self._progress.add_task("all notebooks", total=sum(self._weight.values()), note="")

    def __enter__(self) -> Bars:
        self._start = time.monotonic()
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def event(self, event: Mapping) -> None:
        name, cells = event["notebook"], max(event["cells"], 1)
        with self._lock:
            if name in self._over:
                return
            if name not in self._tasks:
                self._tasks[name] = self._progress.add_task(name, total=cells, note="")
            note = f"cell {event['cell']} of {event['cells']}, {event['memory_mb']:.0f} MB"
            completed = max(event["cell"] - 1, 0)
            self._progress.update(self._tasks[name], completed=completed, total=cells, note=note)
            self._share[name] = completed / cells
            self._whole()

    def end(self, result: JobResult) -> None:
        with self._lock:
            self._over.add(result.notebook)
            self._finished += 1
            self._share[result.notebook] = 1.0
            task = self._tasks.pop(result.notebook, None)
            if task is not None:
                self._progress.remove_task(task)
            self._whole()
        self.say(outcome_line(result))

    def say(self, line: str) -> None:
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _whole(self) -> None:
        total = sum(self._weight.values())
        done = sum(self._weight[name] * share for name, share in self._share.items())
        elapsed = time.monotonic() - self._start
        left = f", {duration(elapsed * (total - done) / done)} left" if 0 < done < total and elapsed > 5 else ""
        note = f"{self._finished} of {len(self._weight)}, {duration(elapsed)}{left}"
        self._progress.update(self._all, completed=done, note=note)


def duration(seconds: float) -> str:
    """``41 s``, ``3:05`` (minutes) or ``2:03:05`` (hours)."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02}" if minutes else f"{rest} s"
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
