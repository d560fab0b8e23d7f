"""Which example comes when, drawn by NumPy alone: a device without torch draws the same, so results can be equal.

Epoch e of a training with ``seed`` takes the examples in the order ``default_rng([seed, e]).permutation(n)``, cut into
batches; the last one may be short.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from fl_utils.cohorts import Client
    from fl_utils.training import LocalTraining, Trainer


def batches(examples: int, size: int, epochs: int, seed: int) -> Iterator[np.ndarray]:
    """Indices (int64) of each batch of at most ``size`` of ``examples``, epoch after epoch; ``size`` 0 takes all."""
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(examples)
        for start in range(0, examples, size or examples):
            yield order[start : start + (size or examples)]


def train(trainer: Trainer, client: Client, local: LocalTraining, seed: int) -> float:
    """Local training in torch in a device's order of examples: a ``train`` of :func:`fl_utils.federation.run`.

    Plain SGD on cross-entropy, as a device does it (:func:`check_plain`); the mean loss of the last epoch. Raises
    ValueError on other settings.
    """
    import torch

    check_plain(local)
    size, losses = len(client), []
    for chosen in batches(size, local.batch_size, local.local_epochs, seed):
        index = torch.from_numpy(chosen)
        losses.append((step(trainer, client.x[index], client.y[index], local.learning_rate), len(chosen)))
    last = losses[-math.ceil(size / (local.batch_size or size)) :]
    return sum(loss * count for loss, count in last) / size


def step(trainer: Trainer, x: torch.Tensor, y: torch.Tensor, learning_rate: float) -> float:
    """One step of plain SGD on images ``x`` [N, ...] and labels ``y`` [N] in torch; the loss before it."""
    import torch
    from torch.nn import functional

    trainer.model.train()
    loss = functional.cross_entropy(trainer.model(x.to(trainer.device)), y.to(trainer.device))
    gradients = torch.autograd.grad(loss, trainer.trainable)
    with torch.no_grad():
        torch._foreach_add_(trainer.trainable, gradients, alpha=-learning_rate)
    return loss.item()


def check_plain(local: LocalTraining) -> None:
    """Raise ValueError where ``local`` asks for more than plain SGD on cross-entropy: a device's file has no other."""
    wanted = {"optimizer": "sgd", "momentum": 0, "weight_decay": 0, "clip_norm": 0, "loss": "cross_entropy"}
    for name, value in {**wanted, "augment": None}.items():
        if (found := getattr(local, name)) != value:
            raise ValueError(f"{name} is {found!r}: a device trains by plain SGD on cross-entropy, want {value!r}")
