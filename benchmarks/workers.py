"""Rounds on one and two worker processes, local and on a Dask cluster, against one process: wall time, so throughput.

Only an idle machine shows what two processes gain: the load average is kept beside the figures, and the CPU time of all
processes together, which does not depend on it. The model of fl_utils.cluster_cost is fitted to the quickest turns.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import psutil
import torch

from benchmarks.measure import Spent
from fl_utils import federation
from fl_utils.aggregation import fedavg_stream
from fl_utils.cluster_cost import Cost, Measured, errors, fit
from fl_utils.data import images, partition
from fl_utils.executors import executor
from fl_utils.models.vision import SmallCNN, two_nn
from fl_utils.training import LocalTraining

MODELS = {"2NN": two_nn, "CNN": partial(SmallCNN, 10, 32, 512)}  # as benchmarks/simulation.py has them
LOCAL = LocalTraining(1, 10, 0.05)
LIMIT = 1 / 1.9  # two worker processes: at least 1.9 times the clients of one process
COHORT = 10
SETTINGS = {  # model, clients, rounds of a turn, turns
    "CNN, 100 x 50": ("CNN", 100, 3, 7),
    "CNN, 10 x 500": ("CNN", 10, 1, 5),
    "2NN, 100 x 50": ("2NN", 100, 3, 5),
}
GIGABIT = 125e6  # bytes per second
WORKERS = (1, 2, 10, 100, 1000)


def clients(count: int) -> list[federation.Client]:
    """MNIST-5k, in ``count`` parts."""
    digits = images.load("digits")["mnist"]
    parts = [digits.take(part) for part in partition.iid(len(digits), count, 0)]
    return [federation.Client(id, part.x, part.y) for id, part in enumerate(parts)]


@contextmanager
def cluster(workers: int) -> Iterator[str]:
    """A Dask scheduler and so many worker processes on loopback, as the README starts them; the scheduler's address."""
    started = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "scheduler.json")
        dask = [sys.executable, "-m", "dask"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
        where = ["--scheduler-file", str(file)]
        try:
            command = [*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", *where]
            started.append(subprocess.Popen(command, **quiet))
            for _ in range(workers):
                command = [*dask, "worker", "--nthreads", "1", "--no-nanny", "--no-dashboard", *where]
                started.append(subprocess.Popen(command, **quiet))
            import distributed

            until = time.monotonic() + 120
            while not file.exists():
                if time.monotonic() > until or any(process.poll() is not None for process in started):
                    raise RuntimeError("the Dask scheduler did not start on loopback")
                time.sleep(0.1)
            with distributed.Client(scheduler_file=str(file), set_as_default=False) as client:
                client.wait_for_workers(workers, 120)
                address = client.scheduler.address
            yield address
        finally:
            for process in reversed(started):
                process.terminate()
            for process in started:
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def cpu_seconds() -> float:
    """CPU time of this process and of those that it started and that still run."""
    total = time.process_time()
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


def turn(run: Callable[[], federation.Result], result: torch.Tensor) -> Spent:
    """One turn. Raises RuntimeError where it does not end where one process does."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    found = run()
    spent = Spent(cpu_seconds() - cpu, time.perf_counter() - wall)
    if not torch.equal(found.vector, result):
        raise RuntimeError("an executor's result is not that of one process")
    return spent


def moved(run: Callable, place) -> dict[str, int]:
    """Bytes that a run, not the first, moves between the server and the workers' memory."""
    before = dict(place.moved)
    run(executor=place)
    return {f"{kind}_bytes": place.moved[kind] - before[kind] for kind in before}


def measure(places: dict[str, object], model: str, count: int, rounds: int, turns: int) -> dict[str, dict]:
    """The wall time of each place against one process, its CPU time, and what it moves."""
    run = partial(
        federation.run, MODELS[model], clients(count), rounds=rounds, local=LOCAL, client_fraction=COHORT / count
    )
    result = run().vector
    for place in places.values():
        turn(partial(run, executor=place), result)
        turn(partial(run, executor=place), result)
    contenders = {"one process": run, **{name: partial(run, executor=place) for name, place in places.items()}}
    spent = [{name: turn(contender, result) for name, contender in contenders.items()} for _ in range(turns)]
    found = {}
    for name in contenders:
        ratios = [each[name].wall_s / each["one process"].wall_s for each in spent]
        found[name] = {
            "ratio": median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            "cpu_s": median(each[name].cpu_s for each in spent),
            "cpu_ratio": median(each[name].cpu_s / each["one process"].cpu_s for each in spent),
            "wall_s": median(each[name].wall_s for each in spent),
            "wall_s_min": min(each[name].wall_s for each in spent),
            "speed_up": 1 / median(ratios),
            "clients": rounds * COHORT,
            "state_values": len(result),
            "load": os.getloadavg()[0],
        }
        if name in places:
            found[name].update(moved(run, places[name]))
    return found


def aggregation_seconds(length: int) -> float:
    """What the server does with one update: look whether it is finite, add it to the mean. Quickest of several."""
    update = torch.randn(length)

    def stream(count: int) -> Iterator[tuple[torch.Tensor, int]]:
        for _ in range(count):
            torch.isfinite(update.sum())
            yield update, 1

    best = float("inf")
    for _ in range(5):
        started = time.process_time()
        fedavg_stream(stream(COHORT))
        best = min(best, (time.process_time() - started) / COHORT)
    return best


def model(results: dict[str, dict[str, dict]], kind: str) -> dict[str, dict[str, dict]]:
    """The cost model fitted to the measured rounds of one kind of workers, beside them, and at up to 1,000 workers."""
    points, labels = [], []
    for setting, found in results.items():
        alone = found["one process"]
        aggregate = aggregation_seconds(alone["state_values"])
        compute = alone["cpu_s"] / alone["clients"] - aggregate
        for workers in (1, 2):
            if (name := f"{kind}, {workers}") in found:
                seconds = found[name]["wall_s_min"] * COHORT / alone["clients"]
                points.append(Measured(workers, COHORT, seconds, Cost(compute, aggregate, 4 * alone["state_values"])))
                labels.append(f"{setting}, {workers}")
    latency, bandwidth = fit(points)
    beside = {
        label: {**_one(1 + error), "measured_s": point.seconds, "predicted_s": point.seconds * (1 + error)}
        for label, point, error in zip(labels, points, errors(points, latency, bandwidth), strict=True)
    }
    fitted = {"latency_s": latency, "bandwidth": min(bandwidth, sys.float_info.max)}
    groups = {f"model beside measured, {kind}": {label: {**each, **fitted} for label, each in beside.items()}}
    if kind == "Dask":
        cost = replace(points[0].cost, latency=latency, bandwidth=min(bandwidth, GIGABIT))
        groups["model, 1,000 clients of CNN, 1 Gbit/s"] = {
            f"{workers} workers": {
                **_one(1 / cost.efficiency(workers, 1000)),
                "efficiency": cost.efficiency(workers, 1000),
                "predicted_s": cost.seconds(workers, 1000),
                "waits_for": cost.limit(workers, 1000),
            }
            for workers in WORKERS
        }
    return groups


def _one(ratio: float) -> dict[str, float]:
    return {"ratio": ratio, "ratio_min": ratio, "ratio_max": ratio}


@contextmanager
def pools() -> Iterator[dict[str, object]]:
    """Pools of one and of two workers, which wait without a stir for their turn."""
    with ExitStack() as stack:
        yield {f"pool, {n}": stack.enter_context(executor(f"pool:{n}")) for n in (1, 2)}


@contextmanager
def dask(workers: int) -> Iterator[dict[str, object]]:
    """One Dask cluster. Idle, its processes still talk: nothing else is measured beside it but one process."""
    with cluster(workers) as address, executor(address) as place:
        yield {f"Dask, {workers}": place}


def run() -> dict:
    """Wall time against one process (limit: two worker processes), then the model beside it and far beyond it.

    The model's ratios are predicted to measured seconds, and predicted seconds to those of workers without any cost.
    """
    results: dict[str, dict[str, dict]] = {setting: {} for setting in SETTINGS}
    for opened in (pools, partial(dask, 1), partial(dask, 2)):
        with opened() as places:
            for setting, (name, count, rounds, turns) in SETTINGS.items():
                found = measure(places, name, count, rounds, turns)
                results[setting] |= {place: each for place, each in found.items() if place not in results[setting]}
    for setting, (name, *_) in SETTINGS.items():
        if name == "CNN":
            results[setting]["pool, 2"]["limit"] = LIMIT
    for kind in ("pool", "Dask"):
        results = {**results, **model({setting: results[setting] for setting in SETTINGS}, kind)}
    return results
