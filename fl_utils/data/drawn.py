"""Characters drawn here, from stroke data and from fonts: two parties whose data never was one data set.

They stand for CASIA-HWDB1.1 and HIT-OR3C (Hu et al. 2020, section 3.4) and for Chars74K's Hnd and Fnt (appendix) where
these are not at hand. A pen (:mod:`strokes`) or a typeface in one style (:mod:`typefaces`) counts as a writer.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fl_utils.data import fetch, strokes, typefaces
from fl_utils.data.examples import Examples

ALPHANUMERIC = string.digits + string.ascii_uppercase + string.ascii_lowercase
SMALLEST, LARGEST = 8, 256
PENS, STYLES = 60, 40  # writers of each kind, unless fewer are asked for; STYLES: at least


@dataclass(frozen=True)
class _Recipe:
    """A data set: its parties in order, its file of strokes and how that is read; the other files are fonts."""

    parties: tuple[str, str]
    stroke_file: str
    read: Callable[[Path, list[str]], dict[str, list[np.ndarray]]]
    chinese: bool = True


RECIPES = {
    "hanzi": _Recipe(("strokes", "fonts"), "kanjivg.whl", strokes.kanjivg),
    "hanzi_hands": _Recipe(("strokes", "fonts"), "hanzi-writer-data.tgz", strokes.hanzi_writer),
    "alphanumeric": _Recipe(("fonts", "strokes"), "kanjivg.whl", strokes.kanjivg, chinese=False),
}
NAMES = tuple(RECIPES)


def gb2312_level_1() -> list[str]:
    """The 3,755 characters of GB2312's first level, in code order (by pronunciation)."""
    rows = [bytes([row, cell]).decode("gb2312") for row in range(0xB0, 0xD7) for cell in range(0xA1, 0xFF)]
    return rows + [bytes([0xD7, cell]).decode("gb2312") for cell in range(0xA1, 0xFA)]


def characters(name: str) -> list[str]:
    """The characters that data set ``name`` can draw, in the order of their labels.

    Chinese ones: those of GB2312 level 1 that the strokes and every font have; alphanumeric: 0-9 A-Z a-z.
    Raises ValueError on an unknown name and DataNotFound where its files cannot be fetched.
    """
    return _characters(*_files(name))


def load(
    name: str, size: int = 64, classes: int = 0, writers: int = 0, seed: int = 0, samples: int = 1
) -> dict[str, Examples]:
    """The drawn characters of data set ``name``, by party.

    "hanzi": strokes (KanjiVG) and fonts (Noto Sans and Serif SC). "hanzi_hands": strokes (hanzi-writer-data) and fonts
    (four handwriting fonts). "alphanumeric": fonts (DejaVu, STIX, Computer Modern) and strokes (KanjiVG), 62 classes.
    x: uint8 [N, 1, size, size], background 0, ink up to 255. y: int64 [N], the place of the character in
    :func:`characters`; ``classes``: only the first so many, 0 = all. groups: int64 [N], the pen, or typeface and style.

    Every writer writes every character ``samples`` times. ``seed`` draws the writers' ways and each character's wobble;
    ``writers``: at most so many per party, the first ones of those drawn; 0 = all (60 pens, 40 to 42 prints).
    Raises ValueError on an unknown name, or a number out of range, and DataNotFound where the files cannot be fetched.
    """
    recipe, files = _files(name, size=size, classes=classes, writers=writers, seed=seed, samples=samples)
    available = _characters(recipe, files)
    if classes > len(available):
        raise ValueError(f"classes is {classes}: {name} has {len(available)} characters; 0 takes them all")
    chosen = available[: classes or len(available)]
    draw = {"strokes": _with_pens, "fonts": _with_fonts}
    return {party: draw[party](recipe, files, chosen, size, writers, seed, samples) for party in recipe.parties}


def _files(name: str, **numbers: int) -> tuple[_Recipe, dict[str, Path]]:
    """The recipe and the fetched files of ``name``, once all that was asked for is found possible."""
    if name not in RECIPES:
        raise ValueError(f"{name!r} is not a drawn data set: there are {', '.join(RECIPES)}")
    least = {"size": SMALLEST, "classes": 0, "writers": 0, "seed": 0, "samples": 1}
    for what, number in numbers.items():
        if not isinstance(number, int) or number < least[what]:
            raise ValueError(f"{what} is {number!r}: want a whole number from {least[what]} up")
    if numbers.get("classes") == 1:
        raise ValueError("classes is 1: want 0 (all), or at least 2: one class is nothing to tell apart")
    if numbers.get("size", 0) > LARGEST:
        raise ValueError(f"size is {numbers['size']}: want at most {LARGEST} pixels")
    return RECIPES[name], fetch.fetch(name)


def _fonts(recipe: _Recipe, files: dict[str, Path]) -> list[Path]:
    return [path for key, path in files.items() if key != recipe.stroke_file]


def _characters(recipe: _Recipe, files: dict[str, Path]) -> list[str]:
    if not recipe.chinese:
        return list(ALPHANUMERIC)
    sources = [typefaces.characters(font) for font in _fonts(recipe, files)]
    if recipe.read is strokes.kanjivg:
        sources.append(strokes.kanjivg_characters(files[recipe.stroke_file]))
    return [character for character in gb2312_level_1() if all(character in source for source in sources)]


def _with_pens(
    recipe: _Recipe, files: dict[str, Path], chosen: list[str], size: int, writers: int, seed: int, samples: int
) -> Examples:
    pens = strokes.Pens.draw(min(writers or PENS, PENS), seed)
    lines = recipe.read(files[recipe.stroke_file], chosen)

    def write(place: int, sample: int) -> np.ndarray:
        return strokes.write(lines[chosen[place]], pens, size, [seed, 3, ord(chosen[place]), sample])

    return _collect(write, len(pens), len(chosen), samples, size)


def _with_fonts(
    recipe: _Recipe, files: dict[str, Path], chosen: list[str], size: int, writers: int, seed: int, samples: int
) -> Examples:
    fonts = _fonts(recipe, files)
    most = -(-STYLES // len(fonts)) * len(fonts)
    count = min(writers or most, most)
    prints = typefaces.Prints.draw(count, seed)
    baseline = typefaces.CHINESE if recipe.chinese else typefaces.LATIN
    faces = []  # writer w has typeface w mod F, so that a few writers already have several
    for face, font in enumerate(fonts[:count]):
        own = np.arange(face, count, len(fonts))
        faces.append((own, prints.take(own), typefaces.outlines(font, chosen, baseline)))

    def write(place: int, sample: int) -> np.ndarray:
        images = np.empty((count, size, size), np.uint8)
        for face, (own, styles, outlines) in enumerate(faces):
            images[own] = typefaces.write(outlines[place], styles, size, [seed, 4, face, ord(chosen[place]), sample])
        return images

    return _collect(write, count, len(chosen), samples, size)


def _collect(write: Callable[[int, int], np.ndarray], writers: int, classes: int, samples: int, size: int) -> Examples:
    """``write(class, sample)`` -> uint8 [writers, size, size] for all of them, in the order writer, class, sample."""
    images = np.empty((writers, classes, samples, size, size), np.uint8)
    for place in range(classes):
        for sample in range(samples):
            images[:, place, sample] = write(place, sample)
    owner, label, _ = (torch.from_numpy(axis.ravel()) for axis in np.indices((writers, classes, samples)))
    return Examples(torch.from_numpy(images).reshape(-1, 1, size, size), label, owner)
