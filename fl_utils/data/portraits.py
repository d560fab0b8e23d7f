"""Portraits with gender and age (Hu et al. 2020, appendix): All-Age-Faces, APPA-REAL and UTKFace as their authors lay
them out. Portraits that are drawn instead are in :mod:`fl_utils.data.portrait_drawing`."""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fl_utils.data import fetch, images
from fl_utils.data.cards import Location
from fl_utils.data.examples import Examples

TARGETS = ("gender", "age")
GENDERS = ("female", "male")  # as All-Age-Faces numbers them
OLDEST = 120
ALL_AGE_FACE = re.compile(r"(\d{5})A(\d{2})")
FIRST_MALE, LAST_ID = 7381, 13321  # All-Age-Faces: serial numbers below are female
SPLITS = ("train", "valid", "test")
Labelled = tuple[Path, int, int]  # a picture, its gender, its age


@dataclass(frozen=True)
class Portraits:
    """N portraits: ``x`` uint8 [N, 3, size, size], ``gender`` int64 [N] (0 female, 1 male), ``age`` int64 [N], years.

    Raises ValueError where these do not fit together.
    """

    x: torch.Tensor
    gender: torch.Tensor
    age: torch.Tensor

    def __post_init__(self) -> None:
        for name in TARGETS:
            labels = getattr(self, name)
            if labels.dtype != torch.int64 or labels.shape != (len(self.x),):
                raise ValueError(f"{name} is {labels.dtype} {list(labels.shape)}, want torch.int64 [{len(self.x)}]")

    def __len__(self) -> int:
        return len(self.x)

    def examples(self, target: str, age_edges: Sequence[int] = (), who: str = "portraits") -> Examples:
        """The portraits with ``target`` as label: "gender", or "age" as its band (:func:`bands`).

        Raises ValueError, naming ``who``, on another target, on edges that are none, and where all are of one class.
        """
        if target not in TARGETS:
            raise ValueError(f"target is {target!r}: want one of {', '.join(map(repr, TARGETS))}")
        y = self.gender if target == "gender" else bands(self.age, age_edges)
        if len(y.unique()) < 2:
            edges = f" with age_edges {list(age_edges)}" if target == "age" else ""
            raise ValueError(f"{who}: {len(y)} examples, all of one class of {target}{edges}: want at least two")
        return Examples(self.x, y)


def bands(age: torch.Tensor, edges: Sequence[int]) -> torch.Tensor:
    """The band of each ``age`` (int64 [N], years), int64 [N] in 0 .. len(edges): how many ``edges`` it has reached.

    ``edges`` are the ages at which a new band begins: 20, 40 make 0-19, 20-39 and 40 and older; 1, 2, ..., 100 make a
    class of each year, 101 in all. Raises ValueError unless they are ascending whole numbers from 1 up.
    """
    _check_edges(edges)
    return torch.from_numpy(np.searchsorted(np.asarray(edges), age.numpy(), side="right").astype(np.int64))


def midpoints(edges: Sequence[int]) -> torch.Tensor:
    """The mean of the whole years in each band, float32 [len(edges) + 1]; the last is as wide as the one before."""
    _check_edges(edges)
    starts = np.array([0, *edges])
    widths = np.diff(starts)
    return torch.from_numpy((starts + (np.append(widths, widths[-1]) - 1) / 2).astype(np.float32))


def _check_edges(edges: Sequence[int]) -> None:
    whole = all(isinstance(edge, int | np.integer) and not isinstance(edge, bool) for edge in edges)
    if not len(edges) or not whole or edges[0] < 1 or (np.diff(edges) < 1).any():
        raise ValueError(f"age_edges are {list(edges)}: want ascending whole numbers of years from 1 up, at least one")


def load(
    name: str, data_dir: str | Path = "", size: int = 64, limit: int | None = None, seed: int = 0
) -> dict[str, Portraits]:
    """The portraits of data set ``name``, all official splits together, as one party of that name.

    all_age_faces: the aligned faces, gender and age by file name; where the lists in "image sets" lie beside them, they
    must agree. appa_real: the cropped and aligned faces of train, valid and test with their real age, gender from
    allcategories_*.csv. utkface: gender and age by file name; the few official names that lack a field are left out,
    with a warning that counts them.

    ``size``: height and width in pixels, bilinear with antialiasing. ``limit``: at most so many, drawn by ``seed``, in
    the order of the whole. Raises ValueError naming the file for a damaged picture, a picture without a label, a list
    that contradicts the names and a table without the columns; DataNotFound where ``data_dir`` lacks the data set
    (no registry package carries any of these).
    """
    if name not in LOADERS:
        raise ValueError(f"{name!r} is not a data set of portraits: there are {', '.join(LOADERS)}")
    if size < 1:
        raise ValueError(f"size is {size}, want at least 1 pixel")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}, want at least 1 portrait")
    found = fetch.obtain(name, data_dir)
    labelled = LOADERS[name](found)
    if not labelled:
        raise ValueError(f"{found.root}: no portrait of {name} with a label")
    chosen = [labelled[index] for index in images._Draw(limit, seed)(len(labelled)).tolist()]
    x = np.empty((len(chosen), 3, size, size), dtype=np.uint8)
    for row, (path, _, _) in enumerate(chosen):
        x[row] = images._rgb(path.read_bytes(), str(path), size)
    _, gender, age = zip(*chosen, strict=True)
    return {name: Portraits(torch.from_numpy(x), torch.tensor(gender), torch.tensor(age))}


