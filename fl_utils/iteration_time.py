"""Seconds of one training iteration against the batch size, and the memory it needs (Wang and Guo 2019, Figure 2).

    need = memory("resnet-50", classes=10_575, size=224)     # counted on the meta device: nothing is computed
    need.training(64), need.largest_batch(12 * 2**30, [16, 32, 64, 128])
    timings = measure("resnet-50", [(4, "nchw"), (8, "nchw"), (8, "nhwc")], 10, size=32, budget=400 * 2**20)
    timings[8, "nchw"].seconds(), timings[8, "nhwc"].over(timings[8, "nchw"]), timings[8, "nchw"].out_of_memory

An iteration is the forward pass, the loss, the backward pass and a step of SGD with momentum. Cases take turns in every
repeat, so that a busy moment of the machine meets all. On the CPU seconds are the processor's, on a GPU the clock's.
"""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from fl_utils.costs import saved_bytes

INPUT_SIZE = {"vgg-16": 224, "inception-v3": 299, "resnet-50": 224, "densenet-121": 224}  # pixels, as published
LEAST_SIZE = {"vgg-16": 32, "inception-v3": 75, "resnet-50": 32, "densenet-121": 32}
SMALL = ("small-vgg", "small-resnet18", "small-densenet", "small-alexnet")  # fl_utils.models.faces.SMALL_MODELS
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
STATES = 3  # weights, their gradients, their momentum


