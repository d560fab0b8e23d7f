"""Handwritten characters in official formats, with their writers: CASIA-HWDB, HIT-OR3C, Chinese MNIST, Chars74K.

Every loader gives grey images with background 0 and ink up to 255, whatever the format has: so parties can share a
model. A file's headers are all checked before any of its pictures is made.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import string
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fl_utils.data import fetch, hwdb
from fl_utils.data.cards import Location
from fl_utils.data.examples import Examples
from fl_utils.data.hwdb import Contents

ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase  # Chars74K's Sample001 to Sample062
NUMERALS = "零一二三四五六七八九十百千万亿"  # Chinese MNIST's codes 1 to 15
Row = tuple[int, int, int, str]  # writer, label from 0, sample, name of the file
DAMAGE = (EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error, gzip.BadGzipFile)


@dataclass(frozen=True)
class _Asked:
    """The arguments of :func:`load`, checked."""

    size: int
    classes: int
    writers: int
    seed: int

    def __post_init__(self) -> None:
        if self.size < 8:
            raise ValueError(f"size is {self.size}: want at least 8 pixels")
        if self.classes < 0 or self.classes == 1:
            raise ValueError(f"classes is {self.classes}: want 0 (all), or at least 2")
        if self.writers < 0:
            raise ValueError(f"writers is {self.writers}: want 0 (all), or at least 1 per party")

    def draw(self, writers: Sequence[int]) -> list[int]:
        """The writers kept of one party, sorted: a function of the seed alone."""
        every = sorted(set(writers))
        if not self.writers or self.writers >= len(every):
            return every
        return sorted(np.random.default_rng(self.seed).permutation(every)[: self.writers].tolist())

    def first(self, available: int, name: str) -> int:
        """How many classes are kept of those ``available``."""
        if self.classes > available:
            raise ValueError(
                f"classes is {self.classes}: {name} has {available} here; want 0 (all) or 2 to {available}"
            )
        return self.classes or available

    def blank(self, count: int) -> np.ndarray:
        """``count`` images of background, uint8 [count, 1, size, size]."""
        return np.zeros((count, 1, self.size, self.size), dtype=np.uint8)


def load(
    name: str, data_dir: str | Path = "", size: int = 64, classes: int = 0, writers: int = 0, seed: int = 0
) -> dict[str, Examples]:
    """The characters of data set ``name`` below ``data_dir``, by party.

    "casia_hwdb" -> casia; "hit_or3c" -> hit; "chinese_mnist" -> first, second: its writers, halved by seed 0 whatever
    ``seed`` is; "chars74k" -> fnt (fonts), hnd (hands); "chars74k_strokes" -> hnd, drawn from pen trajectories.
    x: uint8 [N, 1, size, size], background 0, ink up to 255. y: int64 [N]. groups: int64 [N], the writer or font.

    Labels: of casia_hwdb and hit_or3c, GB2312's level 1 in the order of its codes, numbered from 0 over those of the
    3,755 characters that occur; "casia_hwdb+hit_or3c" loads both with one numbering, over those that both have.
    Chinese MNIST: its code - 1. Chars74K: 0-9, A-Z, a-z. ``classes``: the first so many of them, 0 = all. ``writers``:
    at most so many per party, drawn by ``seed``, 0 = all.

    Raises ValueError, one line that names the file, where one is damaged; on arguments that the data cannot meet; and
    where a party is left with one class. Raises DataNotFound where ``data_dir`` lacks the data set.
    """
    names = name.split("+")
    for one in names:
        if one not in NAMES:
            raise ValueError(f"{one!r} is not a data set of handwriting: there are {', '.join(NAMES)}")
    if len(names) > 1 and not (set(names) == GB2312.keys() and len(names) == len(GB2312)):
        raise ValueError(f"{name!r}: only {' and '.join(GB2312)} share their characters; load the others one by one")
    asked = _Asked(size, classes, writers, seed)
    found = {one: fetch.obtain(one, data_dir) for one in names}
    parties = _gb2312(found, asked) if names[0] in GB2312 else LOADERS[name](found[name], asked)
    for party, examples in parties.items():
        if len(examples.y.unique()) < 2:
            raise ValueError(
                f"{name}: party {party} is left with one class by classes={classes} and writers={writers}; want two"
            )
    return parties


def _gb2312(found: Mapping[str, Location], asked: _Asked) -> dict[str, Examples]:
    """Sets in GB2312's characters, with the numbering that they have in common."""
    with ExitStack() as stack:
        sets = {}
        for name, location in found.items():
            party, index = GB2312[name]
            sets[party] = index(stack.enter_context(_opened(location)), location.files, asked.draw)
        occurring = [np.unique(np.concatenate([file.places for file in files])) for files in sets.values()]
        shared = [int(place) for place in occurring[0] if place >= 0 and all(place in places for places in occurring)]
        if not shared:
            raise ValueError(f"{' and '.join(found)}: no character of GB2312's level 1{' in both' * (len(found) > 1)}")
        kept = shared[: asked.first(len(shared), " and ".join(found))]
        labels = np.full(hwdb.CHARACTERS + 1, -1, dtype=np.int64)  # the last stands for every other character
        labels[kept] = np.arange(len(kept))
        return {party: _filled(files, labels, asked) for party, files in sets.items()}


