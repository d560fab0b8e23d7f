"""What stands beside an exported model: a JSON that tells a phone, or any other reader, everything it must know.

    {"contract": 1, "name": "digits", "version": "1", "runtime": "litert", "runtime_version": "2.1.4", "bits": 8,
     "mode": "dynamic", "model": {"file": "digits.tflite", "bytes": 61234, "sha256": "..."},
     "input": {"name": "image", "shape": [1, 3, 32, 32], "dtype": "float32", "layout": "NCHW", "colours": "RGB",
               "scale": [0.0039, ...], "bias": [0.0, ...], "applied_by": "caller"},
     "output": {"name": "logits", "shape": [1, 10], "dtype": "float32"}, "labels": ["0", ...], "training": {}}

``scale`` and ``bias``, one each per colour: the network was trained on ``scale * pixel + bias``, pixels being 0 .. 255.
``applied_by`` says who computes that: "caller" (give the file the result) or "model" (give it the pixels).
``training``: signature name -> {"inputs": {name: {"shape", "dtype"}}, "outputs": {...}}, empty where there is none.
Beside signatures stand "state": {"file", "bytes", "sha256"}, the weights to begin with; an input may have a "default",
an output says what it "gives".
The sha256 of a folder (Core ML's .mlpackage) is that of its files' ``<sha256>  <path>`` lines, sorted by path.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fl_utils.paths import write_whole

VERSION = 1
RUNTIMES = ("coreml", "litert", "executorch", "onnx")
COLOURS = {1: "GRAY", 3: "RGB"}
SUFFIX = ".contract.json"


@dataclass(frozen=True)
class Input:
    """The images that a model takes: ``shape`` is [N, C, H, W]; ``scale`` and ``bias`` have C numbers each."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: str
    colours: str
    scale: tuple[float, ...]
    bias: tuple[float, ...]
    applied_by: str


@dataclass(frozen=True)
class Output:
    """What a model gives: logits of ``shape`` [N, classes]."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Contract:
    """One exported model; ``path`` is the JSON's own place, None until it has one."""

    name: str
    version: str
    runtime: str
    runtime_version: str
    bits: int
    mode: str
    file: str
    bytes: int
    sha256: str
    input: Input
    output: Output
    labels: tuple[str, ...]
    training: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None

    @property
    def model_path(self) -> Path:
        """The model's file (Core ML: folder), beside the contract."""
        if self.path is None:
            raise ValueError(f"contract {self.name!r} was not written yet: there is no model beside it")
        return self.path.parent / self.file

    def tensor(self, images: np.ndarray) -> np.ndarray:
        """``images``, uint8 [N, H, W, C] with this contract's H, W and C, as the float32 [N, C, H, W] the file takes.

        Raises ValueError where they have another type, shape or size.
        """
        images = np.asarray(images)
        _, channels, height, width = self.input.shape
        wanted = f"uint8 [N, {height}, {width}, {channels}], {self.input.colours} pixels of 0 to 255"
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (height, width, channels):
            raise ValueError(f"images are {images.dtype} {list(images.shape)}: {self.name!r} wants {wanted}")
        if not len(images):
            raise ValueError(f"there is no image: {self.name!r} wants {wanted}, N at least 1")
        pixels = np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32)
        if self.input.applied_by == "model":
            return pixels
        scale, bias = (np.float32(values).reshape(-1, 1, 1) for values in (self.input.scale, self.input.bias))
        return pixels * scale + bias

    def as_json(self) -> str:
        """The text of the file."""
        own = {key: getattr(self, key) for key in ("name", "version", "runtime", "runtime_version", "bits", "mode")}
        content = {
            "contract": VERSION,
            **own,
            "model": {key: getattr(self, key) for key in ("file", "bytes", "sha256")},
            "input": vars(self.input),
            "output": vars(self.output),
            "labels": self.labels,
            "training": self.training,
        }
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"

    def write(self, folder: Path) -> Contract:
        """Write ``<model's stem>.<runtime>.contract.json`` whole into ``folder``, beside the model; reads it back."""
        path = folder / f"{Path(self.file).name.rpartition('.')[0]}.{self.runtime}{SUFFIX}"
        write_whole(path, self.as_json())
        return load_contract(path)


