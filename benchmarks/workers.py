"""Rounds on one and two worker processes, local and on a Dask cluster, against one process: wall time, so throughput.

Only an idle machine shows what two processes gain: the load average is kept beside the figures, and the CPU time of all
processes together, which does not depend on it; and so is what the host itself lets two processes gain, by two whole
trainings that know nothing of each other. A process keeps the memory it happened to get, which makes it up to a
twentieth faster or slower than another: so pools and the process beside them are fresh ones in every pass. The model of
fl_utils.cluster_cost is fitted to rounds in which nobody trains; then it foretells those of the settings, of which it
knows what a client's training takes in one process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from statistics import median

import psutil
import torch
import torch.multiprocessing

from benchmarks.measure import Spent
from fl_utils import federation
from fl_utils.cluster_cost import Cost, Measured, errors, fit
from fl_utils.data import images, partition
from fl_utils.executors import available_cores, executor
from fl_utils.models.vision import SmallCNN, two_nn
from fl_utils.training import LocalTraining

MODELS = {"2NN": two_nn, "CNN": partial(SmallCNN, 10, 32, 512)}  # as benchmarks/simulation.py has them
LOCAL = LocalTraining(1, 10, 0.05)
MEASURE = "wall time against one process; the model's against the measured, or against no cost at all"
LIMIT = 1 / 1.9  # two worker processes: at least 1.9 times the clients of one process
COHORT = 10
SETTINGS = {  # model, clients, rounds of a turn, turns of a pass
    "CNN, 100 x 50": ("CNN", 100, 12, 2),
    "CNN, 10 x 500": ("CNN", 10, 1, 1),
    "2NN, 100 x 50": ("2NN", 100, 20, 3),
}
APART = "two trainings apart"
FRESH, PASSES = 5, 3  # processes of each kind of pool, with a pass each; and passes of a Dask cluster
SILENT, TURNS = 5, 5  # rounds without training, and turns of them
GIGABIT = 125e6  # bytes per second
WORKERS = (1, 2, 10, 100, 1000)


@cache
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


def training(setting: str) -> Callable[..., federation.Result]:
    """What a turn of ``setting`` is."""
    name, count, rounds, _ = SETTINGS[setting]
    return partial(
        federation.run, MODELS[name], clients(count), rounds=rounds, local=LOCAL, client_fraction=COHORT / count
    )


def checksum(vector: torch.Tensor) -> int:
    """Of the bytes of ``vector``."""
    return zlib.crc32(vector.numpy())


def train_apart(setting: str) -> int:
    """In a process of its own: one training; the checksum of its result."""
    return checksum(training(setting)().vector)


def turn_apart(processes: Executor, setting: str, result: torch.Tensor) -> Spent:
    """Two trainings at once, each in a process: what one of them takes when shared out to both.

    Raises RuntimeError where one does not end where one process does.
    """
    cpu, wall = cpu_seconds(), time.perf_counter()
    found = list(processes.map(train_apart, 2 * [setting]))
    spent = Spent((cpu_seconds() - cpu) / 2, (time.perf_counter() - wall) / 2)
    if found != 2 * [checksum(result)]:
        raise RuntimeError("a training in a process of its own does not end as in this one")
    return spent


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


@dataclass
class Pass:
    """What a pass found: of each setting its turns and a state's length; the first pass, also what each place moves,
    and of networks the costs of silent rounds."""

    spent: dict[str, list[dict[str, Spent]]]
    lengths: dict[str, int]
    moved: dict[str, dict[str, dict[str, int]]]
    silent: dict[str, dict[str, dict[str, float]]]


def measure(opened: Callable, passes: int, number: int = 0) -> Pass:
    """Of each setting, what the places that ``opened`` opens spend in their turns, and one process, which is this one.

    The settings take their turns in so many parts, minutes apart: so does what else the host has to do change.
    Each turn begins with another contender, the first with that of this ``number``: a core that was idle is slow at
    first.
    """
    torch.set_num_threads(1)
    found, contenders = Pass({setting: [] for setting in SETTINGS}, {}, {}, {}), {}
    with opened() as (places, processes):
        for setting in SETTINGS:
            run = training(setting)
            result = run().vector
            found.lengths[setting] = len(result)
            each = contenders[setting] = {"one process": partial(turn, run, result)} | {
                name: partial(turn, partial(run, executor=place), result) for name, place in places.items()
            }
            if processes is not None:
                each[APART] = partial(turn_apart, processes, setting, result)
            later = [name for name in each if name != "one process"]  # which just ran
            for name in [*later, *places]:  # the places' workers twice, until all of them have all examples
                each[name]()
        for _ in range(passes):
            for setting, (*_, turns) in SETTINGS.items():
                order, spent = list(contenders[setting]), found.spent[setting]
                for _ in range(turns):
                    first = (number + len(spent)) % len(order)
                    spent.append({name: contenders[setting][name]() for name in order[first:] + order[:first]})
        if number == 0:
            for setting in SETTINGS:
                found.moved[setting] = {name: moved(training(setting), place) for name, place in places.items()}
            for name in MODELS:
                found.silent[name] = silent_rounds(places, name)
    return found


def summary(setting: str, found: list[Pass]) -> dict:
    """What the turns of all passes say of each place: medians, and of the ratios the least and the most."""
    spent, results = [each for one in found for each in one.spent[setting]], {}
    for name in spent[0]:
        ratios = [each[name].wall_s / each["one process"].wall_s for each in spent]
        results[name] = {
            "ratio": median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            "cpu_s": median(each[name].cpu_s for each in spent),
            "cpu_ratio": median(each[name].cpu_s / each["one process"].cpu_s for each in spent),
            "wall_s": median(each[name].wall_s for each in spent),
            "speed_up": 1 / median(ratios),
            "one_process_s": median(each["one process"].wall_s for each in spent),
            "clients": SETTINGS[setting][2] * COHORT,
            "state_values": found[0].lengths[setting],
            "load": os.getloadavg()[0],
            **found[0].moved[setting].get(name, {}),
        }
        if APART in spent[0]:
            results[name]["of_apart"] = median(each[APART].wall_s / each[name].wall_s for each in spent)
    return results


def silent_rounds(places: dict[str, object], model: str) -> dict[str, dict[str, float]]:
    """Of one process and of each place, a round in which nobody trains: wall, CPU and this process' CPU seconds."""

    def nothing(trainer, client, local, seed) -> float:  # inside, so that it travels to workers that lack this module
        return 0.0

    run = partial(federation.run, MODELS[model], clients(COHORT), local=LOCAL, train=nothing)

    def spent(rounds: int, place) -> tuple[float, float, float]:
        own, all, wall = time.process_time(), cpu_seconds(), time.perf_counter()
        run(rounds=rounds, executor=place)
        return time.perf_counter() - wall, cpu_seconds() - all, time.process_time() - own

    found = {}
    for name, place in {"one process": None, **places}.items():
        spent(SILENT, place)
        turns = [(spent(1, place), spent(1 + SILENT, place)) for _ in range(TURNS)]  # what comes once cancels out
        wall, cpu, own = (median((long[i] - short[i]) / SILENT for short, long in turns) for i in range(3))
        found[name] = {"wall_s": wall, "cpu_s": cpu, "server_cpu_s": own}
    return found


