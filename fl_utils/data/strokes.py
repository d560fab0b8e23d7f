"""Characters drawn from stroke data with a pen: each writer has a pen and a hand of his own.

A stroke is a polyline, float [P, 2], points (x, y) in the unit square of the character's box, y downwards. Two sources:
KanjiVG's SVG files (one path per stroke) and the medians of hanzi-writer-data (one list of points per stroke).
"""

from __future__ import annotations

import json
import math
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

KANJIVG_BOX, HANZI_WRITER_BOX, HANZI_WRITER_TOP = 109.0, 1024.0, 900.0
COMMANDS = re.compile(r"([A-Za-z])|(-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)")
STEPS = np.linspace(0, 1, 13)[1:, None]
BERNSTEIN = np.concatenate(
    [(1 - STEPS) ** 3, 3 * STEPS * (1 - STEPS) ** 2, 3 * STEPS**2 * (1 - STEPS), STEPS**3], axis=1
)


@dataclass(frozen=True)
class Pens:
    """How W writers write; every field float [W], lengths as shares of the character's box.

    radius: half the line's width. taper: the share of it lost towards a stroke's end, the sooner the smaller ``speed``.
    slant: shear to the right, rotation: radians, aspect: width over height, scale: size. left, top: shift.
    wobble: how far a stroke strays, fresh for every character; warp: how far the whole character bends.
    grey: ink, 0 to 1. blur: share of a pixel's ink that goes to its neighbours.
    """

    radius: np.ndarray
    taper: np.ndarray
    speed: np.ndarray
    slant: np.ndarray
    rotation: np.ndarray
    aspect: np.ndarray
    scale: np.ndarray
    left: np.ndarray
    top: np.ndarray
    wobble: np.ndarray
    warp: np.ndarray
    grey: np.ndarray
    blur: np.ndarray

    def __len__(self) -> int:
        return len(self.radius)

    @classmethod
    def draw(cls, count: int, seed: int) -> Pens:
        """``count`` writers, the first ones the same whatever the count."""
        u = np.random.default_rng([seed, 1]).uniform(size=(count, 13)).T
        return cls(
            radius=0.018 + 0.022 * u[0],
            taper=0.6 * u[1],
            speed=0.5 + 2.5 * u[2],
            slant=-0.15 + 0.3 * u[3],
            rotation=np.radians(-5 + 10 * u[4]),
            aspect=0.85 + 0.3 * u[5],
            scale=0.82 + 0.16 * u[6],
            left=-0.03 + 0.06 * u[7],
            top=-0.03 + 0.06 * u[8],
            wobble=0.004 + 0.014 * u[9],
            warp=0.002 + 0.016 * u[10],
            grey=0.65 + 0.35 * u[11],
            blur=0.5 * u[12],
        )


