"""Synthetic portraits with gender and age: drawn by the computer, of nobody.

No registry package carries faces with gender and age, so the appendix task of Hu et al. 2020 runs on these unless the
real data is given (:mod:`fl_utils.data.portraits`). Every number that comes from them is a number of a drawing.

A portrait is painted back to front from soft-edged shapes, all portraits of a chunk at once. What tells gender and age
is in the traits (:func:`_people`): each is a noisy, overlapping cue, and none decides alone.

* gender: hair length, jaw, brows, lips, darkened lids, beard, neck; in children hardly anything but the hair;
* age: a child's large, low eyes and round head; in adults lines of forehead, cheeks and eyes, sagging jaws, grey hair,
  receding hairlines.

The two parties photograph different people with different cameras (:class:`Style`): ``studio`` in even light before
plain walls, people of all ages who wear their hair long or short by custom, shave, and dye what is grey; ``street`` in
slanting, yellow light before clutter, a little blurred, mostly young adults of any skin and hair, long or short on
either gender, with beards, caps and painted lips. So a cue that is worth much to one party is worth less to the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fl_utils.data.portraits import Portraits

CHUNK = 128  # portraits painted at once: so many fit the processor's cache
Traits = dict[str, np.ndarray]


@dataclass(frozen=True)
class Style:
    """Whom a party portrays and how; shares and probabilities lie in [0, 1].

    young: weight of the young adults against an even spread of ages.
    skin: lightest and darkest, on a scale from 0 to 1. hair: shares of black, brown, blond and red.
    long_hair, painted (lips and lids): probabilities for women, men. beard: for men. dyed: for grey hair.
    cap, glasses: for anybody. turn: typical turn of the head. clutter: strength of the background's pattern.
    slant: of the light from one side. cast: of the light's colour. blur, noise: of the camera. level: its brightness.
    """

    young: float
    skin: tuple[float, float]
    hair: tuple[float, float, float, float]
    long_hair: tuple[float, float]
    painted: tuple[float, float]
    beard: float
    dyed: float
    cap: float
    glasses: float
    turn: float
    clutter: float
    slant: float
    cast: tuple[float, float, float]
    blur: float
    noise: float
    level: float


STYLES = {
    "studio": Style(
        young=0.15,
        skin=(0.05, 0.45),
        hair=(0.7, 0.25, 0.05, 0.0),
        long_hair=(0.8, 0.1),
        painted=(0.2, 0.02),
        beard=0.05,
        dyed=0.4,
        cap=0.0,
        glasses=0.2,
        turn=0.03,
        clutter=0.02,
        slant=0.08,
        cast=(1.0, 1.0, 1.0),
        blur=0.2,
        noise=0.02,
        level=1.0,
    ),
    "street": Style(
        young=0.5,
        skin=(0.15, 1.0),
        hair=(0.35, 0.35, 0.2, 0.1),
        long_hair=(0.5, 0.33),
        painted=(0.5, 0.03),
        beard=0.75,
        dyed=0.1,
        cap=0.15,
        glasses=0.3,
        turn=0.06,
        clutter=0.15,
        slant=0.3,
        cast=(1.12, 0.96, 0.8),
        blur=0.4,
        noise=0.025,
        level=0.78,
    ),
}

SKIN = np.array([[0.98, 0.86, 0.76], [0.87, 0.68, 0.53], [0.62, 0.43, 0.30], [0.33, 0.22, 0.16]], np.float32)
HAIR = np.array([[0.09, 0.08, 0.08], [0.36, 0.22, 0.13], [0.83, 0.68, 0.40], [0.62, 0.27, 0.12]], np.float32)
GREY = np.array([0.80, 0.80, 0.80], np.float32)
OLDEST = 85


def load(size: int = 32, count: int = 1000, seed: int = 0) -> dict[str, Portraits]:
    """``count`` synthetic portraits of each party, "studio" and "street": see :func:`draw`."""
    return {party: draw(party, count, size, seed) for party in STYLES}


def draw(party: str, count: int, size: int = 32, seed: int = 0) -> Portraits:
    """``count`` synthetic portraits of ``party``, size x size pixels, half of them (or one less) male.

    The same arguments give the same portraits; ages run from 1 to 85. Raises ValueError on another party, fewer than
    two portraits, or a size below 8 pixels, in which there would be no face to see.
    """
    if party not in STYLES:
        raise ValueError(f"{party!r} draws no portraits: there are {', '.join(STYLES)}")
    if count < 2:
        raise ValueError(f"count is {count}, want at least 2 portraits: one of each gender")
    if size < 8:
        raise ValueError(f"size is {size}, want at least 8 pixels")
    random = np.random.default_rng([seed, list(STYLES).index(party)])
    style = STYLES[party]
    people = _people(style, count, random)
    x = np.empty((count, 3, size, size), np.uint8)
    for start in range(0, count, CHUNK):
        part = {name: values[start : start + CHUNK] for name, values in people.items()}
        x[start : start + CHUNK] = _photograph(_paint(part, size), style, random)
    labels = (torch.from_numpy(people[name].astype(np.int64)) for name in ("male", "age"))
    return Portraits(torch.from_numpy(x), *labels)


def _people(style: Style, count: int, random: np.random.Generator) -> Traits:
    """Every trait of ``count`` people, float32 [count] or [count, 3] for colours."""

    def normal(spread: float) -> np.ndarray:
        return spread * random.standard_normal(count)

    def chance(probability: np.ndarray | float) -> np.ndarray:
        return random.random(count) < probability

    male = random.permutation(np.arange(count) % 2)
    young = np.clip(27 + normal(7), 14, 45)
    age = np.rint(np.where(chance(style.young), young, random.uniform(1, OLDEST, count)))
    child = np.clip((17 - age) / 15, 0, 1)
    old = np.clip((age - 25) / 50, 0, 1.2)
    masculine = (2 * male - 1) * (1 - 0.8 * child)  # what shows of it, -1 to 1
    seen = {name: np.clip(old + normal(0.17), 0, 1.3) for name in ("forehead", "cheeks", "eyes", "sag", "grey")}

    at = np.clip(random.uniform(*style.skin, count), 0, 1) * (len(SKIN) - 1)
    low = np.minimum(at.astype(int), len(SKIN) - 2)
    skin = SKIN[low] + (at - low)[:, None] * (SKIN[low + 1] - SKIN[low]) + normal(0.02)[:, None]
    natural = HAIR[random.choice(len(HAIR), count, p=style.hair)] * (1 + normal(0.15))[:, None]
    grey = np.clip(1.4 * seen["grey"] - 0.35, 0, 1) * ~chance(style.dyed)
    woman, man = style.long_hair
    lips, lids = style.painted
    painted = chance(np.where(male, lids, lips) * (age > 14))
    traits = {
        "male": male,
        "age": age,
        "child": child,
        "skin": skin,
        "hair": natural + grey[:, None] * (GREY - natural),
        "brows_colour": natural * 0.8 + 0.3 * grey[:, None] * (GREY - natural),
        "clothes": random.uniform(0.1, 0.9, (count, 3)),
        "wall": random.uniform(0.35, 0.95, (count, 1)) + random.uniform(-0.12, 0.12, (count, 3)),
        "long": np.where(chance(np.where(male, man, woman) * (1 - 0.25 * (age > 60))), 0.75, 0.08) + normal(0.12),
        "volume": 0.07 + np.abs(normal(0.04)),
        "recede": 0.35 * np.clip(old + normal(0.25), 0, 1) * (0.2 + 0.8 * male),
        "jaw": 2.25 + 0.20 * masculine + 0.25 * seen["sag"] + normal(0.22),
        "width": 0.53 + 0.008 * masculine + 0.05 * child + 0.02 * seen["sag"] + normal(0.02),
        "chin": 0.70 + 0.02 * masculine - 0.12 * child + normal(0.02),
        "eye_height": 0.02 + 0.13 * child + normal(0.02),
        "eye_size": 0.085 + 0.055 * child - 0.012 * seen["eyes"] + normal(0.007),
        "brow": 0.030 + 0.008 * masculine - 0.008 * child + normal(0.007),
        "brow_height": 0.155 - 0.012 * masculine + normal(0.015),
        "nose": 0.26 + 0.012 * masculine - 0.09 * child + normal(0.025),
        "lip": 0.042 - 0.005 * masculine - 0.010 * seen["cheeks"] + normal(0.006),
        "lip_red": 0.35 - 0.04 * masculine + 0.35 * painted + normal(0.10),
        "lids": 0.35 - 0.03 * masculine + 0.4 * painted * chance(0.7) + normal(0.1),
        "beard": chance(style.beard * male * (age > 18)) * random.uniform(0.25, 0.9, count),
        "shadow": 0.05 * male * (age > 16) * random.random(count),
        "neck": 0.27 + 0.02 * masculine - 0.03 * child + normal(0.02),
        "forehead_lines": 0.55 * seen["forehead"] * random.uniform(0.4, 1, count),
        "cheek_lines": 0.6 * seen["cheeks"] * random.uniform(0.5, 1, count),
        "eye_lines": 0.6 * seen["eyes"] * random.uniform(0.5, 1, count),
        "cap": chance(style.cap),
        "clutter": style.clutter * random.uniform(0.3, 1, count),
        "pattern": random.uniform(-7, 7, (count, 3)),
        "glasses": chance(style.glasses) * 0.7,
        "roll": normal(style.turn),
        "yaw": normal(style.turn * 0.7),
        "zoom": 1.2 + normal(0.03 + 0.15 * style.turn),
        "right": normal(0.02 + 0.2 * style.turn),
        "down": -0.04 + normal(0.02 + 0.2 * style.turn),
    }
    return {name: np.asarray(values, np.float32) for name, values in traits.items()}


class _Canvas:
    """The pictures of a chunk, float32 [n, 3, size, size], and the places (u, v) in each face's own measures.

    The face's middle is (0, 0), u grows to the right and v downwards; half the picture's height is 1.
    """

    def __init__(self, t: Traits, size: int) -> None:
        axis = ((np.arange(size, dtype=np.float32) + 0.5) * 2 / size - 1).astype(np.float32)
        self.across, self.along = axis[None, None, :], axis[None, :, None]
        cos, sin, zoom = (_wide(values) for values in (np.cos(t["roll"]), np.sin(t["roll"]), t["zoom"]))
        dx, dy = (self.across - _wide(t["right"])) / zoom, (self.along - _wide(t["down"])) / zoom
        self.u, self.v = cos * dx + sin * dy, cos * dy - sin * dx
        self.face_u = self.u - 0.35 * _wide(t["yaw"])  # where the features sit when the head turns
        self.sharpness = np.float32(size / 2) * zoom
        self.image = np.empty((len(t["male"]), 3, size, size), np.float32)

    def soft(self, inside: np.ndarray) -> np.ndarray:
        """Coverage of each pixel from the distance to a shape's edge, positive inside."""
        return np.clip(inside * self.sharpness + np.float32(0.5), 0, 1)

    def oval(self, u: np.ndarray, v: np.ndarray, rx: np.ndarray, ry: np.ndarray) -> np.ndarray:
        """Coverage of an oval around u = v = 0 with the radii ``rx`` and ``ry``."""
        return self.soft((1 - np.sqrt((u / rx) ** 2 + (v / ry) ** 2)) * np.minimum(rx, ry))

    def stroke(self, u: np.ndarray, v: np.ndarray, length: np.ndarray | float, width: np.ndarray | float) -> np.ndarray:
        """Coverage of a line along u, half ``length`` to either side and half ``width`` thick, fading to its ends."""
        return np.clip(1 - (u / length) ** 2, 0, 1) * self.soft(width - np.abs(v)) * _thin(width, self.sharpness)

    def paint(self, coverage: np.ndarray, colour: np.ndarray) -> None:
        """Lay ``colour`` [n, 3] over the pictures where ``coverage`` [n, size, size] is."""
        self.image += coverage[:, None] * (colour[:, :, None, None] - self.image)

    def shade(self, amount: np.ndarray) -> None:
        """Darken by ``amount`` [n, size, size] in [0, 1]."""
        self.image *= (1 - amount)[:, None]


