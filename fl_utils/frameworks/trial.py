"""What every framework is asked to do: two networks, their images, and what torch makes of them."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fl_utils.environments import NOT_INSTALLED
from fl_utils.models.mobile import mobilenet_v2, small_cnn_600k
from fl_utils.throughput import with_statistics

YES, PARTLY, NO, NOT_PROBED = "yes", "partly", "no", "not probed"
CNN, MOBILENET = "cnn", "mobilenet"
NETWORKS = {CNN: "CNN", MOBILENET: "MobileNetV2"}
CLASSES = 10
SQUARES = 4  # coloured squares along an image's side
LONGEST = 110  # characters of a framework's error that are shown
REFUSALS = (RuntimeError, ValueError, NotImplementedError)  # of a framework; a mistake of ours is another exception


@dataclass(frozen=True)
class Cell:
    """A verdict; its evidence in a few words; the framework's error, cut; the widths (bits) of its weights' files."""

    verdict: str
    evidence: str = ""
    error: str = ""
    bits: tuple[int, ...] = ()


@dataclass
class Trial:
    """The networks, drawn from ``seed``, and how closely and how long they are compared.

    folder: for the files. width, size: of MobileNetV2 and of its images. images: how many are compared; batch, steps,
    learning_rate: of training by plain SGD. tolerance: of outputs, as a share of torch's largest. drift: of every
    weight after training. close: correlation that outputs of compressed weights must have with torch's.
    Raises ValueError on numbers that do not fit.
    """

    folder: Path | str
    seed: int = 0
    width: float = 0.25
    size: int = 32
    images: int = 32
    batch: int = 8
    steps: int = 3
    learning_rate: float = 0.05
    tolerance: float = 1e-3
    drift: float = 1e-4
    close: float = 0.9
    networks: dict[str, nn.Module] = field(init=False)
    pixels: dict[str, np.ndarray] = field(init=False)
    made: dict[Any, Any] = field(init=False, repr=False, default_factory=dict)  # files that several cells use

    def __post_init__(self) -> None:
        for name in ("size", "images", "batch", "steps"):
            if type(value := getattr(self, name)) is not int or value < 1:
                raise ValueError(f"{name} is {value!r}: want a whole number from 1 up")
        for name in ("learning_rate", "tolerance", "drift", "close"):
            if not 0 < (value := getattr(self, name)) < float("inf"):
                raise ValueError(f"{name} is {value!r}: want a finite number above 0")
        if self.size < 32 or self.size % SQUARES:
            raise ValueError(f"size is {self.size}: want at least 32 for MobileNetV2, and a multiple of {SQUARES}")
        self.folder = Path(self.folder)
        random = np.random.default_rng(self.seed)
        shapes = {CNN: (28, 28, 1), MOBILENET: (self.size, self.size, 3)}
        count = max(self.images, self.batch)
        self.pixels = {name: _squares(random, count, *shape) for name, shape in shapes.items()}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.networks = {
                CNN: small_cnn_600k(CLASSES).eval(),
                MOBILENET: with_statistics(
                    mobilenet_v2(CLASSES, width=self.width, dropout=0.0), self.inputs(MOBILENET)
                ),
            }
        for norm in (module for module in self.networks[MOBILENET].modules() if isinstance(module, nn.BatchNorm2d)):
            norm.momentum = 0.1  # torch's own, which counting the statistics had replaced

    def inputs(self, name: str) -> torch.Tensor:
        """The images of a network in [0, 1], float32 [N, C, H, W]."""
        return torch.from_numpy(self.pixels[name]).permute(0, 3, 1, 2).float() / 255

    @property
    def labels(self) -> torch.Tensor:
        """Labels of a training batch, int64 [batch]."""
        return torch.arange(self.batch) % CLASSES

    @cached_property
    def answers(self) -> dict[str, np.ndarray]:
        """torch's logits, float32 [N, classes]."""
        with torch.no_grad():
            return {name: network(self.inputs(name)).numpy() for name, network in self.networks.items()}

    def gap(self, name: str, outputs: np.ndarray) -> float:
        """The largest difference of ``outputs`` [n, classes] from torch's, as a share of torch's largest output."""
        wanted = self.answers[name][: len(outputs)]
        return float(np.abs(np.asarray(outputs) - wanted).max() / np.abs(wanted).max())

    def path(self, name: str) -> list[dict[str, torch.Tensor]]:
        """A network's states in torch: before the first and after each of ``steps`` steps, on ``batch`` images."""
        network = copy.deepcopy(self.networks[name]).train()
        parameters, states = list(network.parameters()), []
        for number in range(self.steps + 1):
            states.append({key: value.detach().clone() for key, value in network.state_dict().items()})
            if number < self.steps:
                loss = functional.cross_entropy(network(self.inputs(name)[: self.batch]), self.labels)
                gradients = torch.autograd.grad(loss, parameters)
                with torch.no_grad():
                    torch._foreach_add_(parameters, gradients, alpha=-self.learning_rate)
        return states

    def drifted(self, gap: float, numbers: int, more: str = "") -> Cell:
        """The cell of ``numbers`` weights that are ``gap`` at most from torch's after training."""
        said = f"{self.steps} steps, {more}{numbers:,} weights, off by {gap:.0e} at most"
        return Cell(YES if gap <= self.drift else NO, said)

    def inferred_cell(self, outputs: dict[str, np.ndarray], more: str = "") -> Cell:
        """The cell of both networks' ``outputs``: "yes" where both are within the tolerance."""
        gaps = {name: self.gap(name, values) for name, values in outputs.items()}
        said = ", ".join(f"{NETWORKS[name]} off by {gap:.0e}" for name, gap in gaps.items())
        return Cell(YES if max(gaps.values()) <= self.tolerance else NO, said + more)

    def widths_cell(self, found: dict[int, tuple[int, float | None]], refused: str = "") -> Cell:
        """The cell of compressed files of the CNN: bits -> (bytes, correlation of their outputs with torch's, or None).

        ``found`` has the float file under 32. A width counts where the file is no longer than a quarter above its
        share of the float file, and where it runs. "yes": one of at most 8 bits counts, its outputs close to torch's.
        """
        if 32 not in found:
            return Cell(NO, error=refused)
        whole = found[32][0]
        small = {bits for bits, (size, _) in found.items() if bits < 32 and size <= 1.25 * whole * bits / 32}
        counted = {bits: found[bits] for bits in sorted(small, reverse=True) if found[bits][1] is not None}
        near = [bits for bits, (_, correlation) in counted.items() if correlation >= self.close]
        said = ", ".join(f"{bits} bits {size:,} B (r {r:.2f})" for bits, (size, r) in counted.items())
        idle = sorted(set(found) - {32} - set(counted), reverse=True)
        if idle:
            said += "; " * bool(said) + "not counted: " + ", ".join(f"{b} bits {found[b][0]:,} B" for b in idle)
        verdict = YES if min(near, default=32) <= 8 else PARTLY if near else NO
        return Cell(verdict, f"of {whole:,} B: {said}" if said else "", refused, tuple(counted))

    def correlation(self, name: str, outputs: np.ndarray) -> float:
        """Of ``outputs`` [n, classes] with torch's."""
        wanted = self.answers[name][: len(outputs)]
        return float(np.corrcoef(np.ravel(outputs), np.ravel(wanted))[0, 1])


def _squares(random: np.random.Generator, count: int, height: int, width: int, channels: int) -> np.ndarray:
    """Images of coloured squares, uint8 [N, H, W, C]: noise by the pixel would make all of them alike to a network."""
    colours = random.integers(0, 256, (count, SQUARES, SQUARES, channels), np.uint8)
    return colours.repeat(height // SQUARES, 1).repeat(width // SQUARES, 2)


def attempt(probe: Callable[[], Cell], *packages: str) -> Cell:
    """What ``probe`` finds: "no" with the framework's error where it is refused, or that a package is not here."""
    try:
        return probe()
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in packages:
            raise
        return Cell(NOT_INSTALLED, error=f"no module named {error.name}")
    except REFUSALS as error:
        return Cell(NO, error=first_line(error))


def first_line(error: BaseException | str) -> str:
    """What an error says first, cut, without folders of this machine and addresses in memory."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    said = re.sub(r"(/[\w.+-]+){2,}/", "", re.sub(r"0x[0-9a-f]{6,}", "0x...", lines[0]))
    return said if len(said) <= LONGEST else said[: LONGEST - 3].rstrip() + "..."
