"""How a server makes one state vector out of many: plain functions over flat vectors.

Both rules are one operation repeated, ``mean += weight * (vector - mean)``, done in place: vectors may arrive one by
one from a generator, and memory does not grow with their number. Where all are there, the mean is made piece by piece,
each piece staying in the cache until the last vector was added: every vector is read once, and the mean written once.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

PIECE = 1 << 18  # coordinates: 1 MB of the mean; a multiple of a processor's vectors, so that each value is made alike


def fedavg(vectors: Iterable[torch.Tensor], num_examples: Iterable[int], out: torch.Tensor | None = None):
    """Average of ``vectors`` (each float32 [d]), weighted by ``num_examples`` (McMahan et al. 2017, algorithm 1).

    ``out`` (float32 [d]) receives the result where given; it may not be one of the vectors. Returns the average.
    Raises ValueError where there is no vector, lengths differ or a count is not positive.

    >>> fedavg([torch.tensor([0.0]), torch.tensor([4.0])], [3, 1])
    tensor([1.])
    """
    if not isinstance(vectors, list | tuple) or len(vectors) < 2:
        return fedavg_stream(zip(vectors, num_examples, strict=True), out)
    shares, total = [], 0
    for vector, count in zip(vectors, num_examples, strict=True):
        _positive(count)
        _same_shape(vectors[0], vector)
        total += count
        shares.append(count / total)
    mean = torch.empty_like(vectors[0]) if out is None else out
    _same_shape(mean, vectors[0])
    for begin in range(0, len(mean), PIECE):
        first, second, *others = (vector[begin : begin + PIECE] for vector in vectors)
        piece = torch.lerp(first, second, shares[1], out=mean[begin : begin + PIECE])
        for vector, share in zip(others, shares[2:], strict=True):
            piece.lerp_(vector, share)
    return mean


def fedavg_stream(updates: Iterable[tuple[torch.Tensor, int]], out: torch.Tensor | None = None) -> torch.Tensor:
    """:func:`fedavg` of pairs (vector, number of examples) as they come; a vector may be reused once it was taken."""
    total = 0
    mean = None
    for vector, count in updates:
        _positive(count)
        total += count
        if mean is None:
            mean = vector.clone() if out is None else out.copy_(vector)
        else:
            _same_shape(mean, vector)
            mean.lerp_(vector, count / total)
    if mean is None:
        raise ValueError("vectors is empty: an average needs at least one client's vector")
    return mean


def polyak(old: torch.Tensor, new: torch.Tensor, k: float = 0.5, out: torch.Tensor | None = None) -> torch.Tensor:
    """``k * old + (1 - k) * new`` (Raj 2020, section IV.C); vectors are float32 [d], ``out`` may be ``old``."""
    if not 0 <= k <= 1:
        raise ValueError(f"k is {k}: the share of the old weights lies between 0 and 1")
    _same_shape(old, new)
    return torch.lerp(old, new, 1 - k, out=out)


def polyak_in_order(vectors: Iterable[torch.Tensor], k: float = 0.5) -> torch.Tensor:
    """Fold ``vectors`` one after the other with :func:`polyak`, starting from the first (Raj 2020, section IV.C).

    The order matters: of n vectors the last weighs ``1 - k`` and the first ``k ** (n - 1)``, see
    :func:`polyak_weights`. Raises ValueError where there is no vector.
    """
    result = None
    for vector in vectors:
        result = vector.clone() if result is None else polyak(result, vector, k, out=result)
    if result is None:
        raise ValueError("vectors is empty: an aggregate needs at least one vector")
    return result


def polyak_weights(count: int, k: float = 0.5) -> list[float]:
    """The weight each of ``count`` vectors has in :func:`polyak_in_order`; they add up to 1.

    >>> polyak_weights(4)
    [0.125, 0.125, 0.25, 0.5]
    """
    return [k ** (count - 1) if i == 0 else (1 - k) * k ** (count - 1 - i) for i in range(count)]


def _positive(count: int) -> None:
    if count <= 0:
        raise ValueError(f"num_examples holds {count}: each client's number of examples must be positive")


def _same_shape(first: torch.Tensor, other: torch.Tensor) -> None:
    if first.shape != other.shape:
        raise ValueError(f"vectors of shapes {tuple(first.shape)} and {tuple(other.shape)} cannot be averaged")