def _wide(values: np.ndarray) -> np.ndarray:
    """[n] as [n, 1, 1], to meet pictures."""
    return values[:, None, None]


def _thin(width: np.ndarray | float, sharpness: np.ndarray) -> np.ndarray:
    """What a line thinner than a pixel loses of its weight."""
    return np.minimum(1, 2 * width * sharpness)


def _paint(t: Traits, size: int) -> np.ndarray:
    """The people as they look, float32 [n, 3, size, size] in about [0, 1], before the camera."""
    c = _Canvas(t, size)
    width, volume, hair, skin = _wide(t["width"]), _wide(t["volume"]), t["hair"], t["skin"]
    first, second, phase = (_wide(column) for column in t["pattern"].T)
    waves = np.sin(first * c.across + second * c.along + phase) * np.sin(second * c.across - phase * c.along)
    c.image[:] = t["wall"][:, :, None, None] + (_wide(t["clutter"]) * waves)[:, None]

    fall = c.soft(np.minimum(width + volume - np.abs(c.u), 1.15 * _wide(t["long"]) - c.v + 0.1)) * (c.v > -0.1)
    c.paint(fall, 0.85 * hair)
    c.paint(c.soft(_wide(t["neck"]) - np.abs(c.u)) * (c.v > 0.2), 0.85 * skin)
    c.paint(c.oval(c.u, c.v - 1.35, 1.05 - 0.25 * _wide(t["child"]), 0.5), t["clothes"])

    crown = c.oval(c.u, c.v + 0.1, width + volume, 0.62 + volume)
    c.paint(crown * (c.v < 0.15), hair)
    recede = _wide(t["recede"])
    line = -0.40 - recede + (0.3 - 0.7 * recede) * (c.face_u / width) ** 2  # high in the middle, low at the temples
    face = _head(c, t)
    c.paint(face * c.soft(c.v - line), skin)
    ears = c.oval(np.abs(c.u) - width, c.v - 0.08, np.float32(0.07), np.float32(0.12))
    c.paint(ears * (1 - fall), skin)
    _mark(c, t, face)
    _draw_features(c, t, face)
    c.paint(_wide(t["cap"]) * crown * c.soft(-0.3 - c.v), t["clothes"][:, ::-1])
    return c.image


