"""Two binary formats of handwritten Chinese characters, checked byte for byte before anything is made of them.

CASIA-HWDB's .gnt (C.-L. Liu et al. 2011; one file per writer): samples one after the other, each a little-endian uint32
with the sample's size in bytes, 2 bytes of GB2312 tag code, uint16 width, uint16 height, and width * height grey values
row by row, 255 being background.

HIT-OR3C (S. Zhou et al. 2010; one file ``<writer>_images`` per writer): a little-endian uint32 with the number of
samples, one byte height, one byte width, then count * height * width grey values. What the samples are stands in
``labels`` beside it: a little-endian uint16 with their number, one byte with the bytes per label (2), then the GB2312
codes; in a variant the codes alone.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

Contents = Mapping[str, Callable[[], bytes]]  # what a file is called, and how to read it
Draw = Callable[[Sequence[int]], list[int]]  # which of these writers are kept

CHARACTERS = 3755  # of GB2312's level 1: B0A1 to D7F9, full rows of 94 and a last one of 89
_HEADER = struct.Struct("<I2sHH")


def characters() -> str:
    """The 3,755 characters of GB2312's level 1, in the order of their codes."""
    codes = (bytes([high, low]) for high in range(0xB0, 0xD8) for low in range(0xA1, 0xFF))
    return b"".join(list(codes)[:CHARACTERS]).decode("gb2312")


@lru_cache(maxsize=1 << 16)
def place(code: bytes) -> int:
    """Where a tag code of 2 bytes stands in level 1 (0 .. 3754); -1 for every other character, of one byte or of two.

    Raises ValueError where it is no character at all.
    """
    high, low = code
    if 0xB0 <= high <= 0xD7 and 0xA1 <= low <= 0xFE and (high, low) <= (0xD7, 0xF9):
        return (high - 0xB0) * 94 + (low - 0xA1)
    if min(high, low) == 0 and 0x20 <= max(high, low) < 0x7F:
        return -1
    try:
        if len(code.decode("gbk")) == 1:
            return -1
    except UnicodeDecodeError:
        pass
    raise ValueError(f"the tag code {code.hex(' ')} is no character of GB2312")


@dataclass(frozen=True)
class Samples:
    """The level-1 samples of one file: places in level 1, offsets of the pixels, heights and widths; int64 [N] each."""

    places: np.ndarray
    offsets: np.ndarray
    heights: np.ndarray
    widths: np.ndarray


def gnt_samples(data: bytes, where: str) -> Samples:
    """The level-1 characters in ``data``, a .gnt file; letters, digits and symbols are passed over.

    Every header of the file is checked. Raises ValueError naming ``where`` and the sample (counted from 1, with its
    first byte): an empty or truncated file, a size that disagrees with width and height, an unreadable tag code.
    """
    if not data:
        raise ValueError(f"{where}: empty, want the samples of one writer")
    rows, at, number = [], 0, 0
    while at < len(data):
        number += 1
        left = len(data) - at
        sample = f"{where}: sample {number} at byte {at:,}"
        if left < _HEADER.size:
            raise ValueError(f"{sample} is truncated: {left} bytes are left, its header alone has {_HEADER.size}")
        size, code, width, height = _HEADER.unpack_from(data, at)
        if not width * height:
            raise ValueError(f"{sample} has {width} x {height} pixels: damaged, or not a .gnt file")
        if size != _HEADER.size + width * height:
            raise ValueError(
                f"{sample} says that it has {size:,} bytes, but {width} x {height} pixels "
                f"and the header make {_HEADER.size + width * height:,}: damaged, or not a .gnt file"
            )
        if size > left:
            raise ValueError(f"{sample} is truncated: {left:,} of its {size:,} bytes are there")
        try:
            known = place(code)
        except ValueError as error:
            raise ValueError(f"{sample}: {error}") from None
        if known >= 0:
            rows.append((known, at + _HEADER.size, height, width))
        at += size
    return Samples(*np.array(rows, dtype=np.int64).reshape(-1, 4).T)