def model(results: dict[str, dict], silent: dict[str, dict], kind: str) -> dict[str, dict[str, dict]]:
    """The cost model of one kind of workers beside the measured rounds, and at up to 1,000 workers.

    results: the :func:`summary` of each setting; silent: what :func:`silent_rounds` did of each network.
    """

    def cost(model: str, name: str, compute: float = 0.0) -> Cost:
        found, length = silent[model], results[next(s for s, each in SETTINGS.items() if each[0] == model)]
        aggregate = found["one process"]["cpu_s"] / COHORT
        return Cost(
            compute=max(0.0, compute - aggregate),
            aggregate=aggregate,
            bytes=4 * length["one process"]["state_values"],
            serving=found[name]["server_cpu_s"] / COHORT,
            handling=found[name]["cpu_s"] / COHORT,
            cores=available_cores(),
        )

    counts = [workers for workers in (1, 2) if f"{kind}, {workers}" in silent["CNN"]]
    latency, bandwidth = fit(
        [
            Measured(workers, COHORT, found[name]["wall_s"], cost(model, name))
            for model, found in silent.items()
            for workers in counts
            if (name := f"{kind}, {workers}")
        ]
    )
    labels, points = [], []
    for setting, found in results.items():
        for workers in counts:
            name = f"{kind}, {workers}"
            each = found[name]
            seconds, alone = each["wall_s"] / each["clients"] * COHORT, each["one_process_s"] / each["clients"]
            labels.append(f"{setting}, {workers}")
            points.append(Measured(workers, COHORT, seconds, cost(SETTINGS[setting][0], name, alone)))
    fitted = {"latency_s": latency, "bandwidth": min(bandwidth, sys.float_info.max)}
    beside = {
        label: {
            **_one(1 + error),
            "measured_s": point.seconds,
            "predicted_s": point.seconds * (1 + error),
            "serving_s": point.cost.serving,
            "handling_s": point.cost.handling,
            **fitted,
        }
        for label, point, error in zip(labels, points, errors(points, latency, bandwidth), strict=True)
    }
    groups = {f"model beside measured, {kind}": beside}
    if kind == "Dask":
        far = replace(points[0].cost, latency=latency, bandwidth=min(bandwidth, GIGABIT), cores=float("inf"))
        groups["model, 1,000 clients of CNN, 1 Gbit/s"] = {
            f"{workers} workers": {
                **_one(1 / far.efficiency(workers, 1000)),
                "efficiency": far.efficiency(workers, 1000),
                "predicted_s": far.seconds(workers, 1000),
                "waits_for": far.limit(workers, 1000),
            }
            for workers in WORKERS
        }
    return groups


