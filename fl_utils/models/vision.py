"""Networks that look at images. All take uint8 images [N, C, H, W] and normalise them themselves."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Normalize(nn.Module):
    """uint8 [N, C, H, W] to float32: (x / 255 - mean) / std, one mean and std per channel."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images.float() / 255 - self.mean) / self.std


def two_nn(classes: int = 10) -> nn.Sequential:
    """The "2NN" of McMahan et al. 2017: two hidden layers of 200 units for 28x28 grey images; 199,210 parameters."""
    return nn.Sequential(
        Normalize((0.0,), (1.0,)), nn.Flatten(),
        nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, classes),
    )  # fmt: skip


class SmallCNN(nn.Module):
    """A small convolutional network for 28x28 grey images: two 5x5 convolutions, one hidden layer, one last layer.

    ``features`` (all but the last layer) and ``classifier`` (the last layer) are apart, so that a network trained on
    some classes can be given a new last layer for others, as Raj 2020 (section II.B) does with AlexNet.
    """

    def __init__(self, classes: int, width: int = 16, hidden: int = 64):
        super().__init__()
        self.features = nn.Sequential(
            Normalize((0.13,), (0.31,)),
            nn.Conv2d(1, width, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(2 * width * 49, hidden), nn.ReLU(),
        )  # fmt: skip
        self.classifier = nn.Linear(hidden, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(images))


def small_cnn(classes: int, pretrained: dict[str, torch.Tensor] | None = None) -> SmallCNN:
    """A :class:`SmallCNN` with a fresh last layer; its other layers from ``pretrained`` (their state dict) if given."""
    model = SmallCNN(classes)
    if pretrained is not None:
        model.features.load_state_dict(pretrained)
    return model


def alexnet(classes: int, weights: Path | str | None = None) -> nn.Sequential:
    """torchvision's AlexNet with a last layer of ``classes`` outputs (Raj 2020, figure 2), normalising uint8 images.

    weights: torchvision's file of ImageNet weights (its own last layer is dropped), None for random ones.
    """
    from torchvision.models import alexnet as build

    model = build(weights=None)
    _load(model, weights)
    model.classifier[6] = nn.Linear(4096, classes)
    return nn.Sequential(Normalize(IMAGENET_MEAN, IMAGENET_STD), model)


def mobilenet_v2(classes: int, weights: Path | str | None = None) -> nn.Sequential:
    """torchvision's MobileNetV2 with a last layer of ``classes`` outputs; otherwise as :func:`alexnet`."""
    from torchvision.models import mobilenet_v2 as build

    model = build(weights=None)
    _load(model, weights)
    model.classifier[1] = nn.Linear(model.last_channel, classes)
    return nn.Sequential(Normalize(IMAGENET_MEAN, IMAGENET_STD), model)


def random_flip(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror each image [N, C, H, W] left to right with probability one half (Raj 2020, section II.A)."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)


def _load(model: nn.Module, weights: Path | str | None) -> None:
    if weights is None:
        return
    try:
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except Exception as error:  # a damaged file fails in as many ways as there are bytes; each is the file's fault
        reason = str(error).split("\n")[0] or type(error).__name__
        raise ValueError(f"weights {weights} do not fit {type(model).__name__}: {reason}") from error
