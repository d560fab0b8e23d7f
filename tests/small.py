"""A small federation that learns within a second: models and clients, importable by worker processes."""

import torch
from torch import nn

from fl_utils.federation import Client
from fl_utils.training import LocalTraining

LOCAL = LocalTraining(local_epochs=2, batch_size=8, learning_rate=0.1)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def with_batch_norm() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)
    )


def plain_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def examples(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes that a linear map and a little noise decide."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=generator)
    directions = torch.randn(6, 3, generator=torch.Generator().manual_seed(99))
    return x, (x @ directions + 0.1 * torch.randn(count, 3, generator=generator)).argmax(1)


def clients(sizes=(30, 17, 25, 9)) -> list[Client]:
    x, y = examples(sum(sizes))
    parts = zip(x.split(list(sizes)), y.split(list(sizes)), strict=True)
    return [Client(id, xs, ys) for id, (xs, ys) in enumerate(parts)]