def load_contract(path: Path | str) -> Contract:
    """Read a contract and check it, and the model beside it.

    Raises ValueError: a file that is not such JSON, a missing or wrong value (naming it), labels that are not as many
    as the model's outputs, a model that is missing, truncated or altered (by size and sha256).
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"contract {path}: there is no such file; want the {SUFFIX} beside a model") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"contract {path} cannot be read as JSON ({error}): export the model again") from None
    wrong = _Reader(f"contract {path}")
    wrong.that(isinstance(content, dict), "it holds no JSON object")
    found = content.get("contract")
    wrong.that(found == VERSION, f"contract is {found!r}, want {VERSION}, the version that this program reads")
    own = {key: wrong.text(content, key) for key in ("name", "version", "runtime", "runtime_version", "mode")}
    wrong.that(own["runtime"] in RUNTIMES, f"runtime is {own['runtime']!r}, want one of {', '.join(RUNTIMES)}")
    bits = wrong.value(content, "bits", int)
    model = wrong.value(content, "model", dict)
    file, size, sha256 = wrong.text(model, "file"), wrong.value(model, "bytes", int), wrong.text(model, "sha256")
    wrong.that(Path(file).name == file, f"model.file is {file!r}, want a plain name of a file beside the contract")
    taken, given = wrong.value(content, "input", dict), wrong.value(content, "output", dict)
    labels = wrong.value(content, "labels", list)
    contract = Contract(
        **own,
        bits=bits,
        file=file,
        bytes=size,
        sha256=sha256,
        input=_input(wrong, taken),
        output=Output(wrong.text(given, "name"), wrong.shape(given, 2), wrong.text(given, "dtype")),
        labels=tuple(labels),
        training=wrong.value(content, "training", dict),
        path=path,
    )
    try:
        check_labels(labels, contract.output.shape[1])
    except ValueError as error:
        wrong.that(False, str(error))
    _check_model(contract, wrong)
    return contract


def check_labels(labels: Any, outputs: int) -> None:
    """Raise ValueError unless ``labels`` are different, non-empty texts, one for each of a model's ``outputs``."""
    if not all(isinstance(label, str) and label for label in labels) or len(set(labels)) != len(labels):
        raise ValueError(f"labels are {list(labels)}: want different, non-empty texts")
    if len(labels) != outputs:
        raise ValueError(f"there are {len(labels)} labels and the model has {outputs} outputs: want one label for each")


def digest(path: Path) -> tuple[int, str]:
    """Size in bytes and sha256 of a model: a file, or a folder of files (see the head of this module)."""
    if path.is_file():
        data = path.read_bytes()
        return len(data), hashlib.sha256(data).hexdigest()
    files = sorted((file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file())
    parts = [(name, *digest(file)) for name, file in files]
    lines = "".join(f"{sha256}  {name}\n" for name, _, sha256 in parts)
    return sum(size for _, size, _ in parts), hashlib.sha256(lines.encode()).hexdigest()


def _check_model(contract: Contract, wrong: _Reader) -> None:
    path = contract.model_path
    wrong.that(path.exists(), f"its model {contract.file} is missing: export it again")
    size, sha256 = digest(path)
    if size != contract.bytes:
        how = "truncated" if size < contract.bytes else "altered"
        wrong.that(False, f"its model {contract.file} has {size} bytes, want {contract.bytes}: it was {how}")
    altered = (
        f"its model {contract.file} has the sha256 {sha256[:12]}..., want {contract.sha256[:12]}...: it was altered"
    )
    wrong.that(sha256 == contract.sha256, altered)


def _input(wrong: _Reader, taken: dict) -> Input:
    shape = wrong.shape(taken, 4)
    numbers = {}
    for key in ("scale", "bias"):
        values = wrong.value(taken, key, list)
        fit = len(values) == shape[1] and all(type(each) in (int, float) and math.isfinite(each) for each in values)
        wrong.that(fit, f"input.{key} is {values}, want {shape[1]} finite numbers, one per colour")
        numbers[key] = tuple(map(float, values))
    named = {key: wrong.text(taken, key) for key in ("name", "dtype", "layout", "colours", "applied_by")}
    choices = {"dtype": ("float32",), "layout": ("NCHW",), "applied_by": ("caller", "model")}
    choices["colours"] = (COLOURS.get(shape[1], "OTHER"),)
    for key, values in choices.items():
        wrong.that(named[key] in values, f"input.{key} is {named[key]!r}, want {' or '.join(map(repr, values))}")
    return Input(shape=shape, **numbers, **named)


class _Reader:
    """Values out of a JSON object, or one ValueError that says which is wrong in which file."""

    def __init__(self, where: str) -> None:
        self.where = where

    def that(self, holds: bool, message: str) -> None:
        if not holds:
            raise ValueError(f"{self.where}: {message}")

    def value(self, content: dict, key: str, kind: type) -> Any:
        self.that(key in content, f"{key!r} is missing; export the model again")
        found = content[key]
        self.that(type(found) is kind, f"{key!r} is {found!r}, want {kind.__name__}")
        return found

    def text(self, content: dict, key: str) -> str:
        return self.value(content, key, str)

    def shape(self, content: dict, rank: int) -> tuple[int, ...]:
        found = self.value(content, "shape", list)
        fit = len(found) == rank and all(type(size) is int and size > 0 for size in found)
        self.that(fit, f"'shape' is {found}, want {rank} whole numbers from 1 up")
        return tuple(found)
