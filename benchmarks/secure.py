"""Encrypted averaging between processes over loopback: CPU time of the slowest party, and its peak memory."""

from __future__ import annotations

import time

import torch

from benchmarks.measure import interleaved
from fl_utils.aggregation import fedavg
from fl_utils.secure.average import Cost, Parties, encrypted_average

SIZES = {"1 M": 1_000_000, "14 M": 14_000_000, "138 M": 138_000_000}
PARTIES = (2, 3)


def run() -> dict:
    """By size and number of parties: spdz against CrypTen, additive against plain averaging, memory against a vector.

    A limit beside a ratio is what this collection asks of itself.
    """
    found = {}
    for count in PARTIES:
        for size, length in SIZES.items():
            torch.manual_seed(0)
            vectors = [torch.randn(length) / 10 for _ in range(count)]
            found |= _compared(f"{size}, {count} parties", vectors)
    return found


def _compared(name: str, vectors: list[torch.Tensor]) -> dict:
    counts, out = [100 + id for id in range(len(vectors))], torch.empty_like(vectors[0])
    large = len(out) > 50_000_000
    with Parties(len(vectors), "spdz", timeout=120) as spdz, Parties(len(vectors), "additive", timeout=120) as additive:

        def by(parties: Parties) -> float:
            parties.average(vectors, counts, out)
            return max(parties.cost.cpu_seconds[: len(vectors)])

        def by_crypten() -> float:
            cost = Cost()
            encrypted_average(vectors, counts, "crypten", timeout=120, cost=cost)
            return max(cost.cpu_seconds)

        def plain() -> float:
            started = time.process_time()
            fedavg(vectors, counts, out)
            return time.process_time() - started

        authenticated = interleaved(
            {"crypten": by_crypten, "spdz": lambda: by(spdz)}, repeats=3, warm_up=not large, own_clock=True
        )
        unauthenticated = interleaved(
            {"plain": plain, "additive": lambda: by(additive)}, repeats=3 if large else 7, own_clock=True
        )
        peak = 1e6 * max(spdz.cost.peak_mb[: len(vectors)]) / out.nbytes
    authenticated["spdz"]["limit"] = 0.5
    if len(out) == SIZES["14 M"]:
        unauthenticated["additive"]["limit"] = 25
    memory = {"spdz, peak of a party": {"ratio": peak, "ratio_min": peak, "ratio_max": peak}}
    if large:
        memory["spdz, peak of a party"]["limit"] = 3
    return {name: authenticated, f"{name}, no MAC": unauthenticated, f"{name}, float32 vector = 1": memory}
