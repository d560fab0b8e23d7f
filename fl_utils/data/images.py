"""Images as uint8 tensors [N, C, H, W] with labels, from the official layouts of each data set."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fl_utils.data import fetch, formats
from fl_utils.data.cards import Location
from fl_utils.data.examples import Examples

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TEST_LABELS = {"ddeff807876a9661": "mnist", "3d0e6c6ea990b53b": "fashion_mnist"}  # sha256 begins, of the 10,000 labels
PICTURE = re.compile(r"(?:^|/)[^/.][^/]*\.(?:jpe?g|png)$", re.IGNORECASE)  # not macOS's hidden ._ files
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")  # what a .jpg or .png may turn out to be
Picture = tuple[str, Callable[[], bytes], int]  # what to call it, its bytes when asked, its label


def load(
    name: str, data_dir: str | Path = "", size: int | None = None, limit: int | None = None, seed: int = 0
) -> dict[str, Examples]:
    """The images of data set ``name``, by party (digits: mnist, optdigits), official split (train, test) or all.

    From ``data_dir``, a folder in one of the card's layouts, or fetched where it is "". ``size``: height and width in
    pixels, bilinear with antialiasing as torchvision's Resize; None keeps the data set's own (28 for digits, where the
    8 x 8 optdigits are enlarged so that both parties can share a model; 224 for catsdogs, as Raj 2020, section III).
    ``limit``: at most so many examples under each key, drawn by ``seed``, in the order of the whole.
    Labels: digits 0-9; Fashion-MNIST and CIFAR-10 in their official order; cat 0, dog 1.

    Colour pictures come out RGB (grey, palette and CMYK ones are converted, transparency is dropped). A picture that
    does not decode or has more than 8 bits a channel raises ValueError naming it; so does a truncated file. Raises
    DataNotFound where the data is not to be had.
    """
    if name not in LOADERS:
        raise ValueError(f"{name!r} is not a data set of images: there are {', '.join(LOADERS)}")
    if size is not None and size < 1:
        raise ValueError(f"size is {size}, want at least 1 pixel")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}, want at least 1 example")
    return LOADERS[name](fetch.obtain(name, data_dir), size, _Draw(limit, seed))


class _Draw:
    """Which of ``count`` examples a limit leaves: sorted indices, a function of the seed alone."""

    def __init__(self, limit: int | None, seed: int) -> None:
        self.limit, self.seed = limit, seed

    def __call__(self, count: int) -> np.ndarray:
        if self.limit is None or self.limit >= count:
            return np.arange(count)
        return np.sort(np.random.default_rng(self.seed).permutation(count)[: self.limit])


def _digits(found: Location, size: int | None, draw: _Draw) -> dict[str, Examples]:
    mnist, optdigits = (_table(path) for path in found.files)
    parties = {}
    for party, table, side, top in (("mnist", mnist, 28, 255), ("optdigits", optdigits, 8, 16)):
        if table.shape[1] != side * side + 1 or table[:, :-1].max() > top:
            raise ValueError(
                f"{party}: {table.shape[1]} columns up to {table.max()}, want {side * side + 1} up to {top}"
            )
        table = table[draw(len(table))]
        grey = np.rint(table[:, :-1] * (255 / top)).astype(np.uint8).reshape(-1, side, side)
        parties[party] = Examples(_resized(grey, size or 28), torch.from_numpy(table[:, -1].astype(np.int64)))
    return parties


def _table(path: Path) -> np.ndarray:
    try:
        return np.loadtxt(io.BytesIO(formats.gunzip(path)), dtype=np.uint8, delimiter=",", ndmin=2)
    except (OverflowError, ValueError) as error:
        raise ValueError(f"{path}: not a table of numbers, or a truncated one: {error}") from error


def _idx(name: str, found: Location, size: int | None, draw: _Draw) -> dict[str, Examples]:
    files = found.files
    splits = {}
    for split, images_file, labels_file in (("train", files[0], files[1]), ("test", files[2], files[3])):
        images, labels = formats.idx(images_file, 3), formats.idx(labels_file, 1)
        if len(images) != len(labels):
            raise ValueError(f"{images_file} has {len(images)} images, {labels_file} has {len(labels)} labels")
        if len(labels) and labels.max() > 9:
            raise ValueError(f"{labels_file}: label {labels.max()}, want 0 to 9")
        other = TEST_LABELS.get(hashlib.sha256(labels.tobytes()).hexdigest()[:16], name)
        if other != name:
            raise ValueError(
                f"{labels_file} holds the labels of {other}, not of {name}: the two share their file names"
            )
        chosen = draw(len(images))
        y = torch.from_numpy(labels[chosen].astype(np.int64))
        splits[split] = Examples(_resized(images[chosen], size or images.shape[-1]), y)
    return splits


def _cifar10(found: Location, size: int | None, draw: _Draw) -> dict[str, Examples]:
    if found.layout in ("images", "zip"):
        pictures: dict[str, list[Picture]] = {"train": [], "test": []}
        with _pictures(found) as every:
            for what, read in every:
                split, kind, _ = ("", "", *what.split("/"))[-3:]
                if split in pictures and kind in CIFAR10_CLASSES:
                    pictures[split].append((what, read, CIFAR10_CLASSES.index(kind)))
            _none_missing(found, pictures)
            return {split: _decoded(found, chosen, size or 32, draw) for split, chosen in pictures.items()}
    batches = dict(_cifar_batches(found))
    splits = {}
    for split, keys in (("train", [f"data_batch_{number}" for number in range(1, 6)]), ("test", ["test_batch"])):
        if missing := [key for key in keys if key not in batches]:
            raise ValueError(f"{found.files[0]}: no {', '.join(missing)}")
        images = np.concatenate([batches[key][0] for key in keys])
        labels = np.concatenate([batches[key][1] for key in keys])
        chosen = draw(len(images))
        splits[split] = Examples(_resized(images[chosen], size or 32), torch.from_numpy(labels[chosen]))
    return splits


def _cifar_batches(found: Location) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    if found.layout == "torchvision":
        for path in found.files:
            yield path.name, formats.cifar_batch(path.read_bytes(), str(path))
        return
    (archive,) = found.files
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                key = member.name.rpartition("/")[2]
                if member.isreg() and key in formats.CIFAR10_MD5 and (stream := tar.extractfile(member)):
                    yield key, formats.cifar_batch(stream.read(), f"{archive}: {member.name}")
    except (EOFError, OSError, tarfile.TarError, zlib.error) as error:
        raise ValueError(f"{archive}: truncated or damaged: {error}") from error


def _catsdogs(found: Location, size: int | None, draw: _Draw) -> dict[str, Examples]:
    labelled: list[tuple[int, int, Picture]] = []
    with _pictures(found) as every:
        for what, read in every:
            match = re.fullmatch(r"(cat|dog)\.(\d+)\.jpg", what.rpartition("/")[2])
            if match and "/test" not in f"/{what}".rpartition("/")[0]:
                label = int(match[1] == "dog")
                labelled.append((label, int(match[2]), (what, read, label)))
        labelled.sort(key=lambda entry: entry[:2])
        kinds = {"cat": [entry[2] for entry in labelled if not entry[0]], "dog": [e[2] for e in labelled if e[0]]}
        _none_missing(found, kinds)
        return {"all": _decoded(found, kinds["cat"] + kinds["dog"], size or 224, draw)}


def _none_missing(found: Location, kinds: dict[str, list[Picture]]) -> None:
    for kind, pictures in kinds.items():
        if not pictures:
            raise ValueError(f"{found.files[0] if len(found.files) == 1 else found.root}: no picture of {kind!r}")


@contextmanager
def _pictures(found: Location) -> Iterator[list[tuple[str, Callable[[], bytes]]]]:
    """Every picture of a folder or a zip (also a train.zip inside it): its path inside, and how to read it."""
    if found.layout != "zip":
        yield [
            (path.relative_to(found.root).as_posix(), path.read_bytes)
            for path in found.files
            if PICTURE.search(path.name)
        ]
        return
    (path,) = found.files
    try:
        with zipfile.ZipFile(path) as zipped, tempfile.TemporaryFile() as inner:
            members = zipped.namelist()
            nested = [member for member in members if member.rpartition("/")[2] == "train.zip"]
            if not nested:
                yield _members(zipped)
                return
            with zipped.open(nested[0]) as stream:
                shutil.copyfileobj(stream, inner, 1 << 20)
            with zipfile.ZipFile(inner) as train:
                yield _members(train)
    except (EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: truncated or damaged: {error}") from error


def _members(zipped: zipfile.ZipFile) -> list[tuple[str, Callable[[], bytes]]]:
    def reader(member: str) -> Callable[[], bytes]:
        return lambda: zipped.read(member)

    return [(member, reader(member)) for member in sorted(zipped.namelist()) if PICTURE.search(member)]


def _decoded(found: Location, pictures: list[Picture], size: int, draw: _Draw) -> Examples:
    chosen = [pictures[index] for index in draw(len(pictures)).tolist()]
    where = found.files[0] if found.layout == "zip" else found.root
    x = np.empty((len(chosen), 3, size, size), dtype=np.uint8)
    for row, (what, read, _) in enumerate(chosen):
        x[row] = _rgb(read(), f"{where}: {what}", size)
    return Examples(torch.from_numpy(x), torch.tensor([label for *_, label in chosen], dtype=torch.int64))


def _rgb(data: bytes, what: str, size: int) -> np.ndarray:
    """One picture as uint8 [3, size, size]."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                if picture.mode in ("I", "F") or picture.mode.startswith("I;16") or ";16" in str(picture.tile):
                    raise ValueError(f"more than 8 bits a channel (mode {picture.mode}); want 8")
                resized = picture.convert("RGB")
        if resized.size != (size, size):
            resized = resized.resize((size, size), Image.Resampling.BILINEAR)
    except Exception as error:  # Pillow raises nearly anything on damaged input
        raise ValueError(f"{what}: not a usable picture: {error}") from error
    return np.asarray(resized).transpose(2, 0, 1)


def _resized(images: np.ndarray, size: int) -> torch.Tensor:
    """uint8 [N, H, W] or [N, C, H, W] to [N, C, size, size]: bilinear, antialiased where it shrinks."""
    images = images[:, None] if images.ndim == 3 else images
    x = torch.from_numpy(np.ascontiguousarray(images))
    if x.shape[-2:] == (size, size):
        return x
    return torch.nn.functional.interpolate(x, (size, size), mode="bilinear", antialias=True)


LOADERS: dict[str, Callable[[Location, int | None, _Draw], dict[str, Examples]]] = {
    "digits": _digits,
    "mnist": partial(_idx, "mnist"),
    "fashion_mnist": partial(_idx, "fashion_mnist"),
    "cifar10": _cifar10,
    "catsdogs": _catsdogs,
}
