"""Examples: inputs, labels and, where known, who each example comes from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Examples:
    """N labelled examples.

    x: images, uint8 [N, C, H, W], or a list of N texts. y: labels, int64 [N]. groups: int64 [N], the writer or source
    of each example (equal number, same one), or None where unknown. Raises ValueError where these do not fit together.
    """

    x: torch.Tensor | list[str]
    y: torch.Tensor
    groups: torch.Tensor | None = None

    def __post_init__(self) -> None:
        for name, tensor in (("y", self.y), ("groups", self.groups)):
            if tensor is not None and (tensor.dtype != torch.int64 or tensor.shape != (len(self.x),)):
                got = f"{tensor.dtype} {list(tensor.shape)}"
                raise ValueError(f"{name} is {got}, want torch.int64 [{len(self.x)}], one number per example")

    def __len__(self) -> int:
        return len(self.x)

    def take(self, indices: Sequence[int] | np.ndarray | torch.Tensor) -> Examples:
        """The examples at ``indices``, whole numbers in 0 .. N - 1, in that order. Raises IndexError outside of it."""
        chosen = torch.as_tensor(np.asarray(indices), dtype=torch.int64)
        if len(chosen) and (int(chosen.min()) < 0 or int(chosen.max()) >= len(self)):
            raise IndexError(f"indices run from {int(chosen.min())} to {int(chosen.max())}, want 0 to {len(self) - 1}")
        x = self.x[chosen] if isinstance(self.x, torch.Tensor) else [self.x[index] for index in chosen.tolist()]
        return Examples(x, self.y[chosen], None if self.groups is None else self.groups[chosen])


def concat(parts: Iterable[Examples]) -> Examples:
    """All examples of ``parts``, in order. Raises ValueError on no parts, or images of different shapes.

    A group of one part is never a group of another: their numbers are shifted apart. Where only some parts know their
    groups, each example of the others is a group of its own.
    """
    parts = list(parts)
    if not parts:
        raise ValueError("concat: want at least one part")
    shapes = {tuple(part.x.shape[1:]) if isinstance(part.x, torch.Tensor) else "texts" for part in parts}
    if len(shapes) > 1:
        raise ValueError(f"concat: examples of different shapes: {', '.join(map(str, sorted(shapes, key=str)))}")
    x = [text for part in parts for text in part.x] if shapes == {"texts"} else torch.cat([part.x for part in parts])
    groups = None
    if any(part.groups is not None for part in parts):
        shifted, start = [], 0
        for part in parts:
            own = torch.arange(len(part)) if part.groups is None else part.groups.unique(return_inverse=True)[1]
            shifted.append(own + start)
            start += int(own.max()) + 1 if len(own) else 0
        groups = torch.cat(shifted)
    return Examples(x, torch.cat([part.y for part in parts]), groups)