def hit_labels(data: bytes, where: str) -> np.ndarray:
    """The place in level 1 of each label in ``data`` (a HIT-OR3C labels file), int64 [N], -1 for other characters.

    Raises ValueError naming ``where``: an empty file, a number of labels that disagrees with the length, a label that
    is no character.
    """
    if not data:
        raise ValueError(f"{where}: empty, want the labels of the samples")
    codes = data
    if len(data) % 2:  # with its header of 3 bytes; without it the length is even
        count, each = struct.unpack_from("<HB", data) if len(data) >= 3 else (0, 0)
        if each != 2 or len(data) != 3 + 2 * count:
            raise ValueError(
                f"{where}: {len(data):,} bytes, but its header announces {count:,} labels of {each} bytes; "
                f"want 3 + 2 for each: truncated or damaged"
            )
        codes = data[3:]
    try:
        return np.array([place(codes[at : at + 2]) for at in range(0, len(codes), 2)], dtype=np.int64)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def hit_images(data: bytes, where: str) -> np.ndarray:
    """The samples in ``data`` (a HIT-OR3C ``<writer>_images`` file), uint8 [N, height, width], not copied.

    Raises ValueError naming ``where``: an empty file, or a count that disagrees with the length.
    """
    if len(data) < 6:
        raise ValueError(f"{where}: {len(data)} bytes, its header alone has 6: empty or truncated")
    count, height, width = struct.unpack_from("<IBB", data)
    want = 6 + count * height * width
    if len(data) != want or want == 6:
        raise ValueError(
            f"{where}: {len(data):,} bytes, but {count:,} samples of {height} x {width} pixels and the header "
            f"make {want:,}: {'truncated' if len(data) < want else 'damaged'}"
        )
    return np.frombuffer(data, np.uint8, offset=6).reshape(count, height, width)


@dataclass(frozen=True)
class File:
    """One file of one writer: its samples' places in level 1 (-1: another character), and their pictures by number."""

    writer: int
    places: np.ndarray
    pictures: Callable[[np.ndarray], Iterator[np.ndarray]]


def casia(contents: Contents, paths: Sequence[Path], draw: Draw) -> list[File]:
    """The .gnt files of the writers drawn, in order, every header checked. Raises ValueError naming a damaged file."""
    files = {}
    for name, read in contents.items():
        if not name.lower().endswith(".gnt"):
            continue
        number = re.search(r"\d+", re.split(r"[/\\ ]", name)[-1])
        if not number:
            raise ValueError(f"{name}: want the writer's number in its name, as in 1001-c.gnt")
        if int(number[0]) in files:
            raise ValueError(f"{name}: a second file of writer {number[0]}, beside {files[int(number[0])][0]}")
        files[int(number[0])] = name, read
    if not files:
        hint = "; an .alz in it has to be unpacked first (unalz)" if any(n.endswith(".alz") for n in contents) else ""
        raise ValueError(f"{', '.join(map(str, paths))}: no .gnt file{hint}")
    return [_gnt(writer, *files[writer]) for writer in draw(list(files))]


def _gnt(writer: int, name: str, read: Callable[[], bytes]) -> File:
    samples = gnt_samples(read(), name)

    def pictures(numbers: np.ndarray) -> Iterator[np.ndarray]:
        data = np.frombuffer(read(), np.uint8)
        shapes = (column[numbers].tolist() for column in (samples.offsets, samples.heights, samples.widths))
        for offset, height, width in zip(*shapes, strict=True):
            yield ~data[offset : offset + height * width].reshape(height, width)

    return File(writer, samples.places, pictures)


def hit(contents: Contents, paths: Sequence[Path], draw: Draw) -> list[File]:
    """The image files of the writers drawn, in order, with their labels. Raises ValueError naming a damaged file."""
    subjects = {path: re.fullmatch(r"(\d+)_images", path.name) for path in paths if path.name.endswith("_images")}
    if wrong := [path for path, match in subjects.items() if not match]:
        raise ValueError(f"{wrong[0]}: want the writer's number in its name, as in 1_images")
    labels: dict[Path, np.ndarray] = {}
    kept, files = draw([int(match[1]) for match in subjects.values()]), []
    for path, match in sorted(subjects.items(), key=lambda item: (int(item[1][1]), item[0])):
        if int(match[1]) not in kept:
            continue
        places = [folder / name for folder in (path.parent, path.parent.parent) for name in ("labels", "labels.txt")]
        beside = next((place for place in places if place.is_file()), None)
        if beside is None:
            raise ValueError(f"{path}: no labels or labels.txt beside it or in the folder above")
        if beside not in labels:
            labels[beside] = hit_labels(beside.read_bytes(), str(beside))
        data = np.memmap(path, np.uint8, "r") if path.stat().st_size else b""
        images = hit_images(data, str(path))
        if len(images) != len(labels[beside]):
            raise ValueError(f"{path} has {len(images):,} samples, but {beside} has {len(labels[beside]):,} labels")
        files.append(_hit_file(int(match[1]), labels[beside], images))
    return files


def _hit_file(writer: int, places: np.ndarray, images: np.ndarray) -> File:
    dark_ink = np.median(images[:100]) > 127  # most of a picture is background

    def pictures(numbers: np.ndarray) -> Iterator[np.ndarray]:
        for number in numbers.tolist():
            yield ~images[number] if dark_ink else images[number]

    return File(writer, places, pictures)
