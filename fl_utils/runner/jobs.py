"""One notebook as a job: text in, executed text and a verdict out, so that it can run in any process or machine."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass(frozen=True)
class Job:
    """What it takes to run one notebook: its name, its text, the parameters to set, and the limits.

    ``checkpoints``: the folder in which trainings keep theirs. ``timeout``: seconds for the whole notebook or None.
    """

    notebook: str
    source: str = field(repr=False)
    sha256: str
    parameters: dict[str, Any]
    overrides: str
    checkpoints: str
    timeout: float | None = None


@dataclass(frozen=True)
class JobResult:
    """How a job ended. ``status``: ok, failed, timeout or stopped. ``executed``: the notebook's text ("" if none)."""

    notebook: str
    status: str
    seconds: float
    peak_mb: float
    attempts: int
    error: str
    traceback: str
    parameters: dict[str, Any]
    source_sha256: str
    finished: str
    executed: str = field(default="", repr=False)

    def as_json(self) -> str:
        """What is kept beside the executed notebook."""
        content = asdict(self)
        del content["executed"]
        return json.dumps(content, indent=1) + "\n"


def run_job(
    job: Job, notify: Callable[[dict], None] | None = None, stopped: Callable[[], bool] | None = None
) -> JobResult:
    """Run one notebook in a kernel of its own. Never raises for what a notebook does; the result says it.

    notify: called with ``{"notebook", "cell", "cells", "memory_mb"}`` as it proceeds, from any thread.
    stopped: asked a few times a second; once true the kernel is killed and the status is "stopped".
    A kernel that dies before it replies to its first request is started once more.
    """
    from fl_utils.runner import kernel

    started = time.monotonic()
    notify, stopped = notify or (lambda event: None), stopped or (lambda: False)
    checkpoints = prepare_checkpoints(job)
    deadline = None if job.timeout is None else started + job.timeout
    attempts = 1
    outcome = kernel.execute(job, environment(job, checkpoints), deadline, notify, stopped)
    if outcome.never_replied:
        attempts = 2
        outcome = kernel.execute(job, environment(job, checkpoints), deadline, notify, stopped)
    if outcome.status == "ok":
        shutil.rmtree(checkpoints, ignore_errors=True)
    return JobResult(
        job.notebook,
        outcome.status,
        round(time.monotonic() - started, 2),
        round(outcome.peak_mb, 1),
        attempts,
        outcome.error,
        outcome.traceback,
        job.parameters,
        job.sha256,
        now(),
        outcome.executed,
    )


def lost(job: Job, error: BaseException, seconds: float) -> JobResult:
    """The result of a job whose executor gave none: a worker that died, code that is missing there."""
    text = "".join(traceback.format_exception(error))
    line = f"the executor lost the job: {type(error).__name__}: {' '.join(str(error).split())}"
    return JobResult(job.notebook, "failed", round(seconds, 2), 0.0, 1, line, text, job.parameters, job.sha256, now())


def run_on_worker(job: Job, topic: str) -> JobResult:
    """`run_job` inside a Dask worker: progress goes out as events of ``topic``; a cancelled task kills its kernel."""
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def stopped() -> bool:
        task = worker.state.tasks.get(key)
        return task is None or task.state == "cancelled"

    def notify(event: dict) -> None:
        with contextlib.suppress(Exception):  # progress that does not arrive is no reason to fail
            worker.log_event(topic, event)

    return run_job(job, notify, stopped)


def prepare_checkpoints(job: Job) -> Path:
    """The job's checkpoint folder, with none in it that another version of the job left.

    Where the batch's folder does not exist (a worker on another machine) the folder is one of that machine's cache.
    """
    folder = Path(job.checkpoints)
    if not _batch_folder(job).is_dir():
        from fl_utils.paths import cache_dir

        folder = cache_dir() / "checkpoints" / _batch_folder(job).name / Path(job.notebook).with_suffix("")
    belongs_to = json.dumps({"source_sha256": job.sha256, "parameters": job.parameters}, sort_keys=True)
    label = folder / "job.json"
    if folder.exists() and not (label.is_file() and label.read_text() == belongs_to):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    label.write_text(belongs_to)
    return folder


def _batch_folder(job: Job) -> Path:
    return Path(job.checkpoints).parents[len(Path(job.notebook).parts)]


def environment(job: Job, checkpoints: Path) -> dict[str, str]:
    """The kernel's environment: this process' one, one thread for each library, and what the runner tells notebooks.

    The programs of this Python's environment (flatc, which ExecuTorch calls) are found first, activated or not.
    """
    programs = [str(Path(sys.executable).parent), *os.environ.get("PATH", os.defpath).split(os.pathsep)]
    return {
        **os.environ,
        **ONE_THREAD,
        "PATH": os.pathsep.join(dict.fromkeys(programs)),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "FL_NOTEBOOKS_CHECKPOINTS": str(checkpoints),
        "FL_NOTEBOOKS_OVERRIDES": job.overrides,
    }


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def plain(text: str) -> str:
    """``text`` without terminal colours."""
    return ANSI.sub("", text)


def scratch() -> Path:
    """A new private folder with a short path (sockets lie in it, and their paths are limited to about 100 bytes)."""
    return Path(tempfile.mkdtemp(prefix="fln-"))