def _filled(files: Sequence[hwdb.File], labels: np.ndarray, asked: _Asked) -> Examples:
    y = [labels[file.places] for file in files]
    chosen = [np.flatnonzero(own >= 0) for own in y]
    x, row = asked.blank(sum(map(len, chosen))), 0
    for file, numbers in zip(files, chosen, strict=True):
        for picture in file.pictures(numbers):
            _frame(picture, x[row, 0], _margin(asked.size))
            row += 1
    groups = np.repeat([file.writer for file in files], [len(numbers) for numbers in chosen])
    y = np.concatenate([own[numbers] for own, numbers in zip(y, chosen, strict=True)])
    return _examples(x, y, groups)


def _chinese_mnist(found: Location, asked: _Asked) -> dict[str, Examples]:
    with _opened(found) as contents:
        table = _table(contents, r"input_(?P<writer>\d+)_(?P<sample>\d+)_(?P<label>\d+)\.jpg", NUMERALS)
        suites = np.random.default_rng(0).permutation(sorted({writer for writer, *_ in table}))
        if len(suites) < 2:
            raise ValueError(f"{found.root}: one suite (writer); want at least 2, for two parties of disjoint writers")
        half = (len(suites) + 1) // 2
        parties = {"first": set(suites[:half].tolist()), "second": set(suites[half:].tolist())}
        cut = {party: [row for row in table if row[0] in own] for party, own in parties.items()}
        return {party: _pictures(rows, contents, asked, NUMERALS, party) for party, rows in cut.items()}


def _chars74k(found: Location, asked: _Asked) -> dict[str, Examples]:
    with _opened(found) as contents:
        parties = {}
        for party, folder in (("fnt", "Fnt"), ("hnd", "Hnd/Img")):
            table = _table(
                contents, rf"{folder}/Sample(?P<label>\d+)/img(?P<sample>\d+)-(?P<writer>\d+)\.png", ALPHABET
            )
            parties[party] = _pictures(table, contents, asked, ALPHABET, party, crop=party == "hnd")
        return parties


def _table(contents: Contents, pattern: str, alphabet: str) -> list[Row]:
    """Every file that ``pattern`` knows, sorted."""
    end, rows = re.compile(rf"(?:^|[/ ]){pattern}$"), []
    for name in contents:
        if match := end.search(name.replace("\\", "/")):
            label = int(match["label"])
            if not 1 <= label <= len(alphabet):
                raise ValueError(f"{name}: class {label}, want 1 to {len(alphabet)}")
            rows.append((int(match["writer"]), label - 1, int(match["sample"]), name))
    return sorted(rows)