def _pictures(found: Location) -> list[Path]:
    return [path for path in found.files if images.PICTURE.search(path.name)]


def _all_age_faces(found: Location) -> list[Labelled]:
    labelled = []
    for path in _pictures(found):
        match = ALL_AGE_FACE.fullmatch(path.stem)
        if not match or int(match[1]) > LAST_ID:
            raise ValueError(
                f"{path}: no label in its name: want a serial number from 00000 to {LAST_ID}, 'A' and the age in two "
                "digits, such as 00042A07.jpg"
            )
        labelled.append((path, int(int(match[1]) >= FIRST_MALE), int(match[2])))
    if labelled:
        for name in ("train.txt", "val.txt"):
            _check_list(labelled[0][0].parent.parent / "image sets" / name)
    return labelled


def _check_list(path: Path) -> None:
    """Lines such as ``00042A07.jpg 0`` (or without .jpg), 0 female and 1 male, must say what the names say."""
    if not path.is_file():
        return
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        match = re.fullmatch(ALL_AGE_FACE.pattern + r"(?:\.jpg)?\s+([01])", line.strip())
        if not match:
            raise ValueError(f"{path}, line {number}: {line.strip()[:60]!r}; want a line such as '00042A07.jpg 0'")
        by_name = int(int(match[1]) >= FIRST_MALE)
        if int(match[3]) != by_name:
            raise ValueError(
                f"{path}, line {number}: {line.strip()!r} says {GENDERS[int(match[3])]}, its serial number "
                f"{GENDERS[by_name]} (female up to {FIRST_MALE - 1:05}, male from {FIRST_MALE:05})"
            )


def _appa_real(found: Location) -> list[Labelled]:
    tables = {path.name: path for path in found.files if path.suffix == ".csv"}
    labelled, absent = [], 0
    for split in SPLITS:
        ages = _column(tables[f"gt_avg_{split}.csv"], "file_name", "real_age", _age)
        genders = _column(tables[f"allcategories_{split}.csv"], "file", "gender", _gender)
        pictures = [path for path in _pictures(found) if path.parent.name == split]
        for path in pictures:
            key = path.name.removesuffix("_face.jpg").removesuffix(".jpg")
            for labels, table in ((ages, f"gt_avg_{split}.csv"), (genders, f"allcategories_{split}.csv")):
                if key not in labels:
                    raise ValueError(f"{path}: no label: {tables[table]} has no row of {key}.jpg")
            labelled.append((path, genders[key], ages[key]))
        absent += len(ages) - len(pictures)
    if absent:
        warnings.warn(f"{found.root}: {absent} rows of gt_avg_*.csv have no picture here", stacklevel=4)
    return labelled


def _column(path: Path, key: str, column: str, read: Callable[[str], int]) -> dict[str, int]:
    """``column`` of a table by its column ``key`` (a file's name, taken without .jpg)."""
    table = csv.DictReader(io.StringIO(_text(path)), skipinitialspace=True)
    if missing := [name for name in (key, column) if name not in (table.fieldnames or [])]:
        raise ValueError(f"{path}: no column {' and '.join(missing)}: it has {', '.join(table.fieldnames or ['none'])}")
    values: dict[str, int] = {}
    for row in table:
        try:
            name, value = (row[key] or "").removesuffix(".jpg"), read(row[column] or "")
        except ValueError as error:
            raise ValueError(f"{path}, line {table.line_num}: {column} is {row[column]!r}, want {error}") from None
        if values.setdefault(name, value) != value:
            raise ValueError(f"{path}, line {table.line_num}: a second and another {column} of {name}.jpg")
    return values


def _age(text: str) -> int:
    if not re.fullmatch(r"\d{1,3}(\.0*)?", text.strip()) or float(text) > OLDEST:
        raise ValueError(f"whole years from 0 to {OLDEST}")
    return int(float(text))


def _gender(text: str) -> int:
    if text.strip().lower() not in GENDERS:
        raise ValueError(" or ".join(GENDERS))
    return GENDERS.index(text.strip().lower())


def _utkface(found: Location) -> list[Labelled]:
    labelled: dict[str, Labelled] = {}
    lacking = []
    for path in _pictures(found):
        stem = path.name.removesuffix(".jpg").removesuffix(".chip").removesuffix(".jpg")
        fields = stem.split("_")
        if (2 <= len(fields) < 4 and fields[0].isdecimal()) or (len(fields) == 4 and "" in fields):
            lacking.append(path.name)
            continue
        match = re.fullmatch(r"(\d{1,3})_([01])_([0-4])_\d.*", stem)
        if not match or int(match[1]) > OLDEST:
            raise ValueError(
                f"{path}: no label in its name: want [age]_[gender]_[race]_[date&time].jpg, age 0 to {OLDEST}, gender "
                "0 or 1, race 0 to 4"
            )
        if stem not in labelled or path.name.endswith(".chip.jpg"):  # the aligned one, where both lie here
            labelled[stem] = (path, 1 - int(match[2]), int(match[1]))
    if lacking:
        warnings.warn(
            f"{found.root}: left out {len(lacking)} pictures whose names lack a field, such as {lacking[0]}",
            stacklevel=4,
        )
    return list(labelled.values())


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text in UTF-8: {error.reason} at byte {error.start}") from None


LOADERS: dict[str, Callable[[Location], list[Labelled]]] = {
    "all_age_faces": _all_age_faces,
    "appa_real": _appa_real,
    "utkface": _utkface,
}