def _one(ratio: float) -> dict[str, float]:
    return {"ratio": ratio, "ratio_min": ratio, "ratio_max": ratio}


@contextmanager
def pools() -> Iterator[tuple]:
    """Pools of one and of two workers, which wait without a stir for their turn, and two processes apart."""
    context = torch.multiprocessing.get_context("spawn")
    one_thread = {"initializer": torch.set_num_threads, "initargs": (1,)}
    with ExitStack() as stack, ProcessPoolExecutor(2, mp_context=context, **one_thread) as processes:
        yield {f"pool, {n}": stack.enter_context(executor(f"pool:{n}")) for n in (1, 2)}, processes


@contextmanager
def dask(workers: int) -> Iterator[tuple]:
    """One Dask cluster. Idle, its processes still talk: nothing else is measured beside it but one process."""
    with cluster(workers) as address, executor(address) as place:
        yield {f"Dask, {workers}": place}, None


def run() -> dict:
    """Wall time against one process (limit: two worker processes), then the model beside it and far beyond it.

    The model's ratios are predicted to measured seconds, and predicted seconds to those of workers without any cost.
    """
    results: dict[str, dict[str, dict]] = {setting: {} for setting in SETTINGS}
    silent: dict[str, dict[str, dict]] = {name: {} for name in MODELS}
    for opened, fresh, passes in ((pools, FRESH, 1), (partial(dask, 1), 1, PASSES), (partial(dask, 2), 1, PASSES)):
        found = []
        for number in range(fresh):
            with ProcessPoolExecutor(1, mp_context=torch.multiprocessing.get_context("spawn")) as process:
                found.append(process.submit(measure, opened, passes, number).result())
        for setting in SETTINGS:
            results[setting] = {**results[setting], **summary(setting, found), **results[setting]}
        for name in MODELS:
            silent[name] = {**found[0].silent[name], **silent[name]}
    for setting, (name, *_) in SETTINGS.items():
        if name == "CNN":
            results[setting]["pool, 2"]["limit"] = LIMIT
    found = [model(results, silent, kind) for kind in ("pool", "Dask")]
    return results | found[0] | found[1]
