"""Many notebooks in one folder: started, kept as they finish, stopped without a broken file, and resumed."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fl_utils.executors import available_cores
from fl_utils.experiment import commit
from fl_utils.paths import write_whole
from fl_utils.runner import saving
from fl_utils.runner.catalog import Refused
from fl_utils.runner.jobs import Job, JobResult, lost, now, run_job, run_on_worker
from fl_utils.runner.parameters import SCALES, in_words
from fl_utils.runner.plan import Planned
from fl_utils.runner.progress import Bars, Lines

Submit = Callable[[Job], "Future[JobResult]"]


class Batch:
    """A batch's folder, held by one runner at a time: ``batch.json``, executed notebooks, and a JSON beside each."""

    def __init__(self, folder: Path):
        from filelock import FileLock

        self.folder = folder
        self._lock = FileLock(folder / ".lock", timeout=0)

    @classmethod
    def create(cls, runs: Path, out: Path | None) -> Batch:
        """A new batch in ``out``, or in a folder of ``runs`` named after the time. Refused if ``out`` is taken."""
        try:
            if out is None:
                batch = cls(_new_folder(runs))
            else:
                _check_free(out)
                out.mkdir(parents=True, exist_ok=True)
                batch = cls(out)
        except OSError as error:
            raise _unwritable(out or runs, error) from None
        batch._hold()
        if out is not None and (out / "batch.json").exists():
            batch._lock.release()
            _check_free(out)
        return batch

    @classmethod
    def existing(cls, runs: Path, out: Path | None) -> Batch:
        """The batch in ``out``, or the latest in ``runs``. Raises Refused if there is none or another runner has it."""
        folder = (runs / "latest").resolve() if out is None else out
        if not (folder / "batch.json").is_file():
            what = "there is no latest batch" if out is None else f"{out} holds no batch (no batch.json)"
            raise Refused(f"nothing to resume: {what}; run without --resume to start one")
        batch = cls(folder)
        batch._hold()
        return batch

    def _hold(self) -> None:
        from filelock import Timeout

        try:
            self._lock.acquire()
        except Timeout:
            raise Refused(f"{self.folder} is in use by another runner; wait for it, or choose another --out") from None
        except OSError as error:
            raise _unwritable(self.folder, error) from None

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, *_) -> None:
        self._lock.release()

    def read(self) -> dict[str, Any]:
        """``batch.json``. Raises Refused if it cannot be used."""
        try:
            about = json.loads((self.folder / "batch.json").read_text(encoding="utf-8"))
            names = [job["notebook"] for job in about["jobs"]]
            if (
                not isinstance(about["parameters"], dict)
                or about["scale"] not in SCALES
                or not all(isinstance(name, str) for name in names)
            ):
                raise ValueError("its parameters, scale or jobs have another shape")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Refused(f"{self.folder / 'batch.json'} cannot be read ({error}); start a new batch") from None
        return about

    def describe(self, jobs: Sequence[Planned], selectors: Sequence[str], user: dict, scale: str, root: Path) -> None:
        """Write ``batch.json``; a resumed batch keeps its start, and the jobs that are not asked for again."""
        about = self.read() if (self.folder / "batch.json").exists() else {"started": now()}
        asked = [{"notebook": job.notebook, "parameters": job.parameters} for job in jobs]
        names = {job.notebook for job in jobs}
        asked += [job for job in about.get("jobs", []) if job["notebook"] not in names]
        about |= {
            "selectors": list(selectors),
            "parameters": user,
            "scale": scale,
            "commit": commit(root),
            "jobs": asked,
        }
        write_whole(self.folder / "batch.json", json.dumps(about, indent=1) + "\n")

    def point_latest(self, runs: Path) -> str:
        """Let ``runs/latest`` point at this batch, if it is one of ``runs``; returns "" or the reason why it does not.

        The batch is worth as much without it, on a file system without links for example.
        """
        if self.folder.parent.resolve() == runs.resolve():
            temporary = runs / f".latest.{uuid.uuid4().hex}"
            try:
                temporary.symlink_to(self.folder.name)
                temporary.replace(runs / "latest")
            except OSError as error:
                with contextlib.suppress(OSError):
                    temporary.unlink()
                return f"{runs / 'latest'} does not point at this batch ({error.strerror or error})"
        return ""

    def is_latest(self, runs: Path) -> bool:
        """Whether ``--resume`` alone means this batch."""
        return (runs / "latest").resolve() == self.folder.resolve()

    def keep(self, result: JobResult) -> None:
        """Write an executed notebook and then, as the mark that it is whole, its JSON."""
        path = self.folder / result.notebook
        path.with_suffix(".json").unlink(missing_ok=True)  # of an earlier run; it does not vouch for this one
        if result.executed:
            write_whole(path, result.executed)
        else:
            path.unlink(missing_ok=True)
        write_whole(path.with_suffix(".json"), result.as_json())

    def is_done(self, job: Planned) -> bool:
        """Whether this very job (same source, same parameters) succeeded here and left a whole notebook."""
        path = self.folder / job.notebook
        try:
            about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            return (
                isinstance(cells, list)
                and about["status"] == "ok"
                and about["source_sha256"] == job.entry.sha256
                and about["parameters"] == job.parameters
            )
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def job(self, planned: Planned, timeout: float | None) -> Job:
        """What the executor gets."""
        return Job(
            planned.notebook,
            planned.entry.source,
            planned.entry.sha256,
            planned.parameters,
            in_words(planned.changed),
            str(self.folder / "checkpoints" / Path(planned.notebook).with_suffix("")),
            timeout,
        )

    def tidy(self) -> None:
        """Remove checkpoint folders that hold nothing."""
        for folder, _, _ in os.walk(self.folder / "checkpoints", topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()


def run(
    batch: Batch,
    jobs: Sequence[Planned],
    submit: Submit,
    progress: Lines | Bars,
    stop: threading.Event,
    timeout: float | None = None,
    save_to: Path | None = None,
) -> list[JobResult]:
    """Run ``jobs`` and keep each as it finishes; returns the results, fewer than jobs where ``stop`` was set.

    save_to: the notebooks folder, where the outputs of successful runs at the defaults are to be saved as well.
    """
    started = time.monotonic()
    longest_first = sorted(jobs, key=lambda planned: -planned.cost.get("minutes", 0))  # no long one alone at the end
    waiting = {submit(batch.job(planned, timeout)): planned for planned in longest_first}
    results = []
    while waiting:
        finished, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
        if stop.is_set():
            for future in waiting:
                future.cancel()
        for future in finished:
            planned = waiting.pop(future)
            try:
                result = future.result()
            except CancelledError:
                continue
            except Exception as error:
                result = lost(batch.job(planned, timeout), error, time.monotonic() - started)
            if result.status == "stopped" or (stop.is_set() and result.status != "ok"):
                continue
            batch.keep(result)
            results.append(result)
            progress.end(result)
            if save_to is not None and result.status == "ok" and planned.scale == "embedded" and not result.parameters:
                kept = saving.save(result.executed, save_to / result.notebook, result.source_sha256)
                progress.say(f"{result.notebook} is not saved: {kept}" if kept else f"saved {result.notebook}")
    batch.tidy()
    return results


@contextmanager
def local(workers: int, progress: Lines | Bars, stop: threading.Event) -> Iterator[Submit]:
    """Jobs in threads of this process; the work is in their kernels, so that a kernel that dies breaks nothing."""
    pool: Executor = ThreadPoolExecutor(workers, thread_name_prefix="notebook")
    try:
        yield lambda job: pool.submit(run_job, job, progress.event, stop.is_set)
    finally:
        stop.set()  # does something only where an error ends the batch: no kernel is left to run for nothing
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def cluster(address: str, progress: Lines | Bars) -> Iterator[Submit]:
    """Jobs on the Dask cluster whose scheduler is at ``address``. Raises Refused if none answers there."""
    import distributed

    if not re.fullmatch(r"((tcp|tls|ws|wss|ucx)://)?(\[[\w:.]+\]|[\w.-]+):\d+", address):
        raise Refused(f"--scheduler {address!r}: want the address of a Dask scheduler, such as tcp://host:8786")
    topic = f"fl-notebooks-{uuid.uuid4().hex}"
    try:
        client = distributed.Client(address, timeout=10, set_as_default=False)
    except (OSError, ValueError) as error:
        raise Refused(f"no Dask scheduler answers at {address!r} ({type(error).__name__}: {error})") from None
    with client:
        client.subscribe_topic(topic, lambda event: progress.event(event[1]))
        if not client.scheduler_info()["workers"]:
            progress.say(f"the cluster at {address} has no workers yet: waiting for one")
        with client.get_executor(pure=False) as executor:
            yield lambda job: executor.submit(run_on_worker, job, topic)


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """An event that SIGINT, SIGTERM and (unless ignored, as under nohup) SIGHUP set instead of what they did before."""
    stop = threading.Event()
    signals = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def default_workers(jobs: Sequence[Planned]) -> int:
    """As many as cores, fewer where the memory available now does not hold as many of the largest jobs at once."""
    import psutil

    largest = max((job.cost.get("memory_mb", 0) for job in jobs), default=0)
    fit = int(psutil.virtual_memory().available / 1e6 // largest) if largest else cores()
    return max(1, min(cores(), fit, len(jobs)))


def cores() -> int:
    """Cores that this process and its container may use."""
    return min(available_cores(), _cpu_quota())


def cpu_seconds() -> float:
    """CPU seconds of this process and of all that it started and saw end: the kernels, and what they started."""
    import resource

    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def _cpu_quota() -> int:
    """Cores that the container may use (cgroup v2), rounded up; a great many where it sets no limit."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: the quota is the word "max"
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return math.ceil(int(quota) / int(period))
    return sys.maxsize


def _unwritable(folder: Path, error: OSError) -> Refused:
    return Refused(f"no batch can be written to {folder} ({error.strerror or error}); choose another --out")


def _new_folder(runs: Path) -> Path:
    runs.mkdir(parents=True, exist_ok=True)
    name = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    for suffix in ["", *(f"-{number}" for number in range(2, 1000))]:
        with contextlib.suppress(FileExistsError):
            folder = runs / (name + suffix)
            folder.mkdir()
            return folder
    raise Refused(f"{runs} has too many batches of this second")


def _check_free(out: Path) -> None:
    if (out / "batch.json").exists():
        raise Refused(f"{out} already holds a batch; add --resume to finish it, or choose another --out")
    if out.exists() and not out.is_dir():
        raise Refused(f"--out {out} is a file, want a folder")
    if out.is_dir() and any(path.name != ".lock" for path in out.iterdir()):
        raise Refused(f"--out {out} holds something other than a batch; choose a new or empty folder")
