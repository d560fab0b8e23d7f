"""Networks made for faces, by their authors' papers and code: what :mod:`fl_utils.models.faces` builds with a head.

Each function returns ``(body, width)``: a module from float images [N, channels, H, W] to features [N, width].
"""

from __future__ import annotations

import math

import torch
from torch import nn

SPHEREFACE_UNITS = {4: (0, 0, 0, 0), 10: (0, 1, 2, 0), 20: (1, 2, 4, 1), 36: (2, 4, 8, 2), 64: (3, 8, 16, 3)}
LIGHTCNN_UNITS = {9: (0, 0, 0, 0), 29: (1, 2, 3, 4)}
CENTERLOSS_UNITS = (1, 2, 5, 3)
IRESNET_UNITS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}
# 1x1 | 1x1, 3x3 | 1x1, 5x5 | pool, 1x1: the widths of each inception of Szegedy et al. 2015, table 1.
INCEPTIONS = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}


class MaxFeatureMap(nn.Module):
    """A layer of twice as many outputs, of which the larger of the i-th and the (n + i)-th is kept (Wu et al. 2018)."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.maximum(*self.layer(x).chunk(2, 1))


class Residual(nn.Module):
    """The input, through ``shortcut`` where there is one, plus what ``layers`` make of it."""

    def __init__(self, *layers: nn.Module, shortcut: nn.Module | None = None):
        super().__init__()
        self.layers, self.shortcut = nn.Sequential(*layers), shortcut or nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shortcut(x) + self.layers(x)


def _mfm(before: int, after: int, kernel: int) -> MaxFeatureMap:
    return MaxFeatureMap(nn.Conv2d(before, 2 * after, kernel, padding=kernel // 2))


def lightcnn(depth: int, width: int, size: tuple[int, int], channels: int, features: int) -> tuple[nn.Module, int]:
    """LightCNN-9 or -29 (Wu et al., arXiv 1511.02683, tables 2 and 3), each a max-feature-map network.

    depth: 9 or 29; 29 is 9 with residual units before each of the four pairs of convolutions. width: outputs of the
    first convolution, a multiple of 3; 48 in the paper. size: height and width, 128 x 128 in the paper.
    """
    if width % 3:
        raise ValueError(f"width is {width}: want a multiple of 3, the last stages have 8/3 of it")
    widths, pool = (width, 2 * width, 4 * width, 8 * width // 3, 8 * width // 3), nn.MaxPool2d(2, ceil_mode=True)
    layers: list[nn.Module] = [_mfm(channels, width, 5), pool]
    for stage, units in enumerate(LIGHTCNN_UNITS[depth]):
        before, after = widths[stage : stage + 2]
        layers += [Residual(_mfm(before, before, 3), _mfm(before, before, 3)) for _ in range(units)]
        layers += [_mfm(before, before, 1), _mfm(before, after, 3)]
        layers += [] if stage == 2 else [pool]
    places = math.prod(math.ceil(side / 16) for side in size)
    layers += [nn.Flatten(), MaxFeatureMap(nn.Linear(widths[-1] * places, 2 * features))]
    body = nn.Sequential(*layers)
    for module in body.modules():  # as the authors' code begins
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return body, features


def _unit(width: int, norm: bool) -> Residual:
    """Two 3x3 convolutions begun near zero, as both authors' code does."""
    layers: list[nn.Module] = []
    for _ in range(2):
        layers += [nn.Conv2d(width, width, 3, padding=1, bias=False)]
        nn.init.normal_(layers[-1].weight, std=0.01)
        layers += [*([nn.BatchNorm2d(width)] if norm else []), nn.PReLU(width)]
    return Residual(*layers)


def _entry(before: int, after: int, stride: int, padding: int, norm: bool) -> list[nn.Module]:
    layer = nn.Conv2d(before, after, 3, stride, padding)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return [layer, *([nn.BatchNorm2d(after)] if norm else []), nn.PReLU(after)]


