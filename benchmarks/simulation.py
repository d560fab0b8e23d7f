"""Federated averaging on one machine beside what one would take instead: other projects' simulators, loops by hand.

Every contender is a process of its own (``benchmarks/rivals``), in the environment it needs, given the same first
state, the same cohorts and the same minibatches in the same order; they take turns at blocks of rounds. In the end all
must hold the same weights, or nothing is reported. The limit is plain SGD over the same minibatches, ratio 1.

"With start-up" adds to the measured turns what the process has spent from its beginning, imports and all, to the end of
its first block. Weights are compared after that block: later, one unit of a ReLU that rounding has switched makes
differences of 1e-7 into some of 1e-4 within a round, whoever computes.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import Spent, interleaved, summary
from benchmarks.rivals.job import BATCH, MODELS, save
from fl_utils import federation
from fl_utils.data import images, partition
from fl_utils.environments import NOT_INSTALLED, Environment
from fl_utils.paths import ROOT
from fl_utils.training import client_seed

RIVALS = Environment("make rivals", ".venv-rivals", ROOT / "benchmarks" / "rivals")
PLAIN, OURS, BATCHED, REFERENCE = "plain SGD", "fl_utils", "fl_utils, together", "textbook FedAvg"
CONTENDERS = {  # module, its argument; those with "" run in the rivals' environment
    PLAIN: ("loops", "plain"),
    OURS: ("ours", "never"),
    BATCHED: ("ours", "auto"),
    REFERENCE: ("loops", "textbook"),
    "pfl": ("pfl_run", ""),
    "FedLab": ("fedlab_run", ""),
    "Flower": ("flower_run", ""),
}
TOLERANCE = 1e-4  # of the weights after the first block, by absolute value
SECONDS = 300  # the most that a contender may take for one answer


@dataclass(frozen=True)
class Setting:
    """A federation of ``clients`` with ``examples`` each, ``cohort`` of them a round, measured in ``turns`` blocks."""

    model: str
    clients: int
    examples: int
    cohort: int
    rounds: int
    turns: int
    limits: dict[str, float]

    @property
    def name(self) -> str:
        """The group's name in the results."""
        return f"{self.model}, {self.clients} x {self.examples}"

    @property
    def steps(self) -> int:
        """Minibatches of a block."""
        return self.rounds * self.cohort * -(-self.examples // BATCH)

    def write(self, path: Path) -> None:
        """The task's file: digits (for colour networks 32 x 32, three equal channels), parts, cohorts, first state."""
        digits = images.load("digits")["mnist"]
        x, y = digits.x, digits.y
        if self.model == "FedMobileNetV2":
            x = torch.nn.functional.pad(x, (2, 2, 2, 2)).expand(-1, 3, -1, -1)
        parts = [part[: self.examples] for part in partition.iid(len(y), self.clients, 0)]
        blocks = [[self.drawn(block, number) for number in range(self.rounds)] for block in range(self.turns + 1)]
        seeds = [
            [
                [client_seed(0, block * self.rounds + number, id) for id in cohort]
                for number, cohort in enumerate(rounds)
            ]
            for block, rounds in enumerate(blocks)
        ]
        _, initial = federation.begin(MODELS[self.model], "cpu", 0)
        save(path, self.model, x, y, np.stack(parts), blocks, seeds, initial)

    def drawn(self, block: int, number: int) -> list[int]:
        """The cohort that ``federation.run`` draws in this round, with seed 0."""
        return federation.draw(range(self.clients), self.cohort / self.clients, 0, block * self.rounds + number)


SETTINGS = (
    Setting("2NN", 100, 50, 10, 10, 5, {OURS: 0.90, BATCHED: 0.60}),
    Setting("2NN", 10, 500, 10, 1, 3, {OURS: 0.90, BATCHED: 0.60}),
    Setting("CNN", 100, 50, 10, 1, 3, {OURS: 1.05}),
    Setting("CNN", 10, 500, 10, 1, 1, {OURS: 1.05}),
    Setting("FedMobileNetV2", 4, 20, 2, 1, 5, {OURS: 1.05}),
)


class Contender:
    """A contender's process, idle between commands. ``version`` is known from the first answer on."""

    def __init__(self, name: str, python: Path, log: Path):
        module, argument = CONTENDERS[name]
        self.name, self.log, self.version, self.note, self.start_up = name, log, "", "", Spent(0.0, 0.0)
        command = [str(python), "-m", f"benchmarks.rivals.{module}", *([argument] if argument else [])]
        variables = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
        variables |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        variables |= {"RAY_USAGE_STATS_ENABLED": "0", "FLWR_TELEMETRY_ENABLED": "0"}
        self.started = time.perf_counter()
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=ROOT,
                env=variables,
            )

    def ask(self, **command) -> dict[str, float]:
        """Send one command and wait for its answer. Raises RuntimeError, with its last lines, where none comes."""
        watch = threading.Timer(SECONDS, self.process.kill)
        watch.start()
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            watch.cancel()
        if not answer:
            last = " ".join(self.log.read_text(errors="replace").strip().splitlines()[-3:])
            raise RuntimeError(f"{self.name} gave no answer to {command} within {SECONDS} s: {last}")
        return json.loads(answer)

    def begin(self, task: Path) -> None:
        """Take up a task and run its first block, which is warm-up; with the first task, that is the start-up."""
        self.ask(do="task", path=str(task))
        found, self.done = self.ask(do="block", block=0), 1
        self.note = found["note"]
        if not self.version:
            self.version = found["version"]
            self.start_up = Spent(found["total_cpu_s"], time.perf_counter() - self.started, found["peak_mb"])

    def turn(self) -> Spent:
        """Run the next block of rounds."""
        found = self.ask(do="block", block=self.done)
        self.done += 1
        return Spent(found["cpu_s"], found["wall_s"], found["peak_mb"])

    def weights(self, path: Path) -> np.ndarray:
        """The trainable parameters, float32 [d']."""
        self.ask(do="weights", path=str(path))
        return np.load(path, allow_pickle=False)

    def close(self) -> None:
        """End the process, and its own."""
        import psutil

        with contextlib.suppress(psutil.NoSuchProcess):
            below = psutil.Process(self.process.pid).children(recursive=True)
            self.process.stdin.close()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            for process in below:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.stdout.close()


