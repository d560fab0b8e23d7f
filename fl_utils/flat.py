"""A model's state as ONE flat float32 vector, with a layout that says what stands where.

Aggregation, encryption, quantization and checkpoints all speak this vector, so each is a few lines of whole-vector
arithmetic. The state is every trainable parameter, then every floating-point buffer (batch-norm's running statistics)
and every ``num_batches_tracked`` counter. Other integer buffers (masks, index tables) are constants of the architecture
and stay out.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from math import prod

import torch
from torch import nn


@dataclass(frozen=True)
class Layout:
    """What a flat vector holds: ``names``, ``shapes``, ``dtypes``; the first ``trainable`` are parameters."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    trainable: int

    @classmethod
    def of(cls, model: nn.Module) -> Layout:
        """The layout of ``model``. Raises TypeError where a parameter is not float32."""
        entries = _entries(model)
        trainable = sum(isinstance(tensor, nn.Parameter) for _, tensor in entries)
        for name, tensor in entries[:trainable]:
            if tensor.dtype != torch.float32:
                raise TypeError(f"parameter {name!r} is {tensor.dtype}: a flat vector is float32; call model.float()")
        return cls(
            names=tuple(name for name, _ in entries),
            shapes=tuple(tuple(tensor.shape) for _, tensor in entries),
            dtypes=tuple(str(tensor.dtype).removeprefix("torch.") for _, tensor in entries),
            trainable=trainable,
        )

    @property
    def sizes(self) -> list[int]:
        """Numbers of each entry, in order."""
        return [prod(shape) for shape in self.shapes]

    @property
    def numel(self) -> int:
        """Length of the whole vector."""
        return sum(self.sizes)

    @property
    def num_parameters(self) -> int:
        """Length of the vector's trainable part."""
        return sum(self.sizes[: self.trainable])

    def views(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """``vector`` (float32 [numel]) as one view per entry, each in its shape."""
        self.check(vector)
        ends = list(accumulate(self.sizes))
        return [
            vector[end - size : end].view(shape) for end, size, shape in zip(ends, self.sizes, self.shapes, strict=True)
        ]

    def check(self, vector: torch.Tensor) -> None:
        """Raise ValueError where ``vector`` is not a float32 vector of this layout's length."""
        if vector.dtype != torch.float32 or tuple(vector.shape) != (self.numel,):
            raise ValueError(
                f"vector is {str(vector.dtype).removeprefix('torch.')} of shape {tuple(vector.shape)}: "
                f"this model's state is float32 of shape ({self.numel},)"
            )


def _entries(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Parameters (a shared one once), then the buffers that belong to the state."""
    kept = model.state_dict(keep_vars=True).keys()
    buffers = [
        (name, tensor)
        for name, tensor in model.named_buffers()
        if name in kept and (tensor.is_floating_point() or name.endswith("num_batches_tracked"))
    ]
    return [*model.named_parameters(), *buffers]


def tensors(model: nn.Module) -> list[torch.Tensor]:
    """What ``model``'s state consists of, in the vector's order."""
    return [tensor for _, tensor in _entries(model)]


def flatten(model: nn.Module, out: torch.Tensor | None = None) -> torch.Tensor:
    """A copy of ``model``'s state as a float32 vector [numel], on the CPU; into ``out`` where given."""
    layout = Layout.of(model)
    out = torch.empty(layout.numel) if out is None else out
    for view, (_, tensor) in zip(layout.views(out), _entries(model), strict=True):
        view.copy_(tensor.detach())
    return out


def load(model: nn.Module, vector: torch.Tensor) -> nn.Module:
    """Copy ``vector`` (float32 [numel]) into ``model``'s state; returns ``model``. ValueError: a wrong length."""
    with torch.no_grad():
        for view, (_, tensor) in zip(Layout.of(model).views(vector), _entries(model), strict=True):
            tensor.copy_(view)
    return model


def bind(model: nn.Module, device: str | torch.device = "cpu") -> torch.Tensor:
    """Make ``model``'s state live in one vector and return that vector (float32 [numel] on ``device``).

    Afterwards every parameter and buffer of the state is a view: writing the vector sets the model, training the model
    changes the vector, and no copy is made in either direction. ``num_batches_tracked`` becomes float32 for this.
    """
    layout = Layout.of(model)
    vector = flatten(model).to(device)
    model.to(device)
    modules = dict(model.named_modules())
    for view, (name, tensor) in zip(layout.views(vector), _entries(model), strict=True):
        if isinstance(tensor, nn.Parameter):
            tensor.data = view
        else:
            owner, _, leaf = name.rpartition(".")
            # .data: a version counter of its own. Several batch norms in one network save their statistics for the
            # backward pass, and each would see the next one's update as a change to its own.
            modules[owner]._buffers[leaf] = view.data
    return vector
