"""Training on several workers at once, its phases timed apart (Wang and Guo 2019, section 4.3.2, Figure 3).

    jobs = [Job("small-vgg", 40, 48, 16, pictures)]
    found = measure(jobs, workers=[1, 2, 4], repeats=3)["small-vgg"]
    found[4].data, found[4].compute, found[4].aggregate     # seconds of one iteration
    speed_up(throughput(16, found[1].one_by_one(found[1])), throughput(32, found[2].one_by_one(found[1])))

Every worker is a process with one thread (on a GPU: with one GPU), torch's DistributedDataParallel joins them, over
gloo on the CPU and NCCL on GPUs. A phase by itself is timed in processor seconds on the CPU, which do not count waiting
and so fit workers with cores of their own even where they share; on a GPU by the clock.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch.multiprocessing

from fl_utils import iteration_time
from fl_utils.data_parallel_worker import Job, work


class WorkersFailed(RuntimeError):
    """A worker died, raised an error, or did not end in time; the others have been ended."""


@dataclass(frozen=True)
class Measured:
    """One job on so many workers: seconds of one iteration, medians over iterations and repeats, means over workers.

    data, compute, aggregate: each phase by itself; compute is forward, loss, backward and the update. iteration: the
    clock's seconds of an iteration under DistributedDataParallel while the next batch is loaded; average: the same as a
    mean over iterations, for batches that come in bursts; busy: the processor's seconds of a worker in one of them.
    equal: the workers ended every turn with the same weights.
    """

    workers: int
    data: float
    compute: float
    aggregate: float
    iteration: float
    busy: float
    average: float
    equal: bool

    def one_by_one(self, alone: Measured) -> float:
        """Equation 7, phases one after the other; data and compute as one worker ``alone`` needs them."""
        return alone.data + alone.compute + self.aggregate

    def overlapped(self, alone: Measured) -> float:
        """Equation 8, phases at the same time: the longest."""
        return max(alone.data, alone.compute, self.aggregate)


def throughput(images: int, seconds: float) -> float:
    """Images per second of iterations on ``images`` images together that take ``seconds``."""
    return images / seconds


def speed_up(fewer: float, more: float) -> float:
    """Equation 6 in %: how much larger the throughput ``more`` on twice the workers is; 100 is ideal."""
    return 100 * (more - fewer) / fewer


def measure(
    jobs: Sequence[Job],
    workers: Sequence[int] = (1, 2, 4),
    iterations: int = 3,
    repeats: int = 3,
    device: str = "cpu",
    seconds: float = 300,
    seed: int = 0,
) -> dict[str, dict[int, Measured]]:
    """Train every job on each number of workers, in turns, ``repeats`` times; the result by job and workers.

    iterations: counted ones of each turn and kind (phases apart, and together); one more comes before. seconds: of the
    clock for everything. Raises ValueError before any work on what cannot be done, WorkersFailed where a worker ends
    early (with its number and why) or time is up.
    """
    workers = _checked(jobs, workers, iterations, repeats, device, seconds)
    with tempfile.TemporaryDirectory(prefix="data_parallel_") as folder:
        plan = {"jobs": [asdict(job) for job in jobs], "workers": workers, "iterations": iterations}
        plan |= {"repeats": repeats, "device": device, "seconds": seconds, "seed": seed}
        _launch(folder, plan, max(workers), seconds)
        rows = [json.loads((Path(folder) / f"{rank}.json").read_text("utf-8")) for rank in range(max(workers))]
    return {
        job.key: {n: _summary(n, [row[f"{i}/{n}"] for row in rows[:n]]) for n in workers} for i, job in enumerate(jobs)
    }


def _checked(jobs, workers, iterations, repeats, device, seconds) -> list[int]:
    workers = list(workers)
    if 1 not in workers or len({*workers}) < len(workers) or any(type(n) is not int or n < 1 for n in workers):
        raise ValueError(f"workers are {workers}: want different whole numbers, 1 among them")
    if min(iterations, repeats) < 1 or seconds <= 0:
        raise ValueError(f"iterations {iterations}, repeats {repeats}, seconds {seconds}: want all above 0")
    kind = torch.device(device).type
    if kind not in ("cpu", "cuda") or (kind == "cuda" and torch.cuda.device_count() < max(workers)):
        there = torch.cuda.device_count()
        raise ValueError(
            f"device is {device!r}, with {max(workers)} workers: want cpu, or cuda and a GPU each ({there})"
        )
    if not jobs or len({job.key for job in jobs}) < len(jobs):
        raise ValueError(f"jobs are {[job.key for job in jobs]}: want at least one, each with a name of its own")
    for job in jobs:
        iteration_time.check(job.network, job.size)
        if job.batch < 2 or job.wait < 0:
            raise ValueError(f"job {job.key}: batch {job.batch}, wait {job.wait}: want at least 2 and 0")
        if len(job.pictures) < (least := job.batch * max(workers)):
            raise ValueError(f"job {job.key} has {len(job.pictures)} pictures: {least} are one batch of every worker")
        for file, label in job.pictures:
            if not 0 <= label < job.classes:
                raise ValueError(f"job {job.key}: {Path(file).name} has label {label}: want 0 to {job.classes - 1}")
            if not Path(file).is_file():
                raise ValueError(f"job {job.key}: there is no picture {file}")
    return workers


def _launch(folder: str, plan: dict, count: int, seconds: float) -> None:
    """Run ``count`` workers to their end. A server that has imported everything once forks them, where there is one."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    if method == "forkserver":
        multiprocessing.set_forkserver_preload(["fl_utils.data_parallel", "fl_utils.models.faces"])
    context = torch.multiprocessing.start_processes(
        work, (folder, plan), nprocs=count, join=False, daemon=True, start_method=method
    )
    ends = time.monotonic() + seconds
    try:
        while not context.join(max(0.1, min(5.0, ends - time.monotonic()))):
            if time.monotonic() > ends:
                raise WorkersFailed(f"the {count} workers did not end within {seconds:g} seconds; they were ended")
    except (torch.multiprocessing.ProcessRaisedException, torch.multiprocessing.ProcessExitedException) as error:
        raise WorkersFailed(_why(context.processes, error)) from None
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
            process.join()


def _why(processes: list, error: Exception) -> str:
    """One line: the worker that was killed from outside, if there is one; else the first that raised, and what."""
    for rank, process in enumerate(processes):
        process.join(1)
        if process.exitcode not in (None, 0, 1, -15):  # 1: raised; -15: ended because another failed
            return f"worker {rank} of {len(processes)} died (exit code {process.exitcode}); the others were ended"
    told = [line for line in str(error).splitlines() if line.strip()] or ["no reason given"]
    return f"worker {error.error_index} of {len(processes)} failed: {told[-1].strip()}; the others were ended"


def _summary(workers: int, rows: list[list[dict]]) -> Measured:
    """rows: of each worker, its turns."""
    turns = list(zip(*rows, strict=True))

    def over(name: str) -> float:
        return statistics.median(
            statistics.fmean(values) for turn in turns for values in zip(*(row[name] for row in turn), strict=True)
        )

    names = ("data", "compute", "aggregate", "iteration", "busy")
    average = statistics.median(
        statistics.fmean(second for row in turn for second in row["iteration"]) for turn in turns
    )
    equal = all(len({row["weights"] for row in turn}) == 1 for turn in turns)
    return Measured(workers, *map(over, names), average, equal)
