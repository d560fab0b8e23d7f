"""Models for phones: a file for Core ML, LiteRT, ExecuTorch or ONNX Runtime, and a contract beside it.

    contract = export(model, (1, 3, 32, 32), labels, to="litert", folder=folder, bits=8, name="digits")
    logits = run_exported(contract.path, images)            # uint8 [N, H, W, C] -> float32 [N, classes]

The pre-processing (``scale * pixel + bias``) is written down once, in the contract. In a Core ML file it is also in the
model, as its image type's scale and bias: iOS gives such a model a camera's pixels as they are, so nobody is left to
forget it or to do it twice, which is what the thesis' Listing 6.1 comes to. The other three take tensors; their callers
read the two numbers from the contract.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from fl_utils.export import lean, prepare, widths
from fl_utils.export.contract import Contract, Output, check_labels, digest, load_contract
from fl_utils.export.kept import keep
from fl_utils.export.quiet import ExportError, refusing, silenced

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Contract", "ExportError", "export", "keep", "load_contract", "run_exported"]

MOST = 256  # images at once, where a runtime takes any number


def export(
    model: nn.Module,
    example_shape: Sequence[int],
    labels: Sequence[str],
    to: str,
    folder: Path | str,
    bits: int = 32,
    name: str = "model",
    version: str = "1",
    mode: str = "",
    scale: float | Sequence[float] = 1 / 255,
    bias: float | Sequence[float] = 0.0,
    calibration: np.ndarray | None = None,
) -> Contract:
    """Write ``model`` as a file of runtime ``to`` into ``folder``, whole, and its contract beside it.

    model: takes float32 [N, C, H, W], gives logits [N, classes]; it is left as it is (its copy goes to evaluation
    mode). example_shape: [N, C, H, W], N the number of images that the file takes at once. labels: one per class.
    bits, mode: of the weights, see :mod:`fl_utils.export.widths`. scale, bias: the model was trained on
    ``scale * pixel + bias`` (one number, or one per colour), pixels being 0 .. 255; 1/255 and 0 for inputs in [0, 1].
    calibration: images, uint8 [N, H, W, C], by which mode "static" measures the activations.
    Files of the same name are replaced: ``<name>.<suffix>`` and ``<name>.<to>.contract.json``.

    Raises ValueError on a width, mode, shape, name or labels that do not fit, and :class:`ExportError`, which is one,
    on an operator that the runtime does not have; ImportError where its converter is not installed.
    """
    mode = widths.choose(to, bits, mode)
    prepare.check_name(name)
    image = prepare.image_input(to, tuple(example_shape), scale, bias)
    network, example, outputs = prepare.network(model, image.shape)
    check_labels(labels, outputs)
    batches = prepare.calibration_batches(image, calibration, mode)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as scratch:
        with refusing(to, name), silenced(), lean.conversion():
            room = _room(to)
            made = room.convert(network, example, Path(scratch) / name, bits, mode, image, batches)
            runtime_version = room.version()
        size, sha256 = digest(made.path)
        final = folder / made.path.name
        if final.is_dir():  # a folder cannot be replaced by renaming another upon it
            final.rename(Path(scratch) / "old")
        made.path.replace(final)
    contract = Contract(
        *(name, version, to, runtime_version, bits, mode, final.name, size, sha256),
        input=replace(image, name=made.input_name),
        output=Output(made.output_name, (image.shape[0], outputs), "float32"),
        labels=tuple(labels),
    )
    return contract.write(folder)


def run_exported(contract: Contract | Path | str, images: np.ndarray) -> np.ndarray:
    """Logits, float32 [N, classes], of ``images``, uint8 [N, H, W, C], by the runtime of the contract's model.

    LiteRT, ExecuTorch and ONNX Runtime are the real ones. Core ML runs on Apple's machines only; its model is a graph
    of MIL operators, which :mod:`fl_utils.export.mil` computes in torch. Raises ValueError on images of another size or
    type, and on a contract or model that :func:`load_contract` refuses.
    """
    contract = load_contract(contract.path if isinstance(contract, Contract) else contract)
    inputs = contract.tensor(images)
    with silenced():
        run = _room(contract.runtime).session(contract)
        any_batch = getattr(run, "any_batch", False)
        size = MOST if any_batch else contract.input.shape[0]
        results = []
        for start in range(0, len(inputs), size):
            part = inputs[start : start + size]
            missing = 0 if any_batch else size - len(part)
            padded = np.concatenate([part, np.zeros((missing, *part.shape[1:]), np.float32)]) if missing else part
            results.append(np.asarray(run(padded), np.float32)[: len(part)])
    return np.concatenate(results)


def _room(runtime: str) -> ModuleType:
    """The module of one runtime: ``convert``, ``session`` and ``version``."""
    return importlib.import_module(f"fl_utils.export.{runtime}")
