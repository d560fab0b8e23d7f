"""A picture of a face cut to a square: out of its middle, or so that eyes, nose and mouth lie where they always do."""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "PPM", "BMP")  # PPM is Pillow's name for .pgm too
# Where eyes, tip of the nose and corners of the mouth belong in a picture of 112 x 112 pixels, as x and y: SphereFace's
# places for 112 x 96 (Liu et al. 2017), 8 pixels to the right, as usual since.
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)


def opened(file: Path | zipfile.Path, mode: str) -> Image.Image:
    """The picture in ``file``, converted to ``mode`` ("L" or "RGB"). Raises ValueError naming a file that does not
    decode or has more than 8 bits a channel."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(file.read_bytes()), formats=FORMATS) as picture:
                if picture.mode in ("I", "F") or picture.mode.startswith("I;16") or ";16" in str(picture.tile):
                    raise ValueError(f"more than 8 bits a channel (mode {picture.mode}); want 8")
                return picture.convert(mode)
    except Exception as error:  # Pillow and zipfile raise nearly anything on damaged input
        raise ValueError(f"{file}: not a usable picture: {error}") from error


def centred(picture: Image.Image, size: int) -> Image.Image:
    """The largest square in the middle of ``picture``, scaled to ``size`` x ``size`` pixels (bilinear, antialiased)."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    return square if side == size else square.resize((size, size), Image.Resampling.BILINEAR)


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The move, turn and scaling (no mirroring) that brings points ``source`` nearest to ``target`` (each [n, 2]).

    Returns float [2, 3], ``target = A[:, :2] @ source + A[:, 2]``, of least squared distance (Umeyama 1991): with a
    point as a complex number, a similarity is ``a z + b`` and the least squares are those of a line. Raises ValueError
    where the shapes differ or all points of ``source`` are one.
    """
    source, target = np.asarray(source, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 2 or len(source) < 2:
        raise ValueError(f"points of shapes {source.shape} and {target.shape}: want the same [n, 2], n at least 2")
    z, w = source @ [1, 1j], target @ [1, 1j]
    away = z - z.mean()
    length = np.vdot(away, away).real
    if not length > 1e-12 * max(1.0, np.abs(z).max() ** 2):
        raise ValueError("all points are in one place: no turn or scale follows from them")
    a = np.vdot(away, w - w.mean()) / length
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def aligned(picture: Image.Image, points: np.ndarray, size: int) -> Image.Image:
    """``picture`` moved, turned and scaled so that its five ``points`` ([5, 2], x and y) fit :data:`TEMPLATE`, cut to
    ``size`` x ``size`` pixels (bilinear, black where the picture ends). A whole number is the middle of a pixel."""
    forth = similarity(points, TEMPLATE * (size / 112))
    back = np.linalg.inv(forth[:, :2])
    place = 0.5 - back @ (forth[:, 2] + 0.5)  # Pillow counts from a pixel's corner, landmarks from its middle
    inverse = np.column_stack([back, place])
    return picture.transform((size, size), Image.Transform.AFFINE, tuple(inverse.ravel()), Image.Resampling.BILINEAR)


def landmarks(path: Path) -> dict[str, np.ndarray]:
    """RFW's list of landmarks: lines ``path<TAB>label<TAB>x1 y1 ... x5 y5``; float [5, 2] by the path's last two parts.

    Raises ValueError naming file and line where a line is another.
    """
    points = {}
    for number, line in enumerate(lines(path), 1):
        words = line.split()
        if not words:
            continue
        try:
            found = np.array([float(word) for word in words[2:]]).reshape(5, 2)
        except ValueError:
            found = np.full((5, 2), np.nan)
        if not np.isfinite(found).all() or "/" not in words[0].replace("\\", "/"):
            raise ValueError(f"{path}, line {number}: {line[:80]!r}; want path/identity/file, label and ten numbers")
        points[key(words[0])] = found
    return points


def key(path: str) -> str:
    """What a path ends in: identity/file."""
    return "/".join(path.replace("\\", "/").split("/")[-2:])


def lines(path: Path) -> list[str]:
    """The lines of a text file (UTF-8). Raises ValueError naming a file that is none."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file: {error}") from None
