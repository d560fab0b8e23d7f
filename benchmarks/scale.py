"""A round's time and memory against the population and against the cohort: they are to grow with the cohort alone.

Times are CPU seconds of this process, turn by turn. Peak memory is that of a process of its own, which does nothing
else; its ratios are of megabytes, half a gigabyte of which torch takes before it begins. Clients hold 50 examples each
of 5,000 drawn at random: only their shape matters.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.measure import Spent, interleaved, summary
from fl_utils import federation
from fl_utils.models.mobile import mobilenet_v2
from fl_utils.models.vision import two_nn
from fl_utils.populations import Population
from fl_utils.training import LocalTraining

POPULATIONS = (100, 10_000, 1_000_000)
COHORTS = (10, 100, 1000)
MORE, FLAT = 1.25, 1.05  # at most so much more time for a client, and memory, than with the first of a group
LOCAL = LocalTraining(1, 10, 0.05)


def population(clients: int, shape: tuple[int, ...] = (1, 28, 28)) -> Population:
    """``clients`` of 50 examples each, images of ``shape``."""
    x = torch.randint(0, 256, (5000, *shape), dtype=torch.uint8)
    return Population.drawn(x, torch.randint(0, 10, (5000,)), clients=clients, per_client=50)


def rounds(clients: Population, cohort: int, number: int) -> Spent:
    """What one client of a cohort costs in ``number`` rounds of the 2NN, what the server does for it included."""
    started = time.process_time(), time.perf_counter()
    done = federation.run(two_nn, clients, rounds=number, local=LOCAL, client_fraction=cohort / len(clients)).rounds
    trained = sum(len(each.cohort) for each in done)
    if trained != cohort * number:
        raise RuntimeError(f"{trained} clients were drawn in {number} rounds, want {cohort * number}")
    return Spent((time.process_time() - started[0]) / trained, (time.perf_counter() - started[1]) / trained)


def perturb(trainer, client, local, seed) -> float:
    """In the place of training: another state for each client, at next to no cost."""
    trainer.vector.add_(torch.randn(1, generator=torch.Generator().manual_seed(seed)).item(), alpha=1e-3)
    return 0.0


def aggregate(cohort: int) -> None:
    """One round in which ``cohort`` clients of a million send a MobileNetV2's state (2.3 million values) each."""
    many = population(max(POPULATIONS), (3, 32, 32))
    build = partial(mobilenet_v2, 10)
    federation.run(build, many, rounds=1, local=LOCAL, client_fraction=cohort / len(many), train=perturb)


ALONE = {
    "2NN": lambda clients, cohort: rounds(population(clients), cohort, 1),
    "MobileNetV2": lambda clients, cohort: aggregate(cohort),
}


def alone(what: str, clients: int, cohort: int) -> Spent:
    """CPU and wall seconds and the peak memory of a process that does one of ALONE; not the seconds of its imports."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scale", what, str(clients), str(cohort)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise RuntimeError(f"{what} with {cohort} of {clients} clients failed: {done.stderr.strip()[-500:]}")
    return Spent(*map(float, done.stdout.split()))


def by_memory(turn: dict[str, Spent], limit: float) -> dict:
    """The summary of one turn, its ratios being of peak memory; the limit is for all but the first."""
    first, *others = turn
    found = summary([turn])
    for name, figures in found.items():
        ratio = turn[name].peak_mb / turn[first].peak_mb
        figures.update(ratio=ratio, ratio_min=ratio, ratio_max=ratio, **({"limit": limit} if name in others else {}))
    return found


def run() -> dict:
    """Ratios to the smallest population and the smallest cohort: of CPU time a client, and of peak memory."""
    made = {clients: population(clients) for clients in POPULATIONS}
    names = [f"{clients:,} clients" for clients in POPULATIONS]
    by_population = interleaved(
        {name: partial(rounds, made[n], 10, 10) for name, n in zip(names, POPULATIONS, strict=True)},
        repeats=5,
        own_clock=True,
        limits=dict.fromkeys(names[1:], MORE),
    )
    cohorts = [f"{cohort:,} a round" for cohort in COHORTS]
    by_cohort = interleaved(
        {name: partial(rounds, made[1_000_000], n, max(1, 200 // n)) for name, n in zip(cohorts, COHORTS, strict=True)},
        repeats=3,
        warm_up=False,
        own_clock=True,
        limits=dict.fromkeys(cohorts[1:], MORE),
    )
    return {
        "2NN, a client, 10 of a population": by_population,
        "2NN, a client, of 1,000,000": by_cohort,
        "2NN, memory, 10 of a population": by_memory(
            {name: alone("2NN", n, 10) for name, n in zip(names, POPULATIONS, strict=True)}, FLAT
        ),
        "2NN, memory, of 1,000,000": by_memory(
            {name: alone("2NN", 1_000_000, n) for name, n in zip(cohorts, COHORTS, strict=True)}, FLAT
        ),
        "MobileNetV2, memory, of 1,000,000": by_memory(
            {name: alone("MobileNetV2", 1_000_000, n) for name, n in zip(cohorts, COHORTS, strict=True)}, FLAT
        ),
    }


def _peak_mb() -> float:
    """Peak memory of this process. Not ``ru_maxrss``: that of a new process begins with its parent's."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


if __name__ == "__main__":
    torch.set_num_threads(1)
    begun = time.process_time(), time.perf_counter()
    ALONE[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3]))
    print(time.process_time() - begun[0], time.perf_counter() - begun[1], _peak_mb())
