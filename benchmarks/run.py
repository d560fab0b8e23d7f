"""Run every benchmark, print its ratios and keep them as ``benchmarks/results/<name>.json``."""

from __future__ import annotations

import json
import platform
import sys
from datetime import UTC, datetime

import torch

from benchmarks import aggregation, plans, privacy, scale, secure, simulation, vertical, workers
from fl_utils.executors import available_cores
from fl_utils.paths import ROOT, write_whole

BENCHMARKS = {
    "aggregation": aggregation,
    "plans": plans,
    "privacy": privacy,
    "scale": scale,
    "secure": secure,
    "simulation": simulation,
    "vertical": vertical,
    "workers": workers,
}


def main() -> None:
    """One JSON file per benchmark (all, or those named on the command line), with the hardware and versions at work."""
    torch.set_num_threads(1)
    wanted = sys.argv[1:] or list(BENCHMARKS)
    if unknown := [name for name in wanted if name not in BENCHMARKS]:
        sys.exit(f"no benchmark {', '.join(unknown)}: want {', '.join(BENCHMARKS)}")
    for name in wanted:
        benchmark = BENCHMARKS[name]
        results = benchmark.run()
        measure = getattr(benchmark, "MEASURE", "CPU time as a ratio to the first of each panel")
        print(f"\n{name}: {measure} (median, least to most)", flush=True)
        for group, contenders in results.items():
            for contender, figures in contenders.items():
                spread = f"{figures['ratio_min']:.2f} to {figures['ratio_max']:.2f}"
                limit = f"  at most {figures['limit']:g}" if "limit" in figures else ""
                print(f"  {group:33s} {contender:26s} {figures['ratio']:6.2f}  ({spread}){limit}")
                if "weights" in figures:
                    told = f"{figures['wall_s']:.2f} s by the wall, {figures.get('peak_mb', 0):.0f} MB at most"
                    print(f"  {'':33s} {told}, weights within {figures['weights']:.0e} of plain FedAvg's")
                if counts := figures.get("counts"):
                    print(f"  {'':33s} {', '.join(f'{count} {name}' for name, count in counts.items())}")
        about = {
            "benchmark": name,
            "measure": measure,
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "hardware": f"{available_cores()} cores {platform.machine()}, one torch thread",
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "results": results,
        }
        write_whole(ROOT / "benchmarks" / "results" / f"{name}.json", json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
