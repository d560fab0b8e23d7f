"""What the tests of exports share: one tiny network, images, and torch's logits of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fl_utils.export import Contract, export, run_exported

LABELS = ("ankle boot", "bag", "coat", "dress")


class Bessel(nn.Module):
    """An operator that no runtime has."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(image).mean((2, 3))


@dataclass(frozen=True)
class Tiny:
    """``network`` for float32 [N, 3, 12, 10] in [-1, 1], 40 ``images`` uint8 [N, H, W, C], its ``logits`` of them."""

    network: nn.Module
    images: np.ndarray
    logits: np.ndarray
    shape = (1, 3, 12, 10)
    scale, bias = 2 / 255, -1.0

    def export(self, to: str, folder: Path, **options) -> Contract:
        options = {"scale": self.scale, "bias": self.bias, "calibration": self.images[:16], **options}
        return export(self.network, self.shape, LABELS, to, folder, **options)

    def error(self, contract: Contract) -> float:
        """The largest difference between the file's logits and torch's, as a share of the largest logit."""
        found = run_exported(contract.path, self.images)
        assert found.dtype == np.float32 and found.shape == self.logits.shape
        return float(np.abs(found - self.logits).max() / np.abs(self.logits).max())


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()),
            nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(96, 64),
            nn.ReLU(),
            nn.Linear(64, 4),
        )
        images = np.random.default_rng(0).integers(0, 256, (40, 12, 10, 3), dtype=np.uint8)
        images[:, :, :, 0] //= 3  # colours in the wrong order would be noticed
        x = torch.from_numpy(images).permute(0, 3, 1, 2) * (2 / 255) - 1
        network.train()
        with torch.no_grad():
            for _ in range(20):
                network(x)  # batch norm's statistics
            return Tiny(network, images, network.eval()(x).numpy())


@pytest.fixture
def bessel() -> nn.Module:
    return Bessel()
