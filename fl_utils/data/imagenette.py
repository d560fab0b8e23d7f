"""ImageNette, ten classes of ImageNet, from its official archives or folders (Hofman 2020, sections 4.1 and 6.2)."""

from __future__ import annotations

import io
import tarfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from fl_utils.data import fetch
from fl_utils.data.cards import Location
from fl_utils.data.examples import Examples

SYNSETS = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
CLASSES = tuple(SYNSETS.values())  # label 0 to 9, the order of the synsets' numbers
SPLITS = ("train", "val")
FORMATS = ("JPEG", "PNG")  # what a .JPEG may turn out to be: one of ImageNet's is a PNG
Picture = tuple[str, Callable[[], bytes]]  # its path from the split on, and its bytes when asked


def load(
    name: str = "imagenette",
    data_dir: str | Path = "",
    size: int | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, Examples]:
    """ImageNette below ``data_dir`` as {"train": Examples, "val": Examples}; x uint8 [N, 3, size, size], y 0 to 9.

    ``data_dir``: the folder with train and val, one above it, or an official .tgz; there is no source to fetch from.
    ``size``: the shorter side becomes that many pixels (bilinear, antialiased), then the middle square is cut out; None
    is 224, MobileNet's own. ``limit``: at most so many of each split, drawn by ``seed``. Grey and CMYK pictures become
    RGB. Examples are in the order of synset and file name; labels are places in CLASSES.

    Raises DataNotFound where the data is not there, and ValueError on a wrong parameter, a missing or unknown synset, a
    truncated archive, or a picture that does not decode, naming the file.
    """
    if name != "imagenette":
        raise ValueError(f"{name!r} is not read here, want 'imagenette'")
    for what, value in (("size", size), ("limit", limit)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{what} is {value!r}, want a whole number from 1 on")
    side = size or 224
    found = fetch.obtain(name, data_dir)
    listed = _listed(found)
    chosen: dict[str, tuple[str, int]] = {}  # path -> split and row
    splits: dict[str, Examples] = {}
    for split, paths in listed.items():
        drawn = np.arange(len(paths))
        if limit is not None and limit < len(paths):
            drawn = np.sort(np.random.default_rng(seed).permutation(len(paths))[:limit])
        chosen |= {paths[index]: (split, row) for row, index in enumerate(drawn.tolist())}
        labels = [[*SYNSETS].index(paths[index].split("/")[1]) for index in drawn.tolist()]
        x = torch.empty(len(drawn), 3, side, side, dtype=torch.uint8)
        splits[split] = Examples(x, torch.tensor(labels, dtype=torch.int64))
    for path, read in _pictures(found):
        if path in chosen:
            split, row = chosen[path]
            splits[split].x[row] = torch.from_numpy(_square(read(), f"{_where(found)}: {path}", side))
    return splits


def file_sizes(data_dir: str | Path) -> dict[str, list[int]]:
    """The size in bytes of every picture file of each split, in the order of :func:`load`; raises as it does."""
    found = fetch.obtain("imagenette", data_dir)
    listed = _listed(found)
    sizes = {path: len(read()) for path, read in _pictures(found)}
    return {split: [sizes[path] for path in paths] for split, paths in listed.items()}


def _listed(found: Location) -> dict[str, list[str]]:
    """The pictures of each split, sorted; every synset must be there and no other."""
    paths = [path for path, _ in _pictures(found)]
    listed = {split: sorted(path for path in paths if path.startswith(f"{split}/")) for split in SPLITS}
    for split, inside in listed.items():
        synsets = {path.split("/")[1] for path in inside}
        if unknown := sorted(synsets - SYNSETS.keys()):
            raise ValueError(f"{_where(found)}: {split}/{unknown[0]} is no synset of ImageNette: {', '.join(SYNSETS)}")
        if missing := [synset for synset in SYNSETS if synset not in synsets]:
            raise ValueError(
                f"{_where(found)}: no picture in {split} of {', '.join(f'{m} ({SYNSETS[m]})' for m in missing)}"
            )
    return listed


def _pictures(found: Location) -> Iterator[Picture]:
    """Every picture, in the order in which it lies there; a path is split/synset/file."""
    if found.layout != "archive":
        for file in found.files:
            if not file.name.startswith("."):
                yield "/".join(file.parts[-3:]), file.read_bytes
        return
    (archive,) = found.files
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                parts = member.name.split("/")
                if member.isreg() and len(parts) >= 3 and parts[-3] in SPLITS and not parts[-1].startswith("."):
                    stream = tar.extractfile(member)
                    yield "/".join(parts[-3:]), stream.read
    except (EOFError, OSError, tarfile.TarError, zlib.error) as error:
        raise ValueError(f"{archive}: truncated or damaged: {error}") from error


def _where(found: Location) -> Path:
    return found.files[0] if found.layout == "archive" else found.files[0].parents[2]


def _square(data: bytes, what: str, side: int) -> np.ndarray:
    """One picture as uint8 [3, side, side]: the shorter side scaled to ``side``, the middle cut out."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                colour = picture.convert("RGB")
        scale = side / min(colour.size)
        width, height = (max(side, round(length * scale)) for length in colour.size)
        if colour.size != (width, height):
            colour = colour.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - side) // 2, (height - side) // 2
        pixels = np.array(colour.crop((left, top, left + side, top + side)))
    except UnidentifiedImageError as error:
        raise ValueError(f"{what}: not a usable picture: neither JPEG nor PNG") from error
    except Exception as error:  # Pillow raises nearly anything on damaged input
        raise ValueError(f"{what}: not a usable picture: {error}") from error
    return pixels.transpose(2, 0, 1)
