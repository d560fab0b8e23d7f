"""A small network in VGG-16's shape, without normalisation: nothing repairs badly scaled first weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

WIDTHS = (8, 0, 16, 0, 32, 32, 0)  # channels of each 3 x 3 convolution; 0: max-pooling, 2 x 2


class SmallVGG(nn.Module):
    """3 x 3 convolutions with ReLU and 2 x 2 max-pooling as ``widths`` lists them, then two linear layers with a ReLU
    between.

    Takes prepared images float32 [N, 3, size, size] (:func:`fl_utils.framework_defaults.prepare`) and gives logits
    [N, classes]. embedding: outputs of the first linear layer, the features.
    Raises ValueError on widths without a convolution or with more pooling than ``size`` allows.
    """

    def __init__(self, classes: int, size: int, widths: Sequence[int] = WIDTHS, embedding: int = 64):
        super().__init__()
        side, before, convolutions = size, 3, []
        for width in widths:
            if width:
                convolutions.append(nn.Conv2d(before, width, 3, padding=1))
                before = width
            else:
                side //= 2
        if not convolutions or side < 1 or min(widths) < 0:
            raise ValueError(
                f"widths is {list(widths)}, size {size}: want channels, and 0 at most as often as size halves"
            )
        self.widths = tuple(widths)
        self.convolutions = nn.ModuleList(convolutions)
        self.embed = nn.Linear(before * side * side, embedding)
        self.classifier = nn.Linear(embedding, classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Embeddings [N, embedding]: what the first linear layer gives, before its ReLU."""
        layers = iter(self.convolutions)
        for width in self.widths:
            x = functional.relu(next(layers)(x)) if width else functional.max_pool2d(x, 2)
        return self.embed(x.flatten(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(functional.relu(self.features(x)))
