"""What a datasite's job takes in and gives back: weights as text, settings, the owner's arrays, one update as bytes.

A job is a text file of Python that an owner reads before it runs. With this module it stays short enough to be read::

    from fl_utils.secure import datasite_job as job

    x, y = job.data()                 # the owner's private arrays
    weights = job.weights()           # name -> float32 array, as the scientist sent them
    ...                               # local training, with numpy, torch or fl_utils
    job.give_back(weights, len(y))    # the trained weights and how many examples they have seen

The transport carries only UTF-8 text to an owner, so weights travel as base64 inside JSON; what comes back may be
binary. An update is one header line of JSON (number of examples, layout, sha256 of the rest) and then every array's
numbers in the layout's order, little-endian float32. Nothing here is pickled, and nothing but numpy is imported.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np

LIMIT = 1_000_000  # floats of one set of weights: the transport packs, copies and reads them as text many times over
HEADER_LIMIT = 1 << 16  # bytes of an update's first line
WEIGHTS, SETTINGS, UPDATE = "weights.json", "settings.json", "update.bin"
DATA_VARIABLE = "FL_DATASITE_DATA"  # the environment variable in which an owner tells its job where the arrays are

Layout = tuple[tuple[str, tuple[int, ...]], ...]  # (name, shape) of each array, in the vector's order


def layout_of(weights: Mapping[str, np.ndarray]) -> Layout:
    """Names and shapes of ``weights``, in their order."""
    return tuple((str(name), tuple(int(side) for side in np.shape(array))) for name, array in weights.items())


def flatten(weights: Mapping[str, np.ndarray]) -> np.ndarray:
    """``weights`` as one float32 vector [d], a copy.

    Raises ValueError where there is none, where an entry is not finite, or where d is above :data:`LIMIT`.
    """
    if not weights:
        raise ValueError("weights is empty: want at least one named array")
    total = sum(prod(shape) for _, shape in layout_of(weights))
    if not 0 < total <= LIMIT:
        raise ValueError(f"weights hold {total:,} floats: this slow transport takes 1 to {LIMIT:,}")
    parts = []
    for name, array in weights.items():
        try:
            array = np.asarray(array)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"weights[{name!r}] is no array: {error}") from None
        if type(name) is not str or array.dtype.kind not in "fiu":
            raise ValueError(f"weights[{name!r}] is of type {array.dtype}: want numbers, under a name that is text")
        with np.errstate(over="ignore"):  # the line below says so
            part = array.astype("<f4").ravel()
        if not np.isfinite(part).all():
            raise ValueError(f"weights[{name!r}] holds a number that is not finite in float32")
        parts.append(part)
    return np.concatenate(parts)


def unflatten(vector: np.ndarray, layout: Layout) -> dict[str, np.ndarray]:
    """``vector`` (float32 [d]) as name -> array, each a copy. ValueError: d is not what ``layout`` needs."""
    sizes = [prod(shape) for _, shape in layout]
    if np.shape(vector) != (sum(sizes),):
        raise ValueError(f"the vector has shape {np.shape(vector)}: its layout needs ({sum(sizes)},)")
    parts = np.split(np.asarray(vector, dtype="float32"), np.cumsum(sizes)[:-1])
    return {name: part.reshape(shape).copy() for (name, shape), part in zip(layout, parts, strict=True)}


def to_text(weights: Mapping[str, np.ndarray]) -> str:
    """``weights`` as JSON: their layout, and their vector in base64. Raises as :func:`flatten` does."""
    vector = flatten(weights)
    return json.dumps({"layout": layout_of(weights), "vector": base64.b64encode(vector.tobytes()).decode()})


def from_text(text: str) -> dict[str, np.ndarray]:
    """The weights that :func:`to_text` wrote. ValueError: the text is something else, or damaged."""
    try:
        fields = json.loads(text)
        layout = _layout(fields["layout"])
        vector = np.frombuffer(base64.b64decode(fields["vector"], validate=True), dtype="<f4")
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise ValueError(f"weights are not a layout and a base64 vector ({type(error).__name__}: {error})") from None
    return unflatten(vector, layout)


def to_bytes(weights: Mapping[str, np.ndarray], num_examples: int) -> bytes:
    """An update: header line and vector. ValueError: no finite numbers, too many, or ``num_examples`` below 1."""
    if isinstance(num_examples, bool) or int(num_examples) != num_examples or num_examples < 1:
        raise ValueError(f"num_examples is {num_examples!r}: want a whole number of at least 1")
    body = flatten(weights).tobytes()
    header = {"num_examples": int(num_examples), "layout": layout_of(weights)}
    return json.dumps(header | {"sha256": hashlib.sha256(body).hexdigest()}).encode() + b"\n" + body


def from_bytes(content: bytes, expected: Layout) -> tuple[np.ndarray, int]:
    """The vector (float32 [d]) and the number of examples of an update, everything about it checked.

    Raises ValueError, saying which: a damaged header, another layout than ``expected``, a wrong size, a checksum that
    does not fit, a number that is not finite.
    """
    line, newline, body = content.partition(b"\n")
    try:
        if not newline or len(line) > HEADER_LIMIT:
            raise ValueError("no header line")
        header = json.loads(line)
        layout, count, sha256 = _layout(header["layout"]), header["num_examples"], header["sha256"]
        if type(count) is not int or not 1 <= count < 2**31:
            raise ValueError(f"num_examples is {count!r}")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the update's header is damaged ({type(error).__name__}: {error})") from None
    if layout != expected:
        raise ValueError(f"the update's layout is {_words(layout)}: want {_words(expected)}")
    size = 4 * sum(prod(shape) for _, shape in expected)
    if len(body) != size:
        raise ValueError(f"the update has {len(body):,} bytes of numbers: its layout needs {size:,}")
    if hashlib.sha256(body).hexdigest() != sha256:
        raise ValueError("the update's checksum does not fit its numbers: it was damaged on the way")
    vector = np.frombuffer(body, dtype="<f4").astype("float32")
    if not np.isfinite(vector).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(vector)):,} of the update's numbers are not finite")
    return vector, count


def data() -> tuple[np.ndarray, np.ndarray]:
    """In a job: the owner's private arrays x [n, ...] and y [n, ...]. RuntimeError: outside a job."""
    if DATA_VARIABLE not in os.environ:
        raise RuntimeError(f"{DATA_VARIABLE} is not set: data() is for a job that a datasite's owner runs")
    with np.load(os.environ[DATA_VARIABLE], allow_pickle=False) as arrays:
        return arrays["x"], arrays["y"]


def weights() -> dict[str, np.ndarray]:
    """In a job: the weights that the scientist sent, name -> float32 array."""
    return from_text(Path(WEIGHTS).read_text(encoding="utf-8"))


def settings() -> dict:
    """In a job: the scientist's settings."""
    return json.loads(Path(SETTINGS).read_text(encoding="utf-8"))


def give_back(weights: Mapping[str, np.ndarray], num_examples: int) -> None:
    """In a job: its update, the trained ``weights`` and how many examples trained them. Raises as :func:`to_bytes`."""
    file = Path("outputs") / UPDATE
    file.parent.mkdir(exist_ok=True)
    whole = file.with_suffix(".part")
    whole.write_bytes(to_bytes(weights, num_examples))
    whole.replace(file)


def _layout(entries: list) -> Layout:
    layout = tuple((name, tuple(shape)) for name, shape in entries)
    for name, shape in layout:
        if type(name) is not str or any(type(side) is not int or side < 0 for side in shape):
            raise ValueError(f"layout has the entry {name!r}, {shape!r}")
    return layout


def _words(layout: Layout) -> str:
    words = ", ".join(f"{name} {list(shape)}" for name, shape in layout[:6])
    return words + (f" and {len(layout) - 6} more" if len(layout) > 6 else "")
