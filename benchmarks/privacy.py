"""A step of DP-SGD by each gradient engine against a plain step on the same batch: gradients, noise and update.

The engines differ in how they clip each example's gradient; the noise, one normal number per parameter, and the update
are the same for all of them. Opacus has three of its own, and the one that is chosen without being asked for is marked.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import torch
from torch import nn

from benchmarks.measure import interleaved
from fl_utils import gradients, training
from fl_utils.models.mobile import mobilenet_v2
from fl_utils.models.private import PrivateSentimentLSTM, TinyCharacterCNN, WordWeights
from fl_utils.models.vision import SmallCNN
from fl_utils.training import LOSSES, LocalTraining

BATCH, CLIP, NOISE = 32, 1.0, 1.1
OPACUS = ("hooks", "functorch", "ghost")
LIMITS = {"CNN": 2.5, "MobileNetV2, group norm": 4.0}  # the automatic choice at most so many times a plain step
STEPS = {"MobileNetV2, group norm": 1, "tiny CNN": 10, "word weights": 10}  # at a time; 2 with the others


def _images(channels: int, size: int) -> torch.Tensor:
    return torch.randint(0, 256, (BATCH, channels, size, size), dtype=torch.uint8)


def problems() -> dict[str, tuple[Callable[[], nn.Module], torch.Tensor, torch.Tensor, str]]:
    """Models of the kinds that are trained privately here, each with a batch, labels and the loss.

    The CNN has the widths of McMahan et al. 2017.
    """
    classes, signs = torch.randint(0, 10, (BATCH,)), torch.randint(0, 2, (BATCH,))
    words = torch.randint(1, 2000, (BATCH, 20))
    entropy, binary = "cross_entropy", "binary_cross_entropy"
    return {
        "CNN": (partial(SmallCNN, 10, 32, 512), _images(1, 28), classes, entropy),
        "MobileNetV2, group norm": (partial(mobilenet_v2, 10, norm="group"), _images(3, 32), classes, entropy),
        "tiny CNN": (partial(TinyCharacterCNN, 10), _images(1, 16), classes, entropy),
        "LSTM": (partial(PrivateSentimentLSTM, 2000, 32, 32), words, signs, binary),
        "word weights": (partial(WordWeights, 2000), words, signs, binary),
    }


def plain(build: Callable[[], nn.Module], x, y, criterion, steps: int) -> Callable[[], None]:
    """``steps`` of SGD."""
    model = build().train()
    parameters = list(model.parameters())
    update = training._stepper(parameters, LocalTraining(1, BATCH, 1e-3))

    def go() -> None:
        for _ in range(steps):
            update(torch.autograd.grad(criterion(model(x), y), parameters))

    return go


def private(build: Callable[[], nn.Module], x, y, criterion, steps: int, engine: str, opened: ExitStack):
    """The same under DP-SGD, as :func:`fl_utils.privacy.train_privately` takes a step."""
    model = build().train()
    parameters = list(model.parameters())
    update = training._stepper(parameters, LocalTraining(1, BATCH, 1e-3))
    sums = torch.zeros(sum(parameter.numel() for parameter in parameters))
    parts = sums.split([parameter.numel() for parameter in parameters])
    views = [part.view(parameter.shape) for part, parameter in zip(parts, parameters, strict=True)]
    noise, generator = torch.empty_like(sums), torch.Generator().manual_seed(0)
    add = opened.enter_context(gradients.clipped_sums(model, criterion, CLIP, engine))

    def go() -> None:
        for _ in range(steps):
            sums.zero_()
            add(x, y, views)
            sums.add_(noise.normal_(generator=generator), alpha=NOISE * CLIP)
            update(tuple(torch._foreach_div(views, BATCH)))

    return go


def run() -> dict:
    """Ratios of CPU time to plain steps, by model."""
    torch.manual_seed(0)
    found = {}
    for name, (build, x, y, loss) in problems().items():
        steps = STEPS.get(name, 2)
        chosen, labels = gradients.choose(build()), {}
        with ExitStack() as opened:
            contenders = {"plain step": plain(build, x, y, LOSSES[loss], steps)}
            for engine in gradients.ENGINES:
                if engine != "loop":
                    mark = " (Opacus)" if engine in OPACUS else " (automatic)" if engine == chosen else ""
                    labels[engine] = engine + mark
                    contenders[engine + mark] = private(build, x, y, LOSSES[loss], steps, engine, opened)
            limits = {labels[chosen]: LIMITS[name]} if name in LIMITS else None
            found[name] = interleaved(contenders, 3 if steps == 1 else 5, limits=limits)
    return found
