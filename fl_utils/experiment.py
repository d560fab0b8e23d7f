"""What a notebook talks to: it seeds, records values beside the published ones, decides claims, and leaves a record.

    experiment = Experiment("O2", seed=seed, scale=scale)
    experiment.value("accuracy/fedavg/combined", [78.1, 77.6, 78.4])    # one per seed, in the published unit
    experiment.claim("O2.1", holds, "78.0 % against 74.2 % and 69.9 %")
    experiment.table(); experiment.verdicts(); experiment.record()

The record is an output of the notebook's last cell, in a MIME type of its own: an executed notebook carries everything
that a report needs.
"""

from __future__ import annotations

import html
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path

from fl_utils import papers, paths, probe

MIME = "application/vnd.fl-notebooks.record+json"
SCALES = ("embedded", "paper")
VERDICTS = {True: "holds", False: "does not hold", None: "not decided"}


@dataclass(frozen=True)
class Value:
    """One recorded value: the mean over ``seeds`` seeds with its ``spread`` (standard deviation), and its neighbour."""

    experiment: str
    metric: str
    value: float
    unit: str
    published: str | None
    gap: float | None
    where: str
    spread: float | None
    seeds: int


class Experiment:
    """One notebook's record of one or more experiments of one paper.

    ids: experiment ids such as "O2". seed: set for Python, NumPy and torch. scale: "embedded" or "paper".
    Raises ValueError on an unknown id or scale.
    """

    def __init__(self, *ids: str, seed: int, scale: str = "embedded"):
        if not ids:
            raise ValueError("no experiment id: give at least one, such as Experiment('O2', seed=0)")
        if scale not in SCALES:
            raise ValueError(f"scale is {scale!r}: want one of {', '.join(SCALES)}")
        if len({papers.paper_of(id) for id in ids}) > 1:
            raise ValueError(f"experiments {', '.join(ids)} belong to different papers: one notebook, one paper")
        self.ids, self.seed, self.scale = ids, seed, scale
        self.overrides = os.environ.get("FL_NOTEBOOKS_OVERRIDES", "")
        self.paper = papers.paper_of(ids[0])
        self._started = time.perf_counter()
        self._published = {id: papers.published(id) for id in ids}
        self._claims = {id: claim for experiment in ids for id, claim in papers.claims(experiment).items()}
        for id in ids:
            if not self._published[id] and not any(claim.experiment == id for claim in self._claims.values()):
                raise ValueError(f"experiment {id!r} has neither numbers nor claims in papers/{self.paper}/")
        self._values: dict[tuple[str, str], Value] = {}
        self._decided: dict[str, dict] = {}
        self._traffic: tuple[int, int] | None = None
        seed_everything(seed)

    def setup(self) -> None:
        """Print the scale of this run, its seed and the versions at work."""
        versions = ", ".join(f"{name} {version}" for name, version in _versions().items())
        print(f"scale: {self.label}; seed {self.seed}; {versions}")

    @property
    def label(self) -> str:
        """The scale, with the parameters that were changed for this run: ``paper (rounds=1)``."""
        return f"{self.scale} ({self.overrides})" if self.overrides else self.scale

    def value(
        self, metric: str, value: float | Sequence[float], unit: str | None = None, experiment: str | None = None
    ):
        """Record ``value`` (a number, or one per seed), in the published metric's unit.

        A metric that the paper does not have needs a ``unit``; so a mistyped one is an error (ValueError) and not a
        number without its neighbour. Returns the mean.
        """
        experiment = experiment or self.ids[0]
        known = self._published[experiment]
        row = known.get(metric)
        if row is None and unit is None:
            close = get_close_matches(metric, known, 3, 0.5) or list(known)[:3]
            raise ValueError(
                f"{experiment} publishes no {metric!r} (near: {', '.join(close)}); give unit= for one of ours"
            )
        if row is not None and unit not in (None, row.unit):
            raise ValueError(f"{metric!r} is published in {row.unit!r}, not in {unit!r}: give it in that unit")
        numbers = [float(v) for v in value] if isinstance(value, Sequence) else [float(value)]
        if not numbers or not all(math.isfinite(number) for number in numbers):
            raise ValueError(f"{metric!r} is {value}: want at least one number, all finite")
        mean = sum(numbers) / len(numbers)
        spread = math.sqrt(sum((n - mean) ** 2 for n in numbers) / (len(numbers) - 1)) if len(numbers) > 1 else None
        gap = None if row is None or row.number is None else mean - row.number
        self._values[experiment, metric] = Value(
            experiment,
            metric,
            mean,
            row.unit if row else unit,
            row.value if row else None,
            gap,
            row.where if row else "",
            spread,
            len(numbers),
        )
        return mean

    def claim(self, id: str, holds: bool, evidence: str) -> None:
        """Decide claim ``id`` and print the evidence: figures, and over how many seeds."""
        self._decide(id, bool(holds), evidence)

    def undecided(self, id: str, reason: str) -> None:
        """Leave claim ``id`` open and print why: this run was asked for less than the claim speaks of."""
        self._decide(id, None, reason)

    def _decide(self, id: str, holds: bool | None, evidence: str) -> None:
        if id not in self._claims:
            raise ValueError(f"claim {id!r}: papers/{self.paper}/claims.yaml has {', '.join(self._claims)}")
        if not evidence.strip():
            raise ValueError(f"claim {id!r}: a verdict needs its evidence in figures")
        self._decided[id] = {
            "id": id,
            "statement": self._claims[id].statement,
            "holds": holds,
            "evidence": evidence,
        }
        print(f"{id}: {evidence}")

    def traffic(self, bytes_up: int, bytes_down: int) -> None:
        """Record the bytes that clients sent and received, as the federation counted them."""
        self._traffic = (int(bytes_up), int(bytes_down))

    def table(self) -> None:
        """Show every recorded value beside its published one; no number of a reduced scale stands alone."""
        rows = []
        for experiment in self.ids:
            ours = [value for (id, _), value in self._values.items() if id == experiment]
            rows += [
                (
                    v.metric,
                    v.where,
                    v.published or "",
                    _with_spread(v),
                    v.unit,
                    _signed(v.gap),
                    self.label,
                    str(v.seeds),
                )
                for v in ours
            ]
        _show(["metric", "in the paper", "paper", "here", "unit", "gap", "scale", "seeds"], rows)

    def verdicts(self, *ids: str) -> None:
        """Print each claim (of ``ids``, where given) with its verdict: no machine changes it, but a speed's."""
        if unknown := set(ids) - set(self._claims):
            raise ValueError(f"claims {sorted(unknown)} are not of this notebook, which has {sorted(self._claims)}")
        for id, claim in self._claims.items():
            if ids and id not in ids:
                continue
            if id not in self._decided:
                raise ValueError(f"claim {id} is not decided: call claim({id!r}, holds, evidence) before")
            print(f"{id} {VERDICTS[self._decided[id]['holds']]}: {claim.statement}")

    def record(self) -> None:
        """Leave the record of this notebook in the output of its last cell; of a probe there is none."""
        if probe.account() is not None:
            return
        from IPython.display import display

        record = self.as_record()
        text = f"recorded {len(record['values'])} values and {len(record['claims'])} claims at scale {self.label}"
        display({MIME: record, "text/plain": text}, raw=True)

    def as_record(self) -> dict:
        """Everything that the report reads, as JSON carries it."""
        up, down = self._traffic or (None, None)
        return {
            "version": 1,
            "paper": self.paper,
            "experiments": list(self.ids),
            "scale": self.scale,
            "overrides": self.overrides,
            "seed": self.seed,
            "values": [asdict(value) for value in self._values.values()],
            "claims": list(self._decided.values()),
            "bytes_up": up,
            "bytes_down": down,
            "seconds": round(time.perf_counter() - self._started, 2),
            "peak_mb": round(peak_mb(), 1),
            "commit": commit(paths.ROOT),
            "versions": _versions(),
            "hardware": _hardware(),
        }


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def peak_mb() -> float:
    """The most memory this process has held, in MB (10^6 bytes)."""
    if sys.platform.startswith("linux"):  # ru_maxrss would count the process that started this one as well
        return high_water_mb("self")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def high_water_mb(pid: int | str) -> float:
    """The most memory that the running process ``pid`` has held, in MB, as Linux counts it.

    Raises OSError where there is no such process (or no Linux), StopIteration where it has no memory left.
    """
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def _versions() -> dict[str, str]:
    from importlib import metadata

    import torch

    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": metadata.version("numpy")}


def _hardware() -> str:
    import torch

    from fl_utils.executors import available_cores

    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{available_cores()} cores {platform.machine()}{gpu}"


def commit(root: Path) -> str:
    """The commit checked out at ``root``, with a + where tracked files differ from it; empty outside a checkout."""
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, timeout=10)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return head.stdout.strip() + "+" * (changed.returncode == 1) if head.returncode == 0 else ""


def _with_spread(value: Value) -> str:
    return _figure(value.value) + (f" ± {_figure(value.spread)}" if value.spread is not None else "")


def _figure(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}"


def _signed(gap: float | None) -> str:
    return "" if gap is None else f"{gap:+,.0f}" if abs(gap) >= 1000 else f"{gap:+.3g}"


def _show(header: list[str], rows: list[tuple[str, ...]]) -> None:
    """Display a table, as HTML where there is a browser and as aligned text where not."""
    from IPython.display import display

    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    text = "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, *rows]
    )
    cells = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    display({"text/html": f"<table><tr>{head}</tr>{cells}</table>", "text/plain": text}, raw=True)