def _pictures(
    table: list[Row], contents: Contents, asked: _Asked, alphabet: str, party: str, crop: bool = False
) -> Examples:
    """The pictures of one party, decoded: whole, or with ``crop`` cut to their ink and scaled by writer."""
    classes = asked.first(len(alphabet), party)
    if missing := sorted(set(range(classes)) - {label for _, label, *_ in table}):
        raise ValueError(
            f"party {party}: no picture of class {missing[0] + 1} ({alphabet[missing[0]]!r}): {len(missing)} of "
            f"{classes} classes are missing; with classes the first ones are taken"
        )
    writers = set(asked.draw([writer for writer, *_ in table]))
    rows = [row for row in table if row[0] in writers and row[1] < classes]
    x, y, groups = asked.blank(len(rows)), [row[1] for row in rows], [row[0] for row in rows]
    if not crop:
        for image, (*_, name) in zip(x, rows, strict=True):
            _frame(_decoded(contents[name](), name), image[0], margin=0)
        return _examples(x, y, groups)
    cut = [_cropped(_decoded(contents[name](), name), name, asked.size) for *_, name in rows]
    for image, picture, unit in zip(x, cut, _units([max(part.shape) for part in cut], groups), strict=True):
        _frame(picture, image[0], _margin(asked.size), unit)
    return _examples(x, y, groups)


def _decoded(data: bytes, name: str) -> np.ndarray:
    """A picture file as grey, ink high: most of a picture's edge is background. Raises ValueError naming it."""
    from PIL import Image

    try:
        with Image.open(BytesIO(data), formats=("JPEG", "PNG")) as picture:
            grey = np.asarray(picture.convert("L"))
    except Exception as error:  # Pillow raises nearly anything on damaged input
        raise ValueError(f"{name}: not a usable picture: {error}") from error
    edge = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    return ~grey if np.median(edge) > 127 else grey


