"""How the benchmarks measure: contenders in turn, several times, medians of the ratios to the first of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median


def interleaved(
    contenders: dict[str, Callable[[], object]], repeats: int = 7, warm_up: bool = True, own_clock: bool = False
) -> dict[str, dict[str, float]]:
    """CPU seconds of each contender, and its ratio to the first, measured turn by turn, after one warm-up each.

    own_clock: a contender returns its CPU seconds itself, for they are not this process'.

    Returns {name: {"cpu_s": median, "ratio": median of the ratios within a turn, "ratio_min", "ratio_max"}}.
    """
    for contender in contenders.values() if warm_up else ():
        contender()
    turns: list[dict[str, float]] = []
    for _ in range(repeats):
        turn = {}
        for name, contender in contenders.items():
            started = time.process_time()
            spent = contender()
            turn[name] = spent if own_clock else time.process_time() - started
        turns.append(turn)
    first = next(iter(contenders))
    found = {}
    for name in contenders:
        ratios = [turn[name] / turn[first] for turn in turns]
        found[name] = {
            "cpu_s": median(turn[name] for turn in turns),
            "ratio": median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
        }
    return found