def compared(setting: Setting, contenders: dict[str, Contender], folder: Path) -> dict[str, dict]:
    """One setting's two groups: the rounds alone, and with start-up.

    Raises RuntimeError where the weights of two contenders differ by more than :data:`TOLERANCE`.
    """
    setting.write(task := folder / f"{setting.name}.npz")
    for contender in contenders.values():
        contender.begin(task)
    apart = _apart(setting, contenders, folder)
    if unlike := {name: most for name, most in apart.items() if not most <= TOLERANCE}:
        raise RuntimeError(
            f"{setting.name}: weights {unlike} from those of {REFERENCE} after {setting.rounds} rounds, want at most "
            f"{TOLERANCE:g}: these have not trained alike"
        )
    turns: list[dict[str, Spent]] = []

    def turn(name: str) -> Spent:
        if name == next(iter(contenders)):
            turns.append({})
        turns[-1][name] = contenders[name].turn()
        return turns[-1][name]

    limits = {name: limit for name, limit in setting.limits.items() if name in contenders}
    found = interleaved(
        {name: partial(turn, name) for name in contenders}, setting.turns, warm_up=False, own_clock=True, limits=limits
    )
    ended = _apart(setting, contenders, folder)
    for name, contender in contenders.items():
        found[name] |= {"version": contender.version, "steps": setting.steps}
        if contender.note:
            found[name]["note"] = contender.note
        if name in apart:
            found[name] |= {"weights": apart[name], "weights_at_the_end": ended[name]}
    whole = {
        name: _sum([contender.start_up, *(turn[name] for turn in turns)]) for name, contender in contenders.items()
    }
    return {setting.name: found, f"{setting.name}, with start-up": summary([whole])}


def _apart(setting: Setting, contenders: dict[str, Contender], folder: Path) -> dict[str, float]:
    """The most by which a parameter of each contender that averages is from plain FedAvg's."""
    weights = {name: each.weights(folder / "weights.npy") for name, each in contenders.items() if name != PLAIN}
    if any(len(vector) != len(weights[REFERENCE]) for vector in weights.values()):
        raise RuntimeError(
            f"{setting.name}: lengths of weights { {name: len(v) for name, v in weights.items()} } differ"
        )
    return {name: float(np.abs(vector - weights[REFERENCE]).max()) for name, vector in weights.items()}


def _sum(parts: list[Spent]) -> Spent:
    return Spent(
        sum(part.cpu_s for part in parts), sum(part.wall_s for part in parts), max(part.peak_mb for part in parts)
    )


def run(settings: tuple[Setting, ...] = SETTINGS, names: tuple[str, ...] = tuple(CONTENDERS)) -> dict:
    """By setting: ratios of CPU time to plain SGD, wall time, peak memory, the weights' distance from plain FedAvg's.

    Contenders whose environment is absent are left out, which is printed once.
    """
    here = {name: Path(sys.executable) if CONTENDERS[name][1] else RIVALS.python() for name in names}
    if absent := [name for name, python in here.items() if python is None]:
        print(f"{', '.join(absent)}: {NOT_INSTALLED} ({RIVALS.name})", flush=True)
    found, contenders = {}, {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        try:
            settings[0].write(first := folder / "first.npz")
            for number, (name, python) in enumerate(here.items()):
                if python is not None:
                    contenders[name] = Contender(name, python, folder / f"{number}.txt")
                    contenders[name].begin(first)  # before the next one starts: nobody else's work is on its clock
            for setting in settings:
                found |= compared(setting, contenders, folder)
        finally:
            for contender in contenders.values():
                contender.close()
    return found