def _cropped(grey: np.ndarray, name: str, size: int) -> np.ndarray:
    """A picture cut to its ink, after it was shrunk by a whole number to no less than 4 ``size``."""
    from PIL import Image

    grey = np.asarray(Image.fromarray(grey).reduce(max(1, min(grey.shape) // (4 * size))))
    ink = grey > max(int(grey.max()) // 4, 1)
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    if not len(rows):
        raise ValueError(f"{name}: not a usable picture: it is blank")
    return grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _units(sides: Sequence[float], writers: Sequence[int]) -> np.ndarray:
    """The length that fills the frame, of each writer (0.9 quantile of his ``sides``): so an o stays below an O."""
    sides, writers = np.asarray(sides, dtype=np.float64), np.asarray(writers)
    of = {writer: np.quantile(sides[writers == writer], 0.9) for writer in np.unique(writers).tolist()}
    return np.array([of[writer] for writer in writers.tolist()])


def _strokes(found: Location, asked: _Asked) -> dict[str, Examples]:
    (path,) = found.files
    try:
        letters = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: truncated, or no JSON: {error}") from error
    alphabet = ALPHABET[: asked.first(len(ALPHABET), "chars74k_strokes")]
    if not isinstance(letters, dict) or not all(letters.get(c) and isinstance(letters[c], list) for c in alphabet):
        raise ValueError(f"{path}: want {{'0': [letterform, ...], '1': ...}} with all of {alphabet}")
    writers = asked.draw([writer for letter in alphabet for writer in range(len(letters[letter]))])
    rows = [
        (writer, label, _trajectories(letters[letter][writer], f"{path}: letterform {writer} of {letter!r}"))
        for writer in writers
        for label, letter in enumerate(alphabet)
        if writer < len(letters[letter])
    ]
    x, groups = asked.blank(len(rows)), [row[0] for row in rows]
    sides = [np.ptp(np.concatenate(strokes), axis=0).max() for *_, strokes in rows]
    for image, (*_, strokes), unit in zip(x, rows, _units(sides, groups), strict=True):
        image[0] = draw(strokes, asked.size, unit)
    return {"hnd": _examples(x, [row[1] for row in rows], groups)}


def _trajectories(form: Any, name: str) -> list[np.ndarray]:
    try:
        strokes = [np.array(stroke, dtype=np.float64) for stroke in form]
    except (TypeError, ValueError):
        strokes = []
    if not strokes or not all(s.ndim == 2 and s.shape[1] == 2 and len(s) and np.isfinite(s).all() for s in strokes):
        raise ValueError(f"{name}: want at least one stroke, each a list of points [x, y]")
    return strokes


def draw(strokes: Sequence[np.ndarray], size: int, unit: float = 0.0, pen: float = 0.08, finer: int = 4) -> np.ndarray:
    """Pen trajectories as an image, uint8 [size, size]: background 0, ink 255, the character in the middle.

    strokes: at least one, each points (x to the right, y downwards), float [n, 2]. unit: a length that shall fill the
    frame; a longer character is shrunk to fit. pen: its breadth, in parts of ``size``. finer: drawn so much larger and
    then averaged.
    """
    from PIL import Image, ImageDraw

    points = np.concatenate(strokes)
    low, high = points.min(0), points.max(0)
    breadth, large = max(1, round(pen * size * finer)), size * finer
    scale = (large - 2 * _margin(size) * finer - breadth) / max(unit, *(high - low), 1e-9)
    image = Image.new("L", (large, large))
    canvas, radius = ImageDraw.Draw(image), breadth / 2
    for stroke in strokes:
        path = (stroke - (low + high) / 2) * scale + large / 2
        canvas.line([tuple(point) for point in path], fill=255, width=breadth, joint="curve")
        for x, y in (path[0], path[-1]):  # round ends; a stroke of one point is a dot
            canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return np.asarray(image.reduce(finer))


def _margin(size: int) -> int:
    return max(1, round(size / 16))


def _frame(picture: np.ndarray, image: np.ndarray, margin: int, unit: float = 0.0) -> None:
    """Put a picture (uint8 [h, w], ink high) into the middle of a blank square ``image``, ``margin`` free around it.

    Its longer side fills the rest, or would if it were ``unit`` long where it is shorter. Bilinear with antialiasing.
    """
    from PIL import Image

    size = len(image)
    scale = (size - 2 * margin) / max(unit, *picture.shape)
    height, width = (max(1, round(side * scale)) for side in picture.shape)
    if picture.shape != (height, width):
        picture = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))
    top, left = (size - height) // 2, (size - width) // 2
    image[top : top + height, left : left + width] = picture


def _examples(x: np.ndarray, y: Sequence[int] | np.ndarray, groups: Sequence[int] | np.ndarray) -> Examples:
    whole = (torch.from_numpy(np.asarray(column, dtype=np.int64)) for column in (y, groups))
    return Examples(torch.from_numpy(x), *whole)


@contextmanager
def _opened(found: Location) -> Iterator[Contents]:
    """The files of a data set, or those inside its zip and .tgz archives ("archive: member"), each to be read."""
    with ExitStack() as stack:
        contents: dict[str, Callable[[], bytes]] = {}
        for path in found.files:
            try:
                if path.suffix == ".zip":
                    zipped = stack.enter_context(zipfile.ZipFile(path))
                    members = {name: (zipped.read, name) for name in zipped.namelist()}
                elif path.suffix in (".tgz", ".gz"):
                    plain = stack.enter_context(tempfile.TemporaryFile())  # unpacked once: then any member is near
                    with gzip.open(path) as packed:
                        shutil.copyfileobj(packed, plain, 1 << 20)
                    plain.seek(0)
                    tar = stack.enter_context(tarfile.open(fileobj=plain))
                    members = {m.name: (lambda m, tar=tar: tar.extractfile(m).read(), m) for m in tar if m.isreg()}
                else:
                    contents[str(path)] = path.read_bytes
                    continue
            except DAMAGE as error:
                raise ValueError(f"{path}: truncated or damaged: {error}") from error
            for member, (read, key) in members.items():
                contents[f"{path}: {member}"] = _reader(read, key, f"{path}: {member}")
        yield contents


def _reader(read: Callable[..., bytes], key: object, name: str) -> Callable[[], bytes]:
    def reading() -> bytes:
        try:
            return read(key)
        except DAMAGE as error:
            raise ValueError(f"{name}: truncated or damaged: {error}") from error

    return reading


GB2312 = {"casia_hwdb": ("casia", hwdb.casia), "hit_or3c": ("hit", hwdb.hit)}
LOADERS = {"chinese_mnist": _chinese_mnist, "chars74k": _chars74k, "chars74k_strokes": _strokes}
NAMES = (*GB2312, *LOADERS)