def kanjivg_characters(wheel: Path) -> set[str]:
    """The characters that KanjiVG has in its plain form. Raises ValueError naming a file that is not its wheel."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{wheel}: not KanjiVG's wheel, or a damaged one: {error}") from error
    return {chr(int(name[6:11], 16)) for name in names if re.fullmatch(r"kanji/[0-9a-f]{5}\.svg", name)}


def kanjivg(wheel: Path, characters: Iterable[str]) -> dict[str, list[np.ndarray]]:
    """The strokes of ``characters`` from KanjiVG's wheel, ``kanji/<five hexadecimal digits>.svg``, 109 units a side.

    The numbers beside the strokes are text elements and not drawn. Raises ValueError naming a character that is not
    there, holds no stroke or cannot be read.
    """
    found = {}
    try:
        with zipfile.ZipFile(wheel) as archive:
            for character in characters:
                svg = archive.read(f"kanji/{ord(character):05x}.svg").decode("utf-8")
                paths = re.findall(r"<path\b[^>]*?\sd=\"([^\"]*)\"", svg)
                found[character] = [path_points(path) / KANJIVG_BOX for path in paths]
                if not paths:
                    raise ValueError(f"no stroke in {character!r}")
    except (KeyError, OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{wheel}: {error}") from error
    return found


def hanzi_writer(archive: Path, characters: Iterable[str]) -> dict[str, list[np.ndarray]]:
    """The strokes of ``characters`` from hanzi-writer-data's npm archive: the medians of ``package/<character>.json``.

    Its box has 1,024 units, y upwards from -124 to 900. Raises ValueError naming a character that is missing or a
    damaged archive.
    """
    wanted = {f"package/{character}.json": character for character in characters}
    found: dict[str, list[np.ndarray]] = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                if character := wanted.get(member.name):
                    medians = json.load(tar.extractfile(member))["medians"]
                    box = HANZI_WRITER_BOX
                    strokes = (np.array(median, float) for median in medians)
                    found[character] = [
                        np.stack([xy[:, 0], HANZI_WRITER_TOP - xy[:, 1]], axis=1) / box for xy in strokes
                    ]
                    if len(found) == len(wanted):
                        break
    except (EOFError, OSError, KeyError, TypeError, ValueError, tarfile.TarError, zlib.error) as error:
        raise ValueError(f"{archive}: not hanzi-writer-data's archive, or a damaged one: {error}") from error
    if missing := [character for character in wanted.values() if not found.get(character)]:
        raise ValueError(f"{archive}: no strokes of {', '.join(missing[:10])}")
    return {character: found[character] for character in wanted.values()}


def path_points(path: str) -> np.ndarray:
    """The polyline float [P, 2] of an SVG path of the commands M, C and S (and m, c, s): 12 points to a curve.

    Raises ValueError on another command or a wrong number of coordinates.
    """
    groups: list[tuple[str, list[float]]] = []
    for command, number in COMMANDS.findall(path):
        if command:
            groups.append((command, []))
        elif groups:
            groups[-1][1].append(float(number))
    points: list[np.ndarray] = []
    here = control = np.zeros(2)
    for command, numbers in groups:
        want = {"m": 2, "c": 6, "s": 4}.get(command.lower())
        if want is None or not numbers or len(numbers) % want or (points == []) != (command in "Mm"):
            raise ValueError(f"path {path[:40]!r}: want one M, then C and S with 6 and 4 numbers, got {command!r}")
        for part in np.reshape(numbers, (-1, want // 2, 2)):
            if command.islower():
                part = part + here
            if want == 2:
                points.append(part)
                here = control = part[-1]
                continue
            first = part[0] if want == 6 else 2 * here - control
            points.append(BERNSTEIN @ np.stack([here, first, part[-2], part[-1]]))
            control, here = part[-2], part[-1]
    if len(points) < 2:
        raise ValueError(f"path {path[:40]!r} draws nothing")
    return np.concatenate(points)


def write(strokes: Sequence[np.ndarray], pens: Pens, size: int, seed: Sequence[int]) -> np.ndarray:
    """One character written once by every pen: uint8 [W, size, size], background 0, ink up to 255.

    ``seed``: of the wobble; the first pens write the same whatever the number of pens.
    """
    lines = [_even(stroke, size) for stroke in strokes]
    along = np.concatenate([np.linspace(0, 1, len(line)) for line in lines])
    points = np.concatenate(lines)
    owner = np.repeat(np.arange(len(lines)), [len(line) for line in lines])
    normal = np.random.default_rng(list(seed)).standard_normal((len(pens), 6 * len(lines) + 8))
    stray = normal[:, : 6 * len(lines)].reshape(len(pens), len(lines), 3, 2)
    t = 2 * along - 1
    shapes = np.stack([np.ones_like(t), 0.8 * t, 1.2 * (t * t - 1 / 3)], axis=1)
    strayed = np.einsum("nk,wnkd->wnd", shapes, stray[:, owner]) * pens.wobble[:, None, None]
    placed = place(bend(points + strayed, pens.warp, normal[:, -8:]), pens)
    radius = np.maximum(pens.radius[:, None] * (1 - pens.taper[:, None] * along ** pens.speed[:, None]) * size, 0.45)
    ink = _stamp(placed * size, radius, size) * pens.grey[:, None, None]
    return np.rint(255 * soften(ink, pens.blur)).astype(np.uint8)


def bend(points: np.ndarray, far: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """``points`` [W, N, 2] displaced smoothly by two waves, about ``far`` [W] long; ``normal`` [W, 8] draws them."""
    waves, shift = normal.reshape(-1, 2, 4)[..., :2], normal.reshape(-1, 2, 4)[..., 2:]
    phases = 3 * np.einsum("wnd,wkd->wnk", points, waves) + math.pi * shift.sum(-1)[:, None]
    return points + far[:, None, None] * np.einsum("wnk,wkd->wnd", np.sin(phases), shift)


def place(points: np.ndarray, pens: Pens) -> np.ndarray:
    """``points`` [W, N, 2] scaled, stretched, slanted, turned about the box's middle, and shifted."""
    x, y = points[..., 0] - 0.5, points[..., 1] - 0.5
    stretch = np.sqrt(pens.aspect)
    x = x * (pens.scale * stretch)[:, None]
    y = y * (pens.scale / stretch)[:, None]
    x = x - pens.slant[:, None] * y
    cos, sin = np.cos(pens.rotation)[:, None], np.sin(pens.rotation)[:, None]
    turned = np.stack([cos * x - sin * y + pens.left[:, None], sin * x + cos * y + pens.top[:, None]], axis=-1)
    return turned + 0.5


