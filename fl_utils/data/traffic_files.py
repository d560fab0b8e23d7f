"""The files in which traffic speeds and road graphs are published: pandas' HDF5, a pickle of Python 2, csv tables.

Layouts: Li et al. 2018 (DCRNN; METR-LA, PEMS-BAY) and Zhao et al. 2019 (T-GCN; Los-loop, SZ-taxi). Every reader raises
ValueError naming the file and what is wrong with it, down to row and column in a csv.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fl_utils.data import formats

KERNEL_THRESHOLD = 0.1  # smaller weights become 0 (Li et al. 2018, section 4)


def hdf5(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Speeds float64 [T, sensors], times datetime64[ns] [T] and sensor ids of a table as pandas' "fixed" format has it.

    One group holds axis0 (sensor ids, text or whole numbers), axis1 (times as integers), block0_items (ids in the order
    of the values) and block0_values [T, sensors]; its name does not matter (metr-la.h5 has "df", pems-bay.h5 "speed").
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            groups = [name for name, group in file.items() if isinstance(group, h5py.Group) and "axis0" in group]
            if len(groups) != 1:
                found = ", ".join(groups or file) or "nothing"
                raise ValueError(f"{path}: holds {found}; want one group with axis0, axis1 and block0_values")
            group = file[groups[0]]
            if more := [name for name in group if name.startswith("block") and not name.startswith("block0_")]:
                raise ValueError(f"{path}: {groups[0]} holds {more[0]}; want one block, of floats: block0_values")
            columns, times, values = (group[name][()] for name in ("axis0", "axis1", "block0_values"))
            items = group["block0_items"][()] if "block0_items" in group else columns
            kind = group["axis1"].attrs.get("kind", b"datetime64")
    except (OSError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path}: not a table in HDF5, truncated or damaged: {error}") from error
    columns, items = [_text(id) for id in columns], [_text(id) for id in items]
    if values.dtype.kind not in "fiu" or values.shape != (len(times), len(items)):
        want = f"numbers of shape ({len(times)}, {len(items)})"
        raise ValueError(f"{path}: block0_values is {values.dtype} {values.shape}; want {want}, as axis1 and axis0 say")
    if times.dtype.kind != "i" or not _text(kind).startswith("datetime64"):
        raise ValueError(f"{path}: axis1 is {times.dtype} of kind {_text(kind)}; want times, as integers")
    if sorted(columns) != sorted(items):
        raise ValueError(f"{path}: axis0 and block0_items name different sensors")
    unit = _text(kind).removeprefix("datetime64").strip("[]") or "ns"
    place = {id: index for index, id in enumerate(items)}
    return values[:, [place[id] for id in columns]], times.astype(f"datetime64[{unit}]"), columns


def pickled_graph(path: Path) -> tuple[list[str], np.ndarray]:
    """Sensor ids and adjacency float32 [S, S] of a pickled (ids, index of each id, adjacency), as Python 2 wrote it.

    Nothing but arrays and plain values is admitted, so that the file cannot run code.
    """
    try:
        content = formats._Plain(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except Exception as error:  # pickle raises nearly anything on damaged input
        raise ValueError(f"{path}: not a pickled graph, or a damaged one: {type(error).__name__}: {error}") from error
    if not isinstance(content, list | tuple) or len(content) != 3 or not isinstance(content[2], np.ndarray):
        raise ValueError(f"{path}: a pickled {type(content).__name__}; want (sensor ids, index of each id, adjacency)")
    ids, index, adjacency = [_text(id) for id in content[0]], content[1], content[2]
    if adjacency.dtype.kind not in "fiu" or adjacency.shape != (len(ids), len(ids)):
        raise ValueError(f"{path}: {len(ids)} ids, adjacency {adjacency.dtype} {adjacency.shape}: want one row per id")
    if not isinstance(index, dict) or {_text(id): place for id, place in index.items()} != {
        id: place for place, id in enumerate(ids)
    }:
        raise ValueError(f"{path}: its index of ids does not number its {len(ids)} ids 0 to {len(ids) - 1}, in order")
    return ids, adjacency.astype(np.float32)


def distance_graph(path: Path, sensors: Sequence[str]) -> np.ndarray:
    """Adjacency float32 [S, S] of ``sensors``, in their order, from a csv of road distances: from, to, cost.

    A header may be there or not; rows of other sensors are passed over. The weight of a pair is :func:`gaussian_kernel`
    of its distance; a pair that is not listed is not connected, and a sensor is at distance 0 from itself.
    """
    place = {id: index for index, id in enumerate(sensors)}
    distances = np.full((len(sensors), len(sensors)), np.inf)
    listed = set()
    for number, row in enumerate(_rows(path), 1):
        if len(row) != 3:
            raise ValueError(f"{path}: row {number} has {len(row)} cells; want from, to, cost")
        origin, target = (_text(cell) for cell in row[:2])
        try:
            cost = float(row[2])
        except ValueError:
            if number == 1:
                continue  # the header
            raise ValueError(f"{path}: row {number}, column 3 (cost) is {row[2]!r}; want a distance") from None
        if not 0 <= cost < np.inf:
            raise ValueError(f"{path}: row {number}, column 3 (cost) is {row[2]!r}; want a distance from 0 up")
        if origin in place and target in place:
            distances[place[origin], place[target]] = cost
            listed |= {origin, target}
    if missing := [id for id in sensors if id not in listed]:
        raise ValueError(f"{path}: the graph lacks {_some(missing)} of the table's {len(sensors)} sensors")
    np.fill_diagonal(distances, 0)
    return gaussian_kernel(distances)


def gaussian_kernel(distances: np.ndarray, threshold: float = KERNEL_THRESHOLD) -> np.ndarray:
    """Weights float32 exp(-(d / sigma)^2) of ``distances`` [S, S] (inf: not connected), those below ``threshold`` 0.

    sigma is the standard deviation of all finite distances (Li et al. 2018, section 4).
    """
    known = np.isfinite(distances)
    sigma = distances[known].std() or 1.0  # only zeros: every weight is 1, whatever sigma
    weights = np.exp(-np.square(np.where(known, distances, np.inf) / sigma))
    return np.where(weights < threshold, 0, weights).astype(np.float32)


def sensor_list(path: Path) -> list[str]:
    """The ids of a text file that holds them separated by commas."""
    ids = [_text(cell) for row in _rows(path) for cell in row if cell.strip()]
    if not ids:
        raise ValueError(f"{path}: empty; want sensor ids separated by commas")
    return ids


def table(path: Path, header: bool) -> tuple[list[str], np.ndarray]:
    """The header's cells (none without) and numbers float64 [rows, columns] of a csv; an empty cell is NaN."""
    rows = _rows(path)
    names = [_text(cell) for cell in rows.pop(0)] if header and rows else []
    if not rows:
        raise ValueError(f"{path}: no rows of numbers" + (" under a header" if header else ""))
    width, numbers = len(names or rows[0]), []
    for number, row in enumerate(rows, 1 + header):
        if len(row) != width:
            short = " (is the file truncated?)" if number == len(rows) + header else ""
            raise ValueError(f"{path}: row {number} has {len(row)} cells; want {width}{short}")
        try:
            numbers.append([float(cell) if cell.strip() else np.nan for cell in row])
        except ValueError:
            column = next(n for n, cell in enumerate(row) if cell.strip() and not _is_number(cell))
            called = f" (sensor {names[column]})" if names else ""
            raise ValueError(
                f"{path}: row {number}, column {column + 1}{called} is {row[column]!r}; want a number"
            ) from None
    return names, np.array(numbers)


def _rows(path: Path) -> list[list[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a csv table: {error}") from error


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _text(id: object) -> str:
    return (id.decode("utf-8", "replace") if isinstance(id, bytes) else str(id)).strip()


def _some(ids: Sequence[str]) -> str:
    """At most three of ``ids``, and how many there are."""
    return f"{', '.join(ids[:3])}{f' and {len(ids) - 3} more' if len(ids) > 3 else ''}"
