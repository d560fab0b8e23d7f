"""Did something become slower? Two results of one benchmark, compared by their ratios.

    python -m benchmarks.compare OLD.json NEW.json [--tolerance 0.15]

A ratio belongs to its own run and machine: both files may come from different ones. A contender is worse where its
median ratio grew by more than the tolerance and the two spreads do not meet; it is over its limit where it has one.
Exit code 1 where any is worse, new over its limit, or gone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

TOLERANCE = 0.15
Results = Mapping[str, Mapping[str, Mapping[str, float]]]


def differences(old: Results, new: Results, tolerance: float = TOLERANCE) -> list[str]:
    """One line per contender that is worse, newly over its limit, or gone; empty where nothing is.

    old, new: the "results" of two files, {group: {contender: {"ratio", "ratio_min", "ratio_max", "limit"?}}}.
    """
    found = []
    for group, contenders in old.items():
        for name, before in contenders.items():
            after, who = new.get(group, {}).get(name), f"{group}, {name}"
            if after is None:
                found.append(f"{who}: gone")
                continue
            grown = after["ratio"] / before["ratio"] - 1
            if grown > tolerance and after["ratio_min"] > before["ratio_max"]:
                found.append(f"{who}: {before['ratio']:.2f} before, {after['ratio']:.2f} now ({grown:+.0%})")
            limit = after.get("limit")
            if limit is not None and after["ratio"] > limit >= before["ratio"]:
                found.append(f"{who}: {after['ratio']:.2f}, over its limit of {limit:g} ({before['ratio']:.2f} before)")
    return found


def load(path: Path) -> dict:
    """A file of ``benchmarks/results/``. Raises ValueError where it is none, naming it."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(about["results"], dict):
            raise ValueError("its results are no table")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a benchmark's result ({error}); want a file that `make bench` wrote") from None
    return about


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__.split("\n")[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="of the median ratio (default 0.15)")
    asked = parser.parse_args(arguments)
    try:
        old, new = load(asked.old), load(asked.new)
        if old.get("benchmark") != new.get("benchmark"):
            raise ValueError(
                f"{old.get('benchmark')!r} and {new.get('benchmark')!r}: want two results of one benchmark"
            )
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    found = differences(old["results"], new["results"], asked.tolerance)
    print("\n".join(found) or f"{new['benchmark']}: nothing is slower")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