def _head(c: _Canvas, t: Traits) -> np.ndarray:
    """Coverage of the head: half an oval above, half a superellipse below, the squarer the larger "jaw" is."""
    u, width = np.abs(c.u) / _wide(t["width"]), _wide(t["width"])
    power = np.where(c.v < 0, np.float32(2), _wide(t["jaw"]))
    height = np.where(c.v < 0, np.float32(0.64), _wide(t["chin"]))
    radius = (u**power + (np.abs(c.v) / height) ** power) ** (1 / power)
    return c.soft((1 - radius) * width)


def _mark(c: _Canvas, t: Traits, face: np.ndarray) -> None:
    """Lines of age, as shadows on the skin."""
    u, eyes = np.abs(c.face_u), c.v - _wide(t["eye_height"])
    nose = _wide(t["nose"])
    thin = np.float32(0.022)
    lines = _wide(t["forehead_lines"]) * (
        c.stroke(c.face_u, eyes + 0.29, 0.32, thin) + c.stroke(c.face_u, eyes + 0.37, 0.28, thin)
    )
    along, across = 0.5 * (u - 0.20) + 0.866 * (eyes - nose - 0.07), 0.866 * (u - 0.20) - 0.5 * (eyes - nose - 0.07)
    lines += _wide(t["cheek_lines"]) * c.stroke(along, across, 0.17, thin * 1.3)
    lines += _wide(t["eye_lines"]) * (
        c.stroke(u - 0.20, eyes - 0.12, 0.13, thin * 1.2) + c.stroke(u - 0.38, eyes - 0.02, 0.08, thin)
    )
    c.shade(np.clip(lines, 0, 0.8) * face)


