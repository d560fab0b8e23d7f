"""Characters printed from font files: a writer is a typeface with a weight, a stretch, a slant and a press of its own.

A glyph is drawn once per typeface and kept as signed distances to its outline, from which any weight, size and bend is
read off with antialiased edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fl_utils.data import strokes

EM, MARGIN = 112, 24  # pixels of the em square that distances are taken on, and around it
CHINESE, LATIN = 0.86, 0.76  # where the baseline lies, from the top of the em square


@dataclass(frozen=True)
class Prints:
    """How W writers print; every field float [W], lengths as shares of the em square.

    weight: added around the outline. slant: shear to the right, rotation: radians, aspect: width over height, scale:
    size. left, top: shift. warp: how far the whole character bends. grey: ink, 0 to 1. blur: share of a pixel's ink
    that goes to its neighbours. grain: how unevenly the paper takes the ink.
    """

    weight: np.ndarray
    slant: np.ndarray
    rotation: np.ndarray
    aspect: np.ndarray
    scale: np.ndarray
    left: np.ndarray
    top: np.ndarray
    warp: np.ndarray
    grey: np.ndarray
    blur: np.ndarray
    grain: np.ndarray

    def __len__(self) -> int:
        return len(self.weight)

    def take(self, chosen: np.ndarray) -> Prints:
        """The writers ``chosen``."""
        return Prints(*(values[chosen] for values in vars(self).values()))

    @classmethod
    def draw(cls, count: int, seed: int) -> Prints:
        """``count`` writers, the first ones the same whatever the count."""
        u = np.random.default_rng([seed, 2]).uniform(size=(count, 11)).T
        return cls(
            weight=-0.002 + 0.02 * u[0],
            slant=-0.15 + 0.3 * u[1],
            rotation=np.radians(-3 + 6 * u[2]),
            aspect=0.85 + 0.3 * u[3],
            scale=0.8 + 0.16 * u[4],
            left=-0.03 + 0.06 * u[5],
            top=-0.03 + 0.06 * u[6],
            warp=0.012 * u[7],
            grey=0.65 + 0.35 * u[8],
            blur=0.6 * u[9],
            grain=0.5 * u[10],
        )


def characters(font: Path) -> set[str]:
    """The characters that a font file has a glyph for. Raises ValueError naming a file that is no font."""
    from fontTools.ttLib import TTFont, TTLibError

    try:
        with TTFont(font, lazy=True) as opened:
            # numbers for names: an OpenType font's own stand in the table of its outlines, which is long to read
            opened.setGlyphOrder([str(glyph) for glyph in range(opened["maxp"].numGlyphs)])
            return {chr(code) for code in opened.getBestCmap() or {}}
    except (OSError, TTLibError, AssertionError, KeyError, ValueError) as error:
        raise ValueError(f"{font}: not a font file, or a damaged one: {type(error).__name__}: {error}") from error


def outlines(font: Path, wanted: Sequence[str], baseline: float) -> np.ndarray:
    """Signed distances to each glyph's outline, positive inside: float32 [C, S, S], S = EM + 2 MARGIN, unit: the em.

    The glyph stands on ``baseline`` (share of the em from its top), its advance centred. Raises ValueError naming a
    character that the font lacks or leaves blank: no box is drawn in its place.
    """
    from PIL import Image, ImageDraw, ImageFont
    from scipy.ndimage import distance_transform_edt

    had = characters(font)
    if lacking := [character for character in wanted if character not in had]:
        raise ValueError(f"{font.name} has no glyph for {', '.join(lacking[:10])}")
    face = ImageFont.truetype(str(font), EM, layout_engine=ImageFont.Layout.BASIC)
    side = EM + 2 * MARGIN
    found = np.empty((len(wanted), side, side), np.float32)
    for row, character in zip(found, wanted, strict=True):
        sheet = Image.new("L", (side, side))
        ImageDraw.Draw(sheet).text((side / 2, MARGIN + EM * baseline), character, fill=255, font=face, anchor="ms")
        ink = np.asarray(sheet) >= 128
        if not ink.any():
            raise ValueError(f"{font.name} leaves {character!r} blank")
        row[:] = distance_transform_edt(ink) - distance_transform_edt(~ink)
    return (found - np.sign(found) / 2) / EM


def write(outline: np.ndarray, prints: Prints, size: int, seed: Sequence[int]) -> np.ndarray:
    """One glyph printed once by every writer: uint8 [W, size, size], background 0, ink up to 255.

    outline: float32 [S, S], of :func:`outlines`. ``seed``: of bend and grain; the first writers print the same
    whatever their number.
    """
    normal = np.random.default_rng(list(seed)).standard_normal((len(prints), 8 + size * size), np.float32)
    middle = (np.arange(size) + 0.5) / size - 0.5
    y, x = (axis.ravel() for axis in np.meshgrid(middle, middle, indexing="ij"))
    x, y = np.float32(x - prints.left[:, None]), np.float32(y - prints.top[:, None])
    cos, sin = np.cos(prints.rotation)[:, None], np.sin(prints.rotation)[:, None]
    x, y = cos * x + sin * y, cos * y - sin * x
    x = x + prints.slant[:, None] * y
    stretch = np.sqrt(prints.aspect)[:, None]
    scale = prints.scale[:, None]
    points = np.stack([x / (scale * stretch), y * stretch / scale], axis=-1) + 0.5
    distance = _sample(outline, strokes.bend(points, prints.warp, normal[:, :8].astype(float))).reshape(-1, size, size)
    edge = (distance + prints.weight[:, None, None]) * prints.scale[:, None, None] * size
    rough = 1 - prints.grain[:, None, None] * np.abs(normal[:, 8:].reshape(-1, size, size)) / 2
    ink = np.clip(edge + 0.5, 0, 1) * np.clip(rough, 0, 1) * prints.grey[:, None, None]
    return np.rint(255 * strokes.soften(ink, prints.blur)).astype(np.uint8)


def _sample(outline: np.ndarray, points: np.ndarray) -> np.ndarray:
    """``outline`` between its pixels, bilinear, at ``points`` [W, N, 2] of the em square; beyond its rim the rim's."""
    most = len(outline) - 1
    at = np.clip((points * EM + MARGIN - 0.5).astype(np.float32), 0, most - 1e-3)
    low = at.astype(np.int64)
    part = at - low
    flat, place = outline.ravel(), low[..., 1] * len(outline) + low[..., 0]
    upper = flat[place] * (1 - part[..., 0]) + flat[place + 1] * part[..., 0]
    place = place + len(outline)
    lower = flat[place] * (1 - part[..., 0]) + flat[place + 1] * part[..., 0]
    return upper * (1 - part[..., 1]) + lower * part[..., 1]
