"""ONNX Runtime and ExecuTorch train too, but not in this environment: their training releases need other versions.

Each has an environment of its own at the root of the repository, and a script of ``mobile/probes`` that runs there: it
reads a job from a file and writes the result to another. Where the environment is absent, that is what is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fl_utils import paths
from fl_utils.environments import NOT_INSTALLED, Environment
from fl_utils.on_device.order import batches

PROBES = paths.ROOT / "mobile" / "probes"
OTHERS = {
    "onnxruntime": Environment("ONNX Runtime training", ".venv-ort", PROBES / "ort_training.py"),
    "executorch": Environment("ExecuTorch training", ".venv-executorch", PROBES / "executorch_training.py"),
}


@dataclass(frozen=True)
class Trained:
    """What a script reports. ``why`` says why there is nothing, and is empty where there is.

    vector: the state after ``check_steps`` steps, float32 [d]; losses: of every step; seconds: CPU time of all steps;
    accuracy: after them, in [0, 1]; versions: of what trained.
    """

    why: str = ""
    vector: np.ndarray | None = None
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    accuracy: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)


def train(
    runtime: str,
    parameters: Sequence[np.ndarray],
    x: np.ndarray,
    y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float | np.ndarray,
    seed: int,
    check_steps: int = 20,
    steps: int = 0,
    seconds: float = 1800.0,
    root: Path = paths.ROOT,
) -> Trained:
    """Train the CNN of Table 6.2 by ``runtime`` ("onnxruntime" or "executorch"), in its own environment.

    parameters: the eight of ``small_cnn_600k``, float32. x: uint8 [N, 1, 28, 28], y: int64 [N]; the order of
    examples is a device's (:func:`fl_utils.on_device.order.batches`). learning_rate: one for all steps, or one for
    each. steps: at most so many; 0: all.
    seconds: the most that the script may take.
    Raises ValueError on an unknown runtime and on inputs that do not fit; RuntimeError, with the script's last lines,
    where it fails or takes longer.
    """
    if runtime not in OTHERS:
        raise ValueError(f"runtime is {runtime!r}: want one of {', '.join(OTHERS)}")
    order = _order(len(x), batch_size, epochs, seed)
    rates = np.asarray(learning_rate, np.float32)
    if rates.shape not in ((), (len(order),)) or not (np.isfinite(rates).all() and (rates > 0).all()):
        raise ValueError(f"learning_rate is {learning_rate}: want a number above 0, or {len(order)}, one for each step")
    rates, order = np.broadcast_to(rates, len(order))[: steps or None], order[: steps or None]
    _check(parameters, x, y, test_x, test_y, order, check_steps)
    job = {"x": x, "y": y, "test_x": test_x, "test_y": test_y, "order": order}
    job |= {f"parameter_{number}": np.asarray(value) for number, value in enumerate(parameters)}
    job |= {"learning_rates": rates, "check_steps": np.int64(check_steps)}
    done = OTHERS[runtime].run(job, seconds, root)
    if done is None:
        return Trained(why=NOT_INSTALLED)
    arrays, about = done
    vector = np.concatenate([arrays[f"parameter_{n}"].reshape(-1) for n in range(len(parameters))])
    losses = arrays["losses"].tolist()
    return Trained("", vector, losses, about["seconds"], about["accuracy"], about["versions"])


def _order(examples: int, size: int, epochs: int, seed: int) -> np.ndarray:
    """The batches of all epochs as int64 [steps, size]; -1 fills a short one up."""
    chosen = list(batches(examples, size, epochs, seed))
    order = np.full((len(chosen), max(map(len, chosen), default=0)), -1, np.int64)
    for row, indices in zip(order, chosen, strict=True):
        row[: len(indices)] = indices
    return order


def _check(parameters, x, y, test_x, test_y, order, check_steps) -> None:
    if len(parameters) != 8:
        raise ValueError(f"there are {len(parameters)} parameters: want the 8 of small_cnn_600k")
    for name, images, labels in (("x", x, y), ("test_x", test_x, test_y)):
        if images.dtype != np.uint8 or images.shape[1:] != (1, 28, 28) or len(images) != len(labels) or not len(labels):
            message = f"{name} is {images.dtype} {list(images.shape)} with {len(labels)} labels"
            raise ValueError(f"{message}: want uint8 [N, 1, 28, 28] and N labels, N at least 1")
    if not 1 <= check_steps <= len(order):
        raise ValueError(f"check_steps is {check_steps}: this training has 1 to {len(order)} steps")
