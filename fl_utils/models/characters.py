"""The network that reads Chinese characters in Hu et al. 2020, section 3.4: 11 convolutions and a 3-layer MLP."""

from __future__ import annotations

import math

import torch
from torch import nn

CHANNELS = ((128, 128), (256, 256), (384, 384, 384), (512, 512, 512))  # of the units before each pooling
HIDDEN = (1024, 256)
MOMENTUM = 0.66  # authors' code
NORMS = ("batch", "group")


class CharacterCNN(nn.Module):
    """A variation of VGG: 11 units of 3x3 convolution, LeakyReLU and normalisation, then 3 linear layers.

    Input: uint8 [N, 1, H, W], H = W = ``image_size``, background 0; the network divides it by 255. Output: logits
    float32 [N, classes], whose softmax is the paper's last layer (the loss takes it in).

    The first unit has stride 2; max-pooling (3x3, stride 2) follows units 3, 5, 8 and 11. Channels, pooling, batch
    norm's momentum and the initial weights are those of the authors' code; the paper names the numbers of units and
    layers. width: scales all channels and the MLP's hidden layers, 1 = the paper's.
    norm: "batch", or "group" (groups of channels of one example) where no example may touch another's gradient, as in
    differentially private training; then no module works in place or keeps statistics.
    Raises ValueError on a norm that there is not, and on sizes below 1 (image_size: 8).
    """

    def __init__(self, classes: int = 3755, width: float = 1.0, image_size: int = 64, norm: str = "batch"):
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"norm is {norm!r}: want {' or '.join(map(repr, NORMS))}")
        for name, value, least in (("classes", classes, 1), ("image_size", image_size, 8)):
            if value < least:
                raise ValueError(f"{name} is {value}: want at least {least}")
        if not 0 < width < math.inf:
            raise ValueError(f"width is {width}: want a number above 0")
        self.image_size, self.norm = image_size, norm
        before = _scaled(64, width)
        units = [_unit(1, before, 2, norm)]
        side = math.ceil(image_size / 2)
        for block in CHANNELS:
            for channels in block:
                units.append(_unit(before, _scaled(channels, width), 1, norm))
                before = _scaled(channels, width)
            units.append(nn.MaxPool2d(3, stride=2, padding=1))
            side = math.ceil(side / 2)
        self.units = nn.Sequential(*units)
        layers, before = [], before * side * side
        for hidden in HIDDEN:
            after = _scaled(hidden, width)
            layers += [nn.Linear(before, after), nn.LeakyReLU(), _norm(after, norm, flat=True)]
            before = after
        self.mlp = nn.Sequential(*layers, nn.Linear(before, classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, math.sqrt(2 / (9 * module.out_channels)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.shape[-2:] != (self.image_size, self.image_size):
            got, want = "x".join(map(str, images.shape[-2:])), f"{self.image_size}x{self.image_size}"
            raise ValueError(f"images of {got} pixels: this network was built for image_size {want}")
        if self.norm == "batch" and self.training and len(images) == 1:
            self.eval()  # one example has no variance of its own: the running statistics stand in
            try:
                return self._logits(images)
            finally:
                self.train()
        return self._logits(images)

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        x = self.units[0](images.float() / 255)
        if self.norm == "batch":  # a quarter less time on a CPU; torch.func.vmap, for which "group" is, refuses it
            x = x.contiguous(memory_format=torch.channels_last)
        return self.mlp(self.units[1:](x).flatten(1))


def _unit(before: int, after: int, stride: int, norm: str) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, 3, stride, padding=1)
    return nn.Sequential(convolution, nn.LeakyReLU(), _norm(after, norm))


def _norm(channels: int, norm: str, flat: bool = False) -> nn.Module:
    if norm == "group":  # at most 8 groups, of at least 8 channels: an example of one pixel has nothing else to compare
        return nn.GroupNorm(math.gcd(channels // 8, 8), channels)
    return (nn.BatchNorm1d if flat else nn.BatchNorm2d)(channels, momentum=MOMENTUM)


def _scaled(channels: int, width: float) -> int:
    """``channels`` times ``width``, to the nearest multiple of 8, at least 8."""
    return max(8, 8 * round(channels * width / 8))