def _draw_features(c: _Canvas, t: Traits, face: np.ndarray) -> None:
    """Beard, mouth, nose, eyes, brows and glasses; both sides at once, since u enters as its absolute value."""
    u, eyes, eye = np.abs(c.face_u), c.v - _wide(t["eye_height"]), _wide(t["eye_size"])
    aside = u - 0.21  # from the middle of the nearer eye
    nose, lip = _wide(t["nose"]), np.maximum(_wide(t["lip"]), 0.012)
    mouth = eyes - nose - 0.15
    bearded = np.maximum(_wide(t["beard"]), _wide(t["shadow"]))
    c.paint(face * bearded * c.soft(mouth + 0.07 + 0.45 * np.maximum(u - 0.2, 0)), t["brows_colour"])

    red = t["skin"] * (1 - t["lip_red"][:, None] * np.array([0.15, 0.75, 0.65], np.float32))
    c.paint(c.oval(c.face_u, mouth, np.float32(0.17), lip), red)
    c.shade(0.5 * c.stroke(c.face_u, mouth, 0.17, np.float32(0.012)))
    c.shade(0.3 * c.oval(u - 0.04, eyes - nose, np.float32(0.05), np.float32(0.03)))
    c.shade(0.18 * c.stroke(eyes - 0.5 * nose, c.face_u - 0.05, nose * 0.5, np.float32(0.02)))

    ones = np.ones_like(t["skin"])
    c.paint(c.oval(aside, eyes, 1.25 * eye, 0.7 * eye), 0.93 * ones)
    c.paint(c.oval(aside, eyes, 0.62 * eye, 0.68 * eye), 0.4 * t["brows_colour"])
    c.shade(np.clip(_wide(t["lids"]), 0, 1) * c.stroke(aside, eyes + 0.72 * eye, 1.5 * eye, np.float32(0.022)))
    brow = np.maximum(_wide(t["brow"]), 0.006)
    c.paint(0.9 * c.stroke(aside, eyes + _wide(t["brow_height"]), 0.15, brow), t["brows_colour"])
    ring = np.abs(np.sqrt((aside / 0.17) ** 2 + (eyes / 0.14) ** 2) - 1) * 0.15
    c.shade(_wide(t["glasses"]) * c.soft(0.018 - ring) * _thin(np.float32(0.018), c.sharpness))