def build(network: str, classes: int, size: int) -> nn.Module:
    """``network`` with a head of ``classes``, for pictures [N, 3, size, size] in [0, 1] or uint8.

    VGG-16 pools its last map to 7 x 7; pictures too small for that (below 224 pixels) leave a map of size // 32, and
    the hidden layers are built for it. Raises ValueError on an unknown network or too small a size.
    """
    check(network, size)
    from fl_utils.models import faces  # imports torchvision: slow

    if network in SMALL:
        return faces.small(network.removeprefix("small-"), classes, size, channels=3)
    settings = {"pooled": max(1, size // 32)} if network == "vgg-16" and size < INPUT_SIZE[network] else {}
    return faces.build(network.replace("-v", "_v").replace("-", ""), classes, **settings)


def check(network: str, size: int) -> None:
    """Raise ValueError where there is no such network, or ``size`` pixels are too few for it."""
    if network not in LEAST_SIZE and network not in SMALL:
        raise ValueError(f"network is {network!r}: want one of {', '.join([*LEAST_SIZE, *SMALL])}")
    least = LEAST_SIZE.get(network, 32)
    if type(size) is not int or size < least:
        raise ValueError(f"size is {size!r}: {network} wants a whole number of pixels from {least} up")


@dataclass(frozen=True)
class Memory:
    """Bytes of training: ``state`` for weights, gradients, momentum and running statistics; ``fixed`` that the forward
    pass keeps whatever the batch; ``per_image`` that it keeps for each image until the backward pass.

    Less than a run needs: the backward pass's own results, a library's working space and its context come on top.
    """

    state: int
    fixed: int
    per_image: int

    def training(self, batch: int) -> int:
        """Bytes of an iteration on ``batch`` images."""
        return self.state + self.fixed + batch * self.per_image

    def largest_batch(self, budget: int, batches: Sequence[int]) -> int:
        """The largest of ``batches`` that ``budget`` bytes hold, 0 where it holds none."""
        return max((batch for batch in batches if self.training(batch) <= budget), default=0)


def memory(network: str, classes: int, size: int) -> Memory:
    """What training needs, counted without running anything. Raises ValueError as :func:`build` does."""
    from fl_utils.models import faces  # noqa: F401  # imported inside the context below, torchvision would break

    with torch.device("meta"):
        model = build(network, classes, size)
        two, four = (saved_bytes(model, torch.empty(batch, 3, size, size)) for batch in (2, 4))
    held = STATES * sum(p.nbytes for p in model.parameters()) + sum(b.nbytes for b in model.buffers())
    return Memory(held, 2 * two - four, (four - two) // 2)


@dataclass(frozen=True)
class Timing:
    """One case: seconds of the processor and of the clock, one per repeat, both empty where memory did not suffice.

    needed: bytes as :class:`Memory` predicts them. on_gpu: the processor's seconds then say nothing.
    """

    processor: tuple[float, ...]
    clock: tuple[float, ...]
    needed: int
    on_gpu: bool = False

    @property
    def out_of_memory(self) -> bool:
        return not self.clock

    @property
    def turns(self) -> tuple[float, ...]:
        """The seconds that count on this device, one per repeat."""
        return self.clock if self.on_gpu else self.processor

    def seconds(self) -> float:
        """Their median; not a number where memory did not suffice."""
        return math.nan if self.out_of_memory else statistics.median(self.turns)

    def over(self, other: Timing) -> float:
        """How many times as long as ``other`` it takes: the median of the ratios within each repeat."""
        ratios = [a / b for a, b in zip(self.turns, other.turns, strict=False)]
        return statistics.median(ratios) if ratios else math.nan


class Training:
    """A network with SGD and momentum; :meth:`iterate` runs one iteration in a layout (one of LAYOUTS)."""

    def __init__(self, network: str, classes: int, size: int, device: str = "cpu", seed: int = 0):
        torch.manual_seed(seed)
        self.model = build(network, classes, size).to(device).train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)  # 0.9: Table 2, caption
        self.device, self.shape, self.classes = torch.device(device), (3, size, size), classes

    def iterate(self, batch: int, layout: str = "nchw") -> tuple[float, float]:
        """Processor's and clock's seconds of one iteration on ``batch`` random pictures; both without making them."""
        self.model.to(memory_format=LAYOUTS[layout])
        for state in self.optimizer.state.values():
            if state["momentum_buffer"].dim() == 4:
                state["momentum_buffer"] = state["momentum_buffer"].contiguous(memory_format=LAYOUTS[layout])
        images = torch.rand(batch, *self.shape, device=self.device).contiguous(memory_format=LAYOUTS[layout])
        labels = torch.randint(self.classes, (batch,), device=self.device)
        wait = partial(torch.cuda.synchronize, self.device) if self.device.type == "cuda" else int
        wait()
        processor, clock = time.process_time(), time.perf_counter()
        nn.functional.cross_entropy(self.model(images), labels).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        wait()
        return time.process_time() - processor, time.perf_counter() - clock


def _release() -> None:
    """Give free memory back: the GPU's to the others, the heap's to the system where glibc keeps it."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def measure(
    network: str,
    cases: Sequence[tuple[int, str]],
    classes: int,
    size: int,
    repeats: int = 3,
    budget: int = 0,
    device: str = "cpu",
    seed: int = 0,
) -> dict[tuple[int, str], Timing]:
    """Time iterations of each case (batch, layout), ``repeats`` times in turn, after one that is not counted.

    budget: bytes; a batch that needs more by :func:`memory` is not run but marked out of memory. 0 = the device's own
    memory decides: torch.OutOfMemoryError ends the case, and it is marked so. A CPU has no such error (the system would
    kill the process), so it needs a budget. Raises ValueError on that, and on what :func:`build` refuses.
    """
    if not cases or any(type(batch) is not int or batch < 2 or layout not in LAYOUTS for batch, layout in cases):
        raise ValueError(f"cases are {list(cases)}: want batches from 2 up, each with one of {', '.join(LAYOUTS)}")
    on_gpu = torch.device(device).type == "cuda"
    if repeats < 1 or budget < 0 or not (budget or on_gpu):
        raise ValueError(f"repeats {repeats}, budget {budget}: want at least 1, and on a CPU a budget in bytes above 0")
    need = memory(network, classes, size)
    taken: dict[tuple[int, str], list[tuple[float, float]]] = {tuple(case): [] for case in cases}
    full: set[tuple[int, str]] = set()  # ran out of the device's memory
    running = [case for case in taken if not budget or need.training(case[0]) <= budget]
    training = Training(network, classes, size, device, seed) if running else None
    turns = [(0, case) for case in sorted(running)[:1]]  # not counted
    for turn, case in turns + [(turn, case) for turn in range(1, repeats + 1) for case in running]:
        spent = None
        with suppress(torch.OutOfMemoryError):
            spent = training.iterate(*case) if case not in full else None
        if spent is None:
            full.add(case)
            taken[case] = []
            training.optimizer.zero_grad()
            _release()
        elif turn:
            taken[case].append(spent)
    del training
    _release()
    seconds = {case: zip(*spent, strict=True) if spent else ((), ()) for case, spent in taken.items()}
    return {case: Timing(*found, need.training(case[0]), on_gpu) for case, found in seconds.items()}