def soften(ink: np.ndarray, blur: np.ndarray) -> np.ndarray:
    """``ink`` [W, H, H] with the share ``blur`` [W] of each pixel spread over its row and column neighbours."""
    side = (blur / 4)[:, None, None]
    for axis in (1, 2):
        padded = np.pad(ink, [(1, 1) if axis == a else (0, 0) for a in range(3)])
        before, after = (padded[:, :-2], padded[:, 2:]) if axis == 1 else (padded[:, :, :-2], padded[:, :, 2:])
        ink = (1 - 2 * side) * ink + side * (before + after)
    return ink


def _even(stroke: np.ndarray, size: int) -> np.ndarray:
    """The stroke with points three quarters of a pixel apart at most."""
    lengths = np.hypot(*np.diff(stroke, axis=0).T)
    far = np.concatenate([[0], np.cumsum(lengths)])
    steps = np.linspace(0, far[-1], max(3, math.ceil(far[-1] * size / 0.75) + 1))
    return np.stack([np.interp(steps, far, stroke[:, 0]), np.interp(steps, far, stroke[:, 1])], axis=1)


def _stamp(points: np.ndarray, radius: np.ndarray, size: int) -> np.ndarray:
    """Ink 0 to 1 [W, size, size] of discs at ``points`` [W, N, 2] (pixels) of ``radius`` [W, N], edges antialiased."""
    reach = math.ceil(radius.max() + 0.5)
    margin = 2 * reach + 2
    wide = size + 2 * margin
    points = np.clip(points.astype(np.float32) + margin, reach + 1, wide - reach - 2)
    corner = np.floor(points).astype(np.int64) - reach
    steps = np.arange(2 * reach + 1)
    dx, dy = ((corner[..., d, None] + steps + 0.5 - points[..., d, None]).astype(np.float32) ** 2 for d in (0, 1))
    distance = np.sqrt(dy[..., :, None] + dx[..., None, :])
    ink = np.clip(radius[..., None, None].astype(np.float32) + 0.5 - distance, 0, 1)
    rows = (np.arange(len(points))[:, None] * wide + corner[..., 1])[..., None] + steps
    places = rows[..., :, None] * wide + (corner[..., 0, None] + steps)[..., None, :]
    canvas = np.zeros(len(points) * wide * wide, np.float32)
    np.maximum.at(canvas, places.ravel(), ink.ravel())
    return canvas.reshape(-1, wide, wide)[:, margin:-margin, margin:-margin]
