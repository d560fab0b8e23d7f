"""Run every benchmark, print its ratios and keep them as ``benchmarks/results/<name>.json``."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime

import torch

from benchmarks import aggregation, federation
from fl_utils.executors import available_cores
from fl_utils.paths import ROOT, write_whole


def main() -> None:
    """One JSON file per benchmark, with the hardware and versions at work."""
    torch.set_num_threads(1)
    for name, benchmark in [("federation", federation), ("aggregation", aggregation)]:
        results = benchmark.run()
        print(f"\n{name}: CPU time against the first of each group (median, least to most)")
        for group, contenders in results.items():
            for contender, figures in contenders.items():
                spread = f"{figures['ratio_min']:.2f} to {figures['ratio_max']:.2f}"
                print(f"  {group:12s} {contender:26s} {figures['ratio']:6.2f}  ({spread})")
        about = {
            "benchmark": name,
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "hardware": f"{available_cores()} cores {platform.machine()}, one torch thread",
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "results": results,
        }
        write_whole(ROOT / "benchmarks" / "results" / f"{name}.json", json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
