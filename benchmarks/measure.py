"""How the benchmarks measure: contenders in turn, several times, medians of the ratios to the first of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Spent:
    """What one turn of a contender cost: CPU and wall seconds, and its peak memory where it is known."""

    cpu_s: float
    wall_s: float
    peak_mb: float = 0.0


def interleaved(
    contenders: Mapping[str, Callable[[], object]],
    repeats: int = 7,
    warm_up: bool = True,
    own_clock: bool = False,
    limits: Mapping[str, float] | None = None,
    clock: Callable[[], float] = time.process_time,
    wall: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[str, float]]:
    """CPU seconds of each contender, and its ratio to the first, measured turn by turn, after one warm-up each.

    own_clock: a contender returns its CPU seconds, or what it :class:`Spent`, for they are not this process'.
    limits: what the ratio of some contenders may be at most. clock, wall: CPU and wall seconds of this process.

    Returns what :func:`summary` does.
    """
    for contender in contenders.values() if warm_up else ():
        contender()
    turns: list[dict[str, Spent]] = []
    for _ in range(repeats):
        turn = {}
        for name, contender in contenders.items():
            started = clock(), wall()
            own = contender()
            cpu, passed = clock() - started[0], wall() - started[1]
            turn[name] = own if isinstance(own, Spent) else Spent(own if own_clock else cpu, passed)
        turns.append(turn)
    return summary(turns, limits)


def summary(
    turns: Sequence[Mapping[str, Spent]], limits: Mapping[str, float] | None = None
) -> dict[str, dict[str, float]]:
    """What the turns say of each contender; the ratios are of CPU seconds to the first contender's in the same turn.

    Returns {name: {"cpu_s" (median), "ratio" (median), "ratio_min", "ratio_max", "wall_s" (median), "wall_ratio"
    (median)}}, with "peak_mb" (the most) where it is known and "limit" where there is one. Raises ValueError where a
    limit is for nobody.
    """
    first = next(iter(turns[0]))
    if unknown := set(limits or ()) - set(turns[0]):
        raise ValueError(f"limits for {', '.join(sorted(unknown))}: want some of {', '.join(turns[0])}")
    found = {}
    for name in turns[0]:
        own = [turn[name] for turn in turns]
        ratios = [turn[name].cpu_s / turn[first].cpu_s for turn in turns]
        found[name] = {
            "cpu_s": median(spent.cpu_s for spent in own),
            "ratio": median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            "wall_s": median(spent.wall_s for spent in own),
            "wall_ratio": median(turn[name].wall_s / turn[first].wall_s for turn in turns),
        }
        if peak := max(spent.peak_mb for spent in own):
            found[name]["peak_mb"] = peak
        if limits and name in limits:
            found[name]["limit"] = limits[name]
    return found
