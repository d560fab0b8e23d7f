"""Traffic speeds on a road graph: the published tables, and windows of them to learn a forecast from.

A reading of 0 stands for one that is missing, as in METR-LA; losses and errors leave it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from fl_utils.data import cards, traffic_files
from fl_utils.data.cards import Location
from fl_utils.data.traffic_files import _some

# T-GCN's pairs of csv tables: minutes between readings, time of the first, unit (Zhao et al. 2019, section 4.1)
TABLES = {"los_loop": (5, "2012-03-01T00:00", "mph"), "sz_taxi": (15, "2015-01-01T00:00", "km/h")}
NAMES = ("metr_la", "pems_bay", *TABLES)
DAY = 24 * 60  # minutes


@dataclass(frozen=True, eq=False)
class Traffic:
    """Readings of sensors on a road network.

    speeds: float32 [T, S] in ``unit``, 0 = missing. times: datetime64[m] [T], ``minutes`` apart.
    sensors: S ids. adjacency: float32 [S, S], the weight of the way from a row's sensor to a column's, 0 = none.
    places: float [S, 2], where each sensor stands (km), or None. Raises ValueError where these do not fit together.
    """

    speeds: np.ndarray
    times: np.ndarray
    sensors: tuple[str, ...]
    adjacency: np.ndarray
    minutes: int = 5
    places: np.ndarray | None = None
    unit: str = "mph"

    def __post_init__(self) -> None:
        count = len(self.sensors)
        if self.speeds.shape != (len(self.times), count):
            raise ValueError(
                f"speeds {self.speeds.shape}, {len(self.times)} times, {count} sensors: want one column each"
            )
        if self.adjacency.shape != (count, count):
            shape = " x ".join(map(str, self.adjacency.shape))
            raise ValueError(f"the graph is {shape}, the table has {count} sensors: want {count} x {count}")
        if len(set(self.sensors)) < count:
            twice = sorted({id for id in self.sensors if self.sensors.count(id) > 1})
            raise ValueError(f"the sensor ids {_some(twice)} occur more than once")
        for what, numbers in (("speed", self.speeds), ("weight of the graph", self.adjacency)):
            if wrong := np.argwhere(~((numbers >= 0) & np.isfinite(numbers)))[:1].tolist():
                row, column = wrong[0]
                found = f"{numbers[row, column]} in row {row + 1}, column {column + 1} (sensor {self.sensors[column]})"
                raise ValueError(f"{what} {found}: want a finite number from 0 up")

    def take(self, sensors: Sequence[int]) -> Traffic:
        """The table and the graph of some sensors, by their places in the table."""
        chosen = list(sensors)
        return replace(
            self,
            speeds=self.speeds[:, chosen],
            sensors=tuple(self.sensors[index] for index in chosen),
            adjacency=self.adjacency[np.ix_(chosen, chosen)],
            places=None if self.places is None else self.places[chosen],
        )

    def first(self, days: float) -> Traffic:
        """The first ``days`` of the table (0: all of it)."""
        if not 0 <= days < np.inf:
            raise ValueError(f"days is {days}: want a number from 0 (all) up")
        count = round(days * DAY / self.minutes) or len(self.times)
        return replace(self, speeds=self.speeds[:count], times=self.times[:count])


def load(name: str, data_dir: str | Path = "") -> Traffic:
    """The data set ``name`` (:data:`NAMES`) from ``data_dir``, in one of its card's layouts.

    The graph's sensors are matched to the table's columns by id, and one that only the graph has is passed over (the
    T-GCN pair has no ids in its graph: there the order is the table's). Times that are missing between others, such as
    the hour that PEMS-BAY loses to summer time, become missing readings. Raises DataNotFound where the data is not
    there, and ValueError naming the file that is damaged, does not fit the other, or has times that are not regular.
    """
    if name not in NAMES:
        raise ValueError(f"{name!r} is not a data set of traffic: there are {', '.join(NAMES)}")
    found = cards.locate(name, data_dir)
    try:
        return _pair(name, found) if name in TABLES else _official(found)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _pair(name: str, found: Location) -> Traffic:
    (minutes, start, unit), (speed_file, graph_file) = TABLES[name], found.files
    sensors, speeds = traffic_files.table(speed_file, header=True)
    _, adjacency = traffic_files.table(graph_file, header=False)
    times = np.datetime64(start, "m") + minutes * np.arange(len(speeds))
    return _checked(speed_file, graph_file, speeds, times, sensors, adjacency, minutes, unit)


def _official(found: Location) -> Traffic:
    speed_file, graph_file, *ids_file = found.files
    speeds, times, sensors = traffic_files.hdf5(speed_file)
    if found.layout.startswith("pickle"):
        ids, adjacency = traffic_files.pickled_graph(graph_file)
        place = {id: index for index, id in enumerate(ids)}
        if missing := [id for id in sensors if id not in place]:
            raise ValueError(f"{graph_file}: the graph lacks {_some(missing)} of the {len(sensors)} of {speed_file}")
        chosen = [place[id] for id in sensors]
        adjacency = adjacency[np.ix_(chosen, chosen)]
    else:
        if ids_file and (missing := sorted(set(sensors) - set(traffic_files.sensor_list(ids_file[0])))):
            raise ValueError(f"{ids_file[0]} lacks {_some(missing)} of the {len(sensors)} sensors of {speed_file}")
        adjacency = traffic_files.distance_graph(graph_file, sensors)
    speeds, times, minutes = _regular(speed_file, speeds, times)
    return _checked(speed_file, graph_file, speeds, times, sensors, adjacency, minutes)


def _regular(path: Path, speeds: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Speeds and times with a row of missing readings for every time left out, and the minutes between readings."""
    if len(times) < 2:
        raise ValueError(f"{path}: {len(times)} readings; want at least 2")
    minute = np.timedelta64(1, "m")
    steps = np.diff(times) / minute
    minutes = float(np.median(steps))
    wrong = np.flatnonzero((steps <= 0) | (steps % max(minutes, 1) != 0))
    if minutes < 1 or minutes % 1 or DAY % minutes or len(wrong):
        row = int(wrong[0]) if len(wrong) else 0
        found = (
            f"{times[row + 1].astype('datetime64[s]')} in row {row + 2} follows {times[row].astype('datetime64[s]')}"
        )
        raise ValueError(f"{path}: {found}; want rising times, a whole number of minutes apart, gaps a multiple of it")
    places = np.concatenate([[0], np.cumsum(steps / minutes)]).astype(np.int64)
    if places[-1] + 1 > 2 * len(times):
        raise ValueError(
            f"{path}: {len(times)} readings between {times[0]} and {times[-1]}, every {minutes:.0f} minutes: "
            "more are missing than there are"
        )
    whole = np.zeros((places[-1] + 1, speeds.shape[1]), np.float32)
    whole[places] = speeds
    return whole, times[0].astype("datetime64[m]") + int(minutes) * np.arange(len(whole)), int(minutes)


def _checked(speed_file, graph_file, speeds, times, sensors, adjacency, minutes, unit="mph") -> Traffic:
    speeds = np.nan_to_num(speeds, nan=0.0, posinf=np.inf, neginf=-np.inf).astype(np.float32)
    try:
        return Traffic(speeds, times, tuple(sensors), adjacency.astype(np.float32), minutes, unit=unit)
    except ValueError as error:
        raise ValueError(f"{speed_file} and {graph_file.name}: {error}") from None


class Part(NamedTuple):
    """Windows of one part of the time.

    x: float32 [N, history, S, 2], standardised speed (missing: 0, the mean) and time of day in [0, 1).
    y: float32 [N, horizon, S], speeds as they are (missing: 0). at: int64 [N], y's first row in the table.
    """

    x: torch.Tensor
    y: torch.Tensor
    at: torch.Tensor


class Windows(NamedTuple):
    """The three parts, the mean and deviation of the training part's speeds, and ``lessons``: the training windows' x
    with the horizon behind it [N, history + horizon, S, 2], for a decoder that is shown the truth while it learns."""

    train: Part
    validation: Part
    test: Part
    mean: float
    std: float
    lessons: torch.Tensor


def windows(
    traffic: Traffic,
    history: int = 12,
    horizon: int = 12,
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    stride: int = 1,
) -> Windows:
    """Every ``history`` readings with the ``horizon`` after them (Li et al. 2018, section 4), cut by time.

    The time is cut first, so that no window reaches from one part into another; mean and deviation are those of the
    training part's known readings. ``stride``: readings between the beginnings of two training windows. All tensors are
    views of one table, so windows cost no memory until a batch is gathered. Raises ValueError where a part is too short
    for one window, or the training part has no two different readings.
    """
    for name, value in (("history", history), ("horizon", horizon), ("stride", stride)):
        if value < 1:
            raise ValueError(f"{name} is {value}: want a whole number of readings from 1 up")
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions are {list(fractions)}: want three shares above 0 that add up to 1")
    length, count = history + horizon, len(traffic.times)
    ends = np.rint(np.cumsum([0, *fractions]) * count).astype(int)
    for name, share, size in zip(("training", "validation", "test"), fractions, np.diff(ends), strict=True):
        if size < length:
            raise ValueError(
                f"the {name} part has {size} readings ({share:.0%} of {count}): "
                f"want at least {length}, a history of {history} and a horizon of {horizon}"
            )
    known = traffic.speeds[: ends[1]][traffic.speeds[: ends[1]] > 0].astype(np.float64)
    if len(known) == 0 or known.std() == 0:
        raise ValueError(f"the training part has {len(known)} known readings, no two of them different")
    mean, std = float(known.mean()), float(known.std())
    standard = np.where(traffic.speeds > 0, (traffic.speeds - mean) / std, 0)
    days = ((traffic.times - traffic.times.astype("datetime64[D]")) / np.timedelta64(DAY, "m"))[:, None]
    features = torch.from_numpy(np.stack([standard, np.broadcast_to(days, standard.shape)], -1).astype(np.float32))
    speeds = torch.from_numpy(np.ascontiguousarray(traffic.speeds, np.float32))

    def part(begin: int, end: int, step: int = 1) -> tuple[Part, torch.Tensor]:
        x = features[begin:end].unfold(0, length, step).permute(0, 3, 1, 2)
        y = speeds[begin + history : end].unfold(0, horizon, step).permute(0, 2, 1)
        at = torch.arange(begin + history, end - horizon + 1, step)
        return Part(x[:, :history], y, at), x

    (train, lessons), (validation, _), (test, _) = (
        part(begin, end, stride if number == 0 else 1) for number, (begin, end) in enumerate(pairwise(ends))
    )
    return Windows(train, validation, test, mean, std, lessons)


def districts(traffic: Traffic) -> tuple[Traffic, Traffic]:
    """One network as two: each side connected, both as equal in size as that allows (spectral bisection, Fiedler 1973).

    The sensors of the largest connected piece are put in the order of the Fiedler vector of the graph, taken as
    undirected, and cut where both sides hold together, nearest to the middle; such a cut always exists where the vector
    changes its sign. Every smaller piece goes, whole, to the side that has fewer sensors. Raises ValueError for fewer
    than four sensors or a graph without connections.
    """
    from scipy.sparse.csgraph import connected_components

    weights = np.maximum(traffic.adjacency, traffic.adjacency.T).astype(np.float64)
    np.fill_diagonal(weights, 0)
    _, piece = connected_components(weights > 0, directed=False)
    sizes = np.bincount(piece)
    if len(traffic.sensors) < 4 or sizes.max() < 4:
        raise ValueError(
            f"{len(traffic.sensors)} sensors, {sizes.max()} of them connected: want at least 4 to cut a network in two"
        )
    largest = np.flatnonzero(piece == sizes.argmax())
    own = weights[np.ix_(largest, largest)]
    _, vectors = np.linalg.eigh(np.diag(own.sum(1)) - own)
    order = largest[np.argsort(vectors[:, 1] * np.sign(vectors[0, 1] or 1), kind="stable")]

    def whole(side: np.ndarray) -> bool:
        return connected_components(weights[np.ix_(side, side)] > 0, directed=False)[0] == 1

    middle = len(order) / 2
    cuts = sorted(range(2, len(order) - 1), key=lambda cut: (abs(cut - middle), cut))
    cut = next((cut for cut in cuts if whole(order[:cut]) and whole(order[cut:])), None)
    if cut is None:
        raise ValueError(f"the graph of {len(order)} sensors falls apart wherever it is cut in two")
    sides = [list(order[:cut]), list(order[cut:])]
    for number in np.argsort(-sizes, kind="stable")[1:]:
        min(sides, key=len).extend(np.flatnonzero(piece == number))
    return traffic.take(sorted(sides[0])), traffic.take(sorted(sides[1]))
