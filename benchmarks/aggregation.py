"""Averaging against the memory's speed, measured in the same run: reading every vector once, and writing one."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from benchmarks.measure import interleaved
from fl_utils import robust
from fl_utils.aggregation import fedavg

VGG16, MOBILENET = 138_000_000, 3_500_000  # parameters
LIMIT = 2.5  # at most so many times the memory's speed
WRONG = 2  # vectors that the robust rules are to bear
READ = "read all, write one"


def vectors(count: int, length: int) -> list[torch.Tensor]:
    """``count`` vectors, each with memory of its own."""
    pattern = torch.randn(1 << 20)
    return [pattern.roll(number).repeat(-(-length // len(pattern)))[:length] for number in range(count)]


def memory(held: list[torch.Tensor], out: torch.Tensor) -> None:
    """The limit: no average can be had without reading each vector and writing the result. The first is copied to
    ``out``, the others are summed up, which one core does as fast as its memory delivers."""
    out.copy_(held[0])
    for vector in held[1:]:
        vector.sum()


def sum_of_products(held: list[torch.Tensor], weights: list[int]) -> torch.Tensor:
    """The average as a textbook writes it."""
    return sum(vector * (n / sum(weights)) for vector, n in zip(held, weights, strict=True))


def run() -> dict:
    """Ratios of CPU time to the memory's speed: FedAvg of two large and of ten small vectors, then the robust rules."""
    held, out = vectors(2, VGG16), torch.empty(VGG16)
    found = {
        "FedAvg, 2 x 138 M": interleaved(
            {
                READ: partial(memory, held, out),
                "fl_utils": partial(fedavg, held, [1, 2], out=out),
                "copies of the same bytes": lambda: [out.copy_(vector) for vector in held],
            },
            repeats=5,
            limits={"fl_utils": LIMIT},
        )
    }
    held, out = vectors(10, MOBILENET), torch.empty(MOBILENET)
    weights = list(range(1, len(held) + 1))
    found["FedAvg, 10 x 3.5 M"] = interleaved(
        {
            READ: partial(memory, held, out),
            "fl_utils": partial(fedavg, held, weights, out=out),
            "copies of the same bytes": lambda: [out.copy_(vector) for vector in held],
            "sum of products": partial(sum_of_products, held, weights),
        },
        limits={"fl_utils": LIMIT},
    )
    found["robust rules, 10 x 3.5 M"] = interleaved(
        {
            READ: partial(memory, held, out),
            "median": partial(robust.median, held, out),
            "trimmed mean": partial(robust.trimmed_mean, held, WRONG, out),
            "Krum": partial(robust.krum, held, WRONG, out),
            "multi-Krum": partial(robust.multi_krum, held, WRONG, 0, out),
            "numpy.median": lambda: np.median([vector.numpy() for vector in held], axis=0),
        },
        repeats=5,
    )
    return found
