"""Averaging against the memory's speed: a copy of the same bytes, measured in the same run."""

from __future__ import annotations

import torch

from benchmarks.measure import interleaved
from fl_utils.aggregation import fedavg

SIZES = {"2 x 25 M": (2, 25_000_000), "10 x 3.5 M": (10, 3_500_000)}


def run() -> dict:
    """Ratios of CPU time to reading every vector and writing one: one copy per vector is what cannot be saved."""
    found = {}
    for name, (count, length) in SIZES.items():
        vectors, out = [torch.randn(length) for _ in range(count)], torch.empty(length)
        weights = list(range(1, count + 1))
        found[name] = interleaved(
            {
                "copies of the same bytes": lambda vectors=vectors, out=out: [out.copy_(v) for v in vectors],
                "fl_utils": lambda vectors=vectors, out=out, weights=weights: fedavg(vectors, weights, out=out),
                "sum of products": lambda vectors=vectors, weights=weights: sum(
                    v * (n / sum(weights)) for v, n in zip(vectors, weights, strict=True)
                ),
            }
        )
    return found
