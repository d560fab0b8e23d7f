"""A step of DP-SGD by each gradient engine against a plain step on the same batch: gradients alone, no optimizer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from benchmarks.measure import interleaved
from fl_utils import gradients
from fl_utils.models.characters import CharacterCNN
from fl_utils.models.private import PrivateSentimentLSTM, TinyCharacterCNN, WordWeights
from fl_utils.models.vision import SmallCNN
from fl_utils.training import LOSSES

BATCH, STEPS = 32, 4


def depthwise() -> nn.Sequential:
    """Blocks as MobileNetV2 has them, with group norm: 1x1 out, 3x3 depthwise, 1x1 back; 32x32 images, 10 classes."""

    def block(before: int, after: int, stride: int) -> list[nn.Module]:
        wide = 6 * before
        return [
            nn.Conv2d(before, wide, 1, bias=False), nn.GroupNorm(8, wide), nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.GroupNorm(8, wide), nn.ReLU6(),
            nn.Conv2d(wide, after, 1, bias=False), nn.GroupNorm(8, after),
        ]  # fmt: skip

    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.GroupNorm(8, 16), nn.ReLU6(),
        *block(16, 24, 1), *block(24, 32, 2), *block(32, 64, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def _images(channels: int, size: int) -> torch.Tensor:
    return torch.randint(0, 256, (BATCH, channels, size, size), dtype=torch.uint8)


def problems() -> dict[str, tuple[Callable[[], nn.Module], torch.Tensor, torch.Tensor, str]]:
    """Models of the kinds that are trained privately here, each with a batch, labels and the loss."""
    classes, signs = torch.randint(0, 10, (BATCH,)), torch.randint(0, 2, (BATCH,))
    words = torch.randint(1, 2000, (BATCH, 20))
    entropy, binary = "cross_entropy", "binary_cross_entropy"
    return {
        "CNN": (partial(SmallCNN, 10), _images(1, 28), classes, entropy),
        "tiny CNN": (partial(TinyCharacterCNN, 10), _images(1, 16), classes, entropy),
        "VGG, group norm": (partial(CharacterCNN, 10, 0.125, 32, "group"), _images(1, 32), classes, entropy),
        "depthwise": (depthwise, _images(3, 32).float() / 255, classes, entropy),
        "LSTM": (partial(PrivateSentimentLSTM, 2000, 32, 32), words, signs, binary),
        "word weights": (partial(WordWeights, 2000), words, signs, binary),
    }


def run() -> dict:
    """Ratios of CPU time to the gradients of the mean loss, by model."""
    torch.manual_seed(0)
    found = {}
    for name, (build, x, y, loss) in problems().items():
        model, criterion = build().train(), LOSSES[loss]
        parameters = list(model.parameters())

        def plain(model=model, criterion=criterion, x=x, y=y, parameters=parameters) -> None:
            for _ in range(STEPS):
                torch.autograd.grad(criterion(model(x), y), parameters)

        def private(engine, model=model, criterion=criterion, x=x, y=y, parameters=parameters) -> None:
            total = [torch.zeros_like(parameter) for parameter in parameters]
            with gradients.clipped_sums(model, criterion, 1.0, engine) as add:
                for _ in range(STEPS):
                    add(x, y, total)

        engines = {engine: partial(private, engine) for engine in gradients.ENGINES}
        found[f"{name} (auto: {gradients.choose(model)})"] = interleaved({"plain step": plain, **engines}, repeats=5)
    return found
