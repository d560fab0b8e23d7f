"""What every contender is given, in whatever environment it runs, and how it answers: a task, block by block.

A contender is a process. It reads commands as lines of JSON: a task to begin, the next block of rounds to run, a file
for its weights; it answers each with what it has spent. So contenders in different environments can take turns.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Protocol, TextIO

import numpy as np
import torch
from torch import nn

from fl_utils import flat

BATCH, RATE = 10, 0.05  # of local SGD, one local epoch


def _two_nn() -> nn.Module:
    from fl_utils.models.vision import two_nn

    return two_nn()


def _cnn() -> nn.Module:
    from fl_utils.models.vision import SmallCNN

    return SmallCNN(10, 32, 512)  # the widths of McMahan et al. 2017


def _fed_mobilenet_v2() -> nn.Module:
    """Hofman 2020, Table 4.1. Without dropout, which every framework would draw in its own way."""
    from fl_utils.models.mobile import mobilenet_v2

    return mobilenet_v2(10, strides="table_4_1", dropout=0.0)


MODELS: dict[str, Callable[[], nn.Module]] = {"2NN": _two_nn, "CNN": _cnn, "FedMobileNetV2": _fed_mobilenet_v2}


@dataclass(frozen=True)
class Task:
    """A federation whose clients, cohorts and minibatches are settled.

    x, y: each client's images (uint8 [n, C, H, W]) and labels [n], all clients with the same n. cohorts: the clients of
    each round, int64 [blocks, rounds, M]; seeds: of each one's shuffle. initial: the first state, float32 [d].
    path: the file it came from, for those who hand it on to processes of their own.
    """

    path: str
    build: Callable[[], nn.Module]
    x: list[torch.Tensor]
    y: list[torch.Tensor]
    cohorts: np.ndarray
    seeds: np.ndarray
    initial: torch.Tensor

    @classmethod
    def load(cls, path: Path | str) -> Task:
        """The task that :func:`save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        x, y, parts = torch.from_numpy(found["x"]), torch.from_numpy(found["y"]), torch.from_numpy(found["parts"])
        return cls(
            str(path), MODELS[str(found["model"])], [x[part] for part in parts], [y[part] for part in parts],
            found["cohorts"], found["seeds"], torch.from_numpy(found["initial"]),
        )  # fmt: skip

    def model(self) -> nn.Module:
        """A model in the first state."""
        return flat.load(self.build(), self.initial)

    def shuffled(self, block: int, number: int, place: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The examples of the cohort's client at ``place``, in the order of this round; minibatches are cut from it."""
        client = self.cohorts[block, number, place]
        order = self.order(block, number, place)
        return self.x[client][order], self.y[client][order]

    def order(self, block: int, number: int, place: int) -> torch.Tensor:
        """A permutation of the examples of the cohort's client at ``place``."""
        generator = torch.Generator().manual_seed(int(self.seeds[block, number, place]))
        return torch.randperm(len(self.y[self.cohorts[block, number, place]]), generator=generator)


def save(path: Path, model: str, x, y, parts, cohorts, seeds, initial) -> None:
    """Write a task: :class:`Task`'s fields, with ``parts`` (int64 [K, n]), the clients' examples of ``x`` and ``y``."""
    np.savez(
        path, model=model, x=np.asarray(x), y=np.asarray(y), parts=np.asarray(parts), cohorts=np.asarray(cohorts),
        seeds=np.asarray(seeds), initial=np.asarray(initial),
    )  # fmt: skip


class Runner(Protocol):
    """A contender at a task. ``run`` goes on from where the last block ended; ``vector`` is its state there.

    One with blocks under way may also have a ``close``, called before the next task; and a ``note`` on how it works.
    """

    def run(self, block: int) -> None: ...

    def vector(self) -> torch.Tensor: ...


def parameters(model: nn.Module) -> torch.Tensor:
    """The trainable part of a model's state, float32 [d']."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def answers() -> TextIO:
    """Where answers are written; standard output goes to standard error from now on, for frameworks talk there."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies


def serve(begin: Callable[[Task], Runner], package: str, replies: TextIO | None = None) -> None:
    """Answer commands until there are no more. begin: takes up a task. package: whose version is reported."""
    replies = replies or answers()
    torch.set_num_threads(1)
    runner = None
    for line in sys.stdin:
        command = json.loads(line)
        cpu, wall = cpu_seconds(), time.perf_counter()
        if command["do"] == "task":
            if hasattr(runner, "close"):
                runner.close()
            runner = None  # its memory is free before the next one takes any
            runner = begin(Task.load(command["path"]))
        elif command["do"] == "block":
            runner.run(command["block"])
        else:
            np.save(command["path"], runner.vector().numpy())
        total, wall = cpu_seconds(), time.perf_counter() - wall
        answer = {"cpu_s": total - cpu, "wall_s": wall, "total_cpu_s": total, "peak_mb": peak_mb()}
        answer["note"] = getattr(runner, "note", "")
        replies.write(json.dumps(answer | {"version": f"{package} {metadata.version(package)}"}) + "\n")
        replies.flush()


def cpu_seconds() -> float:
    """CPU seconds of this process, since it was started, and of its descendants."""
    return time.process_time() + sum(_each(lambda process: sum(process.cpu_times()[:2])))


def peak_mb() -> float:
    """Most memory of this process so far, and its descendants' present memory, shared pages once; in 1e6 bytes."""
    import psutil

    own = psutil.Process().memory_full_info()
    status = Path("/proc/self/status")
    most = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    above = 1024 * int(most[0]) - own.rss if most else 0
    others = sum(_each(lambda process: _fair(process.memory_full_info())))
    return (_fair(own) + max(0, above) + others) / 1e6


def _fair(memory) -> int:
    return getattr(memory, "pss", memory.rss)


def _each(measure: Callable) -> list:
    """Of each descendant that is still there."""
    import psutil

    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            found.append(measure(process))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found