def _embedding(inputs: int, features: int) -> nn.Linear:
    layer = nn.Linear(inputs, features)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def centerloss(
    width: int, size: tuple[int, int], channels: int, features: int, units: tuple[int, ...] = CENTERLOSS_UNITS
) -> tuple[nn.Module, int]:
    """The 27 convolutions of Wen et al.'s released code (ECCV 2016), for 112 x 96 pixels.

    width: of the second convolution, 64 there. units: residual units behind each of the four pools.
    """
    layers = _entry(channels, width // 2, 1, 0, False) + _entry(width // 2, width, 1, 0, False)
    sides, before = [side - 4 for side in size], width
    for stage, count in enumerate(units):
        layers += [nn.MaxPool2d(2)] + [_unit(before, False) for _ in range(count)]
        sides = [side // 2 for side in sides]
        if stage + 1 < len(units):
            layers += _entry(before, 2 * before, 1, 0, False)
            sides, before = [side - 2 for side in sides], 2 * before
    if min(sides) < 1:
        raise ValueError(f"size is {size}: nothing is left of it after the last pool")
    return nn.Sequential(*layers, nn.Flatten(), _embedding(before * math.prod(sides), features)), features


def sphereface(
    depth: int, width: int, size: tuple[int, int], channels: int, features: int, norm: bool
) -> tuple[nn.Module, int]:
    """SphereFace's network of 4, 10, 20, 36 or 64 layers (Liu et al. 2017, table 2), for 112 x 96 pixels.

    Four stages, each a convolution of stride 2 and residual units; then one fully connected layer. The head has no
    bias. width: of the first stage, 64 in the paper. norm: batch normalisation after each convolution, not in the
    paper.
    """
    layers: list[nn.Module] = []
    for stage, units in enumerate(SPHEREFACE_UNITS[depth]):
        after = width << stage
        layers += _entry(after // 2 if stage else channels, after, 2, 1, norm)
        layers += [_unit(after, norm) for _ in range(units)]
    places = math.prod(math.ceil(side / 16) for side in size)
    return nn.Sequential(*layers, nn.Flatten(), _embedding(8 * width * places, features)), features


def iresnet(
    depth: int, width: int, size: tuple[int, int], channels: int, features: int, dropout: float
) -> tuple[nn.Module, int]:
    """The improved residual network of ArcFace (Deng et al. 2019, section 3.1), for 112 x 112 pixels.

    Each unit is BN, convolution, BN, PReLU, convolution (which strides), BN; after the last comes BN, dropout, a fully
    connected layer and BN ("E"). depth: 18, 34, 50 or 100. width: of the first stage, 64 in the paper.
    """
    layers = [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.PReLU(width)]
    before = width
    for stage, units in enumerate(IRESNET_UNITS[depth]):
        after = width << stage
        for index in range(units):
            stride, shortcut = 1 if index else 2, None
            if index == 0:
                shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
            layers += [
                Residual(
                    nn.BatchNorm2d(before),
                    nn.Conv2d(before, after, 3, 1, 1, bias=False),
                    nn.BatchNorm2d(after),
                    nn.PReLU(after),
                    nn.Conv2d(after, after, 3, stride, 1, bias=False),
                    nn.BatchNorm2d(after),
                    shortcut=shortcut,
                )
            ]
            before = after
    places = math.prod(math.ceil(side / 16) for side in size)
    return nn.Sequential(
        *layers,
        nn.BatchNorm2d(before),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(before * places, features),
        nn.BatchNorm1d(features),
    ), features


def _conv(before: int, after: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, kernel, stride, kernel // 2), nn.ReLU())


class Inception(nn.Module):
    """Four branches side by side (Szegedy et al. 2015, figure 2b)."""

    def __init__(self, before: int, one: int, into3: int, three: int, into5: int, five: int, pooled: int):
        super().__init__()
        self.one = _conv(before, one, 1)
        self.three = nn.Sequential(_conv(before, into3, 1), _conv(into3, three, 3))
        self.five = nn.Sequential(_conv(before, into5, 1), _conv(into5, five, 5))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), _conv(before, pooled, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pooled(x)], 1)


class GoogLeNet(nn.Module):
    """GoogLeNet as published and as Caffe has it (Szegedy et al. 2015): biases, response normalisation, 5x5 filters.

    torchvision's has batch normalisation instead, and 3x3 filters where these are 5x5. auxiliary: classes of the two
    auxiliary classifiers, 0 = none; in training mode their logits are returned after the features [N, 1024].
    """

    def __init__(self, channels: int, auxiliary: int):
        super().__init__()
        pool, norm = nn.MaxPool2d(3, 2, ceil_mode=True), nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0)
        units = {name: Inception(*widths) for name, widths in INCEPTIONS.items()}
        stem = [_conv(channels, 64, 7, 2), pool, norm, _conv(64, 64, 1), _conv(64, 192, 3), norm, pool]
        self.first = nn.Sequential(*stem, units["3a"], units["3b"], pool, units["4a"])
        self.second = nn.Sequential(units["4b"], units["4c"], units["4d"])
        self.third = nn.Sequential(units["4e"], pool, units["5a"], units["5b"], nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.auxiliary = nn.ModuleList(self._classifier(width, auxiliary) for width in (512, 528) if auxiliary)

    @staticmethod
    def _classifier(width: int, classes: int) -> nn.Sequential:
        return nn.Sequential(
            nn.AdaptiveAvgPool2d(4), _conv(width, 128, 1), nn.Flatten(),
            nn.Linear(2048, 1024), nn.ReLU(), nn.Dropout(0.7), nn.Linear(1024, classes),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        first = self.first(x)
        second = self.second(first)
        found = self.third(second)
        if not (self.training and self.auxiliary):
            return found
        return found, *(layer(x) for layer, x in zip(self.auxiliary, (first, second), strict=True))