def _photograph(image: np.ndarray, style: Style, random: np.random.Generator) -> np.ndarray:
    """What the party's camera makes of pictures [n, 3, size, size]: uint8, of the same shape."""
    count, size = len(image), image.shape[-1]
    ramp = np.linspace(-1, 1, size, dtype=np.float32)

    def normal(spread: float, *shape: int) -> np.ndarray:
        return np.float32(spread) * random.standard_normal((count, *shape), np.float32)

    light = (
        1 + _wide(normal(style.slant)) * ramp[None, None, :] + _wide(normal(0.4 * style.slant)) * ramp[None, :, None]
    )
    image *= np.clip(light, 0.25, 1.6)[:, None]
    image *= (style.level * np.array(style.cast, np.float32) * (1 + normal(0.05, 3)) * (1 + normal(0.06, 1)))[
        :, :, None, None
    ]
    for _ in range(max(1, round(size / 32))):
        for axis in (2, 3):
            near = np.pad(image, [(0, 0)] * axis + [(1, 1)] + [(0, 0)] * (3 - axis), "edge")
            before, after = (near[(slice(None),) * axis + (part,)] for part in (slice(None, -2), slice(2, None)))
            image += np.float32(style.blur / 3) * (before + after - 2 * image)
    image += normal(style.noise, *image.shape[1:])
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
