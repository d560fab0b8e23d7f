"""The results as figures: a panel for each group, a bar for each contender, its limit as a line."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

from fl_utils import plots
from fl_utils.paths import ROOT, write_whole

RESULTS, FIGURES = ROOT / "benchmarks" / "results", ROOT / "benchmarks" / "figures"
ROW, HEAD = 0.26, 0.75  # inches of a bar, and of a panel's title and axis


def draw(about: dict) -> bytes:
    """One PNG of a result file's content. Ratios on a logarithmic axis; whiskers from the least to the most."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    plots.use()
    groups = about["results"]
    heights = [ROW * len(contenders) + HEAD for contenders in groups.values()]
    figure, axes = plt.subplots(
        len(groups), 1, figsize=(7.6, sum(heights)), squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for ax, (group, contenders) in zip(axes[:, 0], groups.items(), strict=True):
        _panel(ax, group, contenders)
    axes[-1, 0].set_xlabel(about.get("measure", "CPU time as a ratio to the first of each panel"))
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=80)
    plt.close(figure)
    return data.getvalue()


def _panel(ax, group: str, contenders: dict[str, dict[str, float]]) -> None:
    names = list(contenders)
    ratios = [contenders[name]["ratio"] for name in names]
    ends = [
        [abs(r - contenders[n][key]) for n, r in zip(names, ratios, strict=True)] for key in ("ratio_min", "ratio_max")
    ]
    ours = [plots.BLUE if name.startswith("fl_utils") else plots.SKY for name in names]
    ax.barh(range(len(names)), ratios, xerr=ends, color=ours, height=0.7, error_kw={"lw": 1})
    for place, name in enumerate(names):
        over = ""
        if (limit := contenders[name].get("limit")) is not None:
            ax.plot([limit, limit], [place - 0.45, place + 0.45], color=plots.ORANGE, lw=2.5)
            over = f", at most {limit:.3g}"
        ax.annotate(f" {ratios[place]:.2f}{over}", (contenders[name]["ratio_max"], place), va="center", fontsize=7)
    ax.set_xscale("log")
    least, most = min(ratios), max(figures["ratio_max"] for figures in contenders.values())
    ax.set_xlim(min(least, 1) / 1.6, most * 2.6)
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.set_title(group, fontsize=9, loc="left")
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)


def main(names: list[str]) -> None:
    """Draw ``benchmarks/results/NAME.json`` (all by default) into ``benchmarks/figures/NAME.png``."""
    for path in [RESULTS / f"{name}.json" for name in names] or sorted(RESULTS.glob("*.json")):
        about = json.loads(Path(path).read_text(encoding="utf-8"))
        print(write_whole(FIGURES / f"{path.stem}.png", draw(about)).relative_to(ROOT))


if __name__ == "__main__":
    main(sys.argv[1:])
