"""The hyper-parameters of Wang and Guo 2019, Table 2: batch size, length, weight decay, learning rate by iteration.

    schedule = SCHEDULES["resnet-50"]
    ipe = schedule.iterations_per_epoch(453_413)     # the faces detected in WebFace (section 4.1)
    schedule.rate(250_000, ipe); schedule.formula    # 0.1*0.1^(floor(iter/(28*ipe))), as printed

Names are those of published.csv. The momentum is 0.9 for all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MOMENTUM = 0.9
WEBFACE_IMAGES = 453_413  # detected faces (section 4.1)


@dataclass(frozen=True)
class Schedule:
    """One row of Table 2.

    length: of the training, in ``unit`` ("epochs" or "iterations"). base: the first learning rate. It is multiplied by
    ``factor`` after every ``every`` epochs, or at each of ``milestones`` (iterations); or, where ``power`` is given, by
    (1 - share of the training done) ** power. gpus: those it was trained on (section 4.2), 0 where the paper is silent.
    """

    batch_size: int
    length: int
    unit: str
    weight_decay: float
    base: float
    factor: float = 0.1
    every: int = 0
    milestones: tuple[int, ...] = ()
    power: float = 0.0
    gpus: int = 0

    @property
    def formula(self) -> str:
        """The learning rate as Table 2 prints it."""
        if self.power:
            return f"{self.base}*(1-iter/({self.length}*ipe))^{self.power}"
        step = f"({self.every}*ipe)" if self.every else str(list(self.milestones)).replace(" ", "")
        return f"{self.base}*{self.factor}^(floor(iter/{step}))"

    def iterations_per_epoch(self, images: int) -> int:
        """ipe: the batches that ``images`` make, the last one smaller (section 4.1). Raises ValueError below 1."""
        if images < 1:
            raise ValueError(f"images is {images}: want at least 1")
        return math.ceil(images / self.batch_size)

    def iterations(self, ipe: int) -> int:
        """How many iterations the whole training has."""
        return self.length * ipe if self.unit == "epochs" else self.length

    def rate(self, iteration: int, ipe: int) -> float:
        """The learning rate of ``iteration`` (from 0), an epoch being ``ipe`` iterations.

        Raises ValueError where ``ipe`` is below 1 or the iteration outside of the training.
        """
        if ipe < 1:
            raise ValueError(f"ipe is {ipe}: want at least one iteration per epoch")
        total = self.iterations(ipe)
        if not 0 <= iteration < total:
            raise ValueError(f"iteration is {iteration}: want one from 0 to {total - 1}, the training's last")
        if self.power:
            return self.base * (1 - iteration / total) ** self.power
        drops = iteration // (self.every * ipe) if self.every else sum(m <= iteration for m in self.milestones)
        return self.base * self.factor**drops

    def at(self, share: float) -> float:
        """The learning rate when ``share`` (from 0 to below 1) of the training is done, for trainings of any length."""
        if not 0 <= share < 1:
            raise ValueError(f"share is {share}: want a number from 0 up to, not including, 1")
        ipe = 10_000
        return self.rate(int(share * self.iterations(ipe)), ipe)


def _epochs(batch_size: int, epochs: int, weight_decay: float, base: float, every: int = 0, **more) -> Schedule:
    return Schedule(batch_size, epochs, "epochs", weight_decay, base, every=every, **more)


def _iterations(batch_size: int, iterations: int, milestones: tuple[int, ...], gpus: int) -> Schedule:
    return Schedule(batch_size, iterations, "iterations", 5e-4, 0.1, milestones=milestones, gpus=gpus)


_LONG = (16_000, 24_000, 28_000)
SCHEDULES = {
    "alexnet-v1": _epochs(256, 96, 5e-4, 0.01, 21),
    "alexnet-v2": _epochs(256, 96, 5e-4, 0.01, 21),
    "densenet-121": _epochs(40, 30, 1e-4, 0.1, 10, gpus=2),
    "googlenet": _epochs(32, 64, 2e-4, 0.01, power=0.5),
    "inception-v3": _epochs(25, 100, 4e-4, 0.045, 2, factor=0.94),
    "lightcnn-29": _epochs(128, 80, 1e-4, 0.1, 10, factor=0.457),
    "resnet-50": _epochs(50, 128, 1e-4, 0.1, 28, gpus=2),
    "vgg-16": _epochs(128, 74, 5e-4, 0.1, 17, gpus=2),
    "vgg-16-bn": _epochs(128, 74, 5e-4, 0.1, 17, gpus=2),
    "softmax": _iterations(512, 30_000, _LONG, 4),
    "center-loss": _iterations(256, 28_000, _LONG[:2], 2),
    "sphereface": _iterations(128, 28_000, _LONG[:2], 2),
    "cosface": _iterations(512, 30_000, _LONG, 4),
    "arcface": _iterations(512, 32_000, _LONG, 4),
}
