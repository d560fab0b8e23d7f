"""Residual networks (He et al. 2016) of any width, for images of any size: those of Hu et al. 2020, appendix."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock

from fl_utils.models.vision import Normalize

BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class ResNet(nn.Module):
    """See :func:`resnet`. ``features`` gives the embedding [N, 8 * width], ``classifier`` is the last layer."""

    def __init__(self, depth: int, classes: int, width: int, channels: int, dropout: float, stem: str, mean, std):
        super().__init__()
        large = stem == "imagenet"
        self.normalize = Normalize(mean, std)
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 7 if large else 3, 2 if large else 1, 3 if large else 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            *([nn.MaxPool2d(3, 2, 1)] if large else []),
        )
        blocks, before = [], width
        for stage, count in enumerate(BLOCKS[depth]):
            after = width << stage
            for index in range(count):
                stride = 2 if stage and index == 0 else 1
                shortcut = None
                if stride > 1 or before != after:
                    shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
                blocks.append(BasicBlock(before, after, stride, shortcut))
                before = after
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(before, classes)
        for module in self.modules():  # as torchvision begins its own
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings float32 [N, 8 * width] of ``images`` uint8 [N, channels, H, W]: the mean over all places."""
        return self.blocks(self.stem(self.normalize(images))).mean((2, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.dropout(self.features(images)))


def resnet(
    depth: int,
    classes: int,
    width: int = 64,
    channels: int = 3,
    dropout: float = 0.0,
    stem: str = "imagenet",
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> ResNet:
    """A residual network for uint8 images [N, channels, H, W], which it normalises itself.

    depth: 10, 18 or 34 (ResNet-18: alphanumeric characters, ResNet-34: face verification; Hu et al. 2020, appendix).
    width: channels of the first stage; 64 with 3 channels and stem "imagenet" are torchvision's own networks.
    dropout: before the last layer. stem: "imagenet" (7x7, stride 2, max-pooling) or "small" (3x3, stride 1), for
    images up to 64 pixels. mean, std: of each channel, of values between 0 and 1; 0.5 and 0.5 where not given.
    Raises ValueError on a depth or a stem that there is not, and on a mean or std of another number of channels.
    """
    if depth not in BLOCKS:
        raise ValueError(f"depth is {depth}: want one of {', '.join(map(str, BLOCKS))}")
    if stem not in ("imagenet", "small"):
        raise ValueError(f"stem is {stem!r}: want 'imagenet' or 'small'")
    for name, value in (("classes", classes), ("width", width), ("channels", channels)):
        if value < 1:
            raise ValueError(f"{name} is {value}: want at least 1")
    mean, std = mean or (0.5,) * channels, std or (0.5,) * channels
    if not len(mean) == len(std) == channels:
        raise ValueError(
            f"mean and std have {len(mean)} and {len(std)} values: want one for each of {channels} channels"
        )
    return ResNet(depth, classes, width, channels, dropout, stem, mean, std)
