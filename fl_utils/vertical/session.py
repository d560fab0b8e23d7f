"""One vertical training from outside: both parties' processes started, given their own data, and heard out.

This is the experimenter's seat, who may see both sides to compare them; the parties themselves see only what
:mod:`fl_utils.vertical.hetero_nn` sends. Each gets a file of its own in a folder of its own.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from fl_utils import orders
from fl_utils.vertical.encryption import Counts
from fl_utils.vertical.joint import Terms

ROLES = ("features", "ratings")


class SessionFailed(RuntimeError):
    """No model came out. ``reports`` has each role's own account of why."""

    def __init__(self, reports: dict[str, dict]):
        self.reports = reports
        failed = {role: report.get("error") for role, report in reports.items() if not report.get("ok")}
        super().__init__("; ".join(f"party of {role} stopped: {error}" for role, error in failed.items()))


@dataclass(frozen=True)
class FeatureData:
    """The feature party's: float32 [rows, f], the test rows, and what names each row (int64), training rows first."""

    train: np.ndarray
    test: np.ndarray
    ids: np.ndarray
    seed: int = 1


@dataclass(frozen=True)
class RatingData:
    """The rating party's: pairs int64 [rows, 2], ratings float32 [rows], test pairs, the rows' names as above.

    model: arguments of :meth:`fl_utils.vertical.joint.RatingSide.draw`: users, items, embedding, hidden, mean.
    """

    train: np.ndarray
    ratings: np.ndarray
    test: np.ndarray
    ids: np.ndarray
    model: dict
    seed: int = 2


@dataclass
class Outcome:
    """What came of it. cpu_seconds and training_cpu_seconds: per role; messages: {(role, what): [how many, bytes]}.

    predicted: float32 [test rows]. losses: of each step. states: per role, arrays by name. trace: those after each
    step, where asked for. counts: ciphertext operations of both parties in training.
    """

    predicted: np.ndarray
    losses: list[float]
    states: dict[str, dict[str, np.ndarray]]
    trace: dict[str, list[dict[str, np.ndarray]]]
    cpu_seconds: dict[str, float]
    training_cpu_seconds: dict[str, float]
    training_seconds: float
    messages: dict[tuple[str, str], list[int]]
    counts: Counts
    peak_mb: dict[str, float] = field(default_factory=dict)

    @property
    def bytes_sent(self) -> dict[str, int]:
        """Bytes on the wire that each role sent, frames' own included."""
        return {role: sum(n for (who, _), (_, n) in self.messages.items() if who == role) for role in ROLES}


def train(
    terms: Terms,
    features: FeatureData,
    ratings: RatingData,
    *,
    trace: bool = False,
    timeout: float = 120.0,
    interference: Callable[[str, dict], None] = lambda role, job: None,
) -> Outcome:
    """Train ``terms`` between two processes, then predict the test rows.

    timeout: seconds that a party waits for the other's next message. interference: for tests, changes a role's orders.
    Raises SessionFailed where a party stopped, with both accounts, ValueError on data of the wrong shape.
    """
    _check(features, ratings)
    terms.check_rows(len(ratings.train))
    given = {
        "features": ({"train": features.train, "test": features.test, "ids": features.ids}, features.seed, {}),
        "ratings": (
            {"train": ratings.train, "ratings": ratings.ratings, "test": ratings.test, "ids": ratings.ids},
            ratings.seed,
            {"model": ratings.model},
        ),
    }
    secret = secrets.token_hex(32)
    with tempfile.TemporaryDirectory(prefix="fl-vertical-") as folder:
        processes, places = {}, {}
        try:
            for role, (arrays, _, _) in given.items():
                places[role] = Path(folder) / role
                places[role].mkdir()
                with (places[role] / "data.npz").open("wb") as handle:
                    np.savez(handle, **arrays)
                processes[role] = orders.start("fl_utils.vertical.party", places[role])
            orders.say(processes["features"], {"do": "listen"})
            address = orders.hear(processes["features"]).get("address")
            for role, (_, seed, more) in given.items():
                job = {"do": "train", "role": role, "terms": asdict(terms), "seed": seed, "secret": secret, **more}
                job |= {"data": str(places[role] / "data.npz"), "out": str(places[role] / "out.npz")}
                job |= {"address": address, "timeout": timeout, "trace": trace}
                interference(role, job)
                orders.say(processes[role], job)
            reports = {role: orders.hear(processes[role]) for role in ROLES}
        finally:
            for process in processes.values():
                process.kill()
                process.communicate()
        if not all(report.get("ok") for report in reports.values()):
            raise SessionFailed(reports)
        found = {role: _loaded(places[role] / "out.npz") for role in ROLES}
    return _outcome(reports, found)


def _check(features: FeatureData, ratings: RatingData) -> None:
    for who, data, width in (("features", features, None), ("ratings", ratings, 2)):
        for part in ("train", "test"):
            shape = getattr(data, part).shape
            if len(shape) != 2 or (width and shape[1] != width) or (part == "train" and not shape[0]):
                raise ValueError(f"{who}: {part} has shape {list(shape)}: want [rows, {width or 'features'}]")
        if len(data.ids) != len(data.train) + len(data.test):
            raise ValueError(f"{who}: {len(data.ids)} ids for {len(data.train)} + {len(data.test)} rows")
        if features.test.shape[1] != features.train.shape[1]:
            raise ValueError(f"features: {features.train.shape[1]} in training, {features.test.shape[1]} in the test")
    if len(ratings.ratings) != len(ratings.train):
        raise ValueError(f"ratings: {len(ratings.ratings)} for {len(ratings.train)} training rows")


def _loaded(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _outcome(reports: dict[str, dict], found: dict[str, dict[str, np.ndarray]]) -> Outcome:
    predicted = found["ratings"].pop("predicted", np.empty(0, np.float32))
    losses = found["ratings"].pop("losses").tolist()
    trace: dict[str, list[dict[str, np.ndarray]]] = {role: [] for role in ROLES}
    for role, arrays in found.items():
        for name in [name for name in arrays if name.startswith("step ")]:
            step, _, key = name.partition("/")
            at = int(step.removeprefix("step "))
            while len(trace[role]) <= at:
                trace[role].append({})
            trace[role][at][key] = arrays.pop(name)
    return Outcome(
        predicted,
        losses,
        found,
        trace,
        {role: report["cpu_seconds"] for role, report in reports.items()},
        {role: report["training_cpu_seconds"] for role, report in reports.items()},
        max(report["training_seconds"] for report in reports.values()),
        {(role, what): count for role, report in reports.items() for what, count in report["messages"].items()},
        sum((Counts(**report["training_counts"]) for report in reports.values()), Counts()),
        {role: report["peak_mb"] for role, report in reports.items()},
    )


def joined_state(features: dict[str, np.ndarray], ratings: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Both parties' weights under the names that the whole network has for them; W_A is the sum of the shares."""
    found = {f"auxiliary.{name.removeprefix('bottom.')}": value for name, value in features.items() if name != "share"}
    found |= {name: value for name, value in ratings.items() if name != "share"}
    weights = (features["share"] + ratings["share"]).T.astype(np.float32)
    return {name: torch.from_numpy(np.array(value)) for name, value in {**found, "interactive.weight": weights}.items()}
