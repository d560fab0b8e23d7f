"""LiteRT trains: a file whose signatures are a step of SGD and the network itself, both with the parameters as inputs.

    contract = export_training(small_cnn_600k(), batch=32, learning_rate=0.1, folder=folder)
    trainer = LiteRTTrainer(contract.path)              # NumPy and the runtime, no torch
    trainer.train(images, labels, epochs=1, batch_size=32, learning_rate=0.1, seed=0)
    trainer.vector                                      # the model's state, as fl_utils.flat lays it out

LiteRT's converter takes no backward pass of torch as it is; :mod:`fl_utils.on_device.lowered` writes the network in
operations whose gradient it takes, and the gradient is traced before it converts. The number of images of a batch is
fixed in the file; a shorter one is filled up with rows that have no label and count for nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fl_utils.export.contract import Contract, Input, Output, digest, load_contract
from fl_utils.on_device.order import batches
from fl_utils.paths import write_whole

if TYPE_CHECKING:
    from torch import nn

CHANNELS = {1: "GRAY", 3: "RGB"}


def export_training(
    model: nn.Sequential,
    batch: int,
    learning_rate: float,
    folder: Path | str,
    labels: Sequence[str] = tuple("0123456789"),
    image_shape: Sequence[int] = (1, 28, 28),
    name: str = "training",
    version: str = "1",
) -> Contract:
    """Write ``<name>.tflite`` with the signatures ``train`` and ``infer``, ``<name>.state`` and the contract.

    train: ``image`` float32 [batch, C, H, W] in [0, 1], ``labels`` one-hot float32 [batch, classes] (a row of zeros
    does not count), ``learning_rate`` and ``parameter_0`` ... -> the loss and the new parameters. infer: ``image`` and
    the parameters -> logits. ``<name>.state``: the parameters of ``model`` as one vector, little-endian float32.
    learning_rate: what the contract names as its default; a trainer may give another with each step.

    Raises ValueError on a layer without such a gradient (:class:`fl_utils.on_device.lowered.Unsupported`), on labels or
    numbers that do not fit, and :class:`fl_utils.export.ExportError` where the converter refuses.
    """
    import torch

    from fl_utils.export import prepare
    from fl_utils.export.contract import check_labels
    from fl_utils.on_device import lowered

    if type(batch) is not int or batch < 1:
        raise ValueError(f"batch is {batch!r}: want a whole number from 1 up")
    if not 0 < learning_rate < float("inf"):
        raise ValueError(f"learning_rate is {learning_rate!r}: want a finite number above 0")
    prepare.check_name(name)
    step, run = lowered.sgd_step(model), lowered.forward(model)
    parameters = [parameter.detach().cpu().clone() for parameter in model.parameters()]
    shape = (batch, *image_shape)
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    try:
        classes = run(parameters, image).shape[1]
    except (RuntimeError, IndexError) as error:
        raise ValueError(f"the model does not take images of shape {list(shape)}: {error}") from error
    check_labels(labels, classes)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.tflite"
    _convert(step, run, parameters, image, classes, learning_rate, path)
    state = np.concatenate([parameter.numpy().reshape(-1) for parameter in parameters]).astype("<f4").tobytes()
    write_whole(folder / f"{name}.state", state)
    size, sha256 = digest(path)
    contract = Contract(
        *(name, version, "litert", prepare.distribution_version("ai-edge-litert"), 32, "float"),
        *(path.name, size, sha256),
        input=Input(
            "image",
            shape,
            "float32",
            "NCHW",
            CHANNELS.get(shape[1], "OTHER"),
            (1 / 255,) * shape[1],
            (0.0,) * shape[1],
            "caller",
        ),
        output=Output("output_0", (batch, classes), "float32"),
        labels=tuple(labels),
        training=_training([list(p.shape) for p in parameters], shape, classes, learning_rate, f"{name}.state", state),
    )
    return contract.write(folder)


def _convert(step, run, parameters, image, classes: int, learning_rate: float, path: Path) -> None:
    """Trace the step with its gradient, convert both signatures into one file, write it whole."""
    import torch
    from torch import nn
    from torch.fx.experimental.proxy_tensor import make_fx

    from fl_utils.export import lean
    from fl_utils.export.quiet import refusing, silenced

    targets = torch.eye(classes)[torch.arange(len(image)) % classes]
    rate = torch.tensor(float(learning_rate))
    with lean.conversion():
        traced = make_fx(step)(image, targets, rate, *parameters)

    class Train(nn.Module):
        def __init__(self):
            super().__init__()
            self.step = traced

        def forward(self, image, labels, learning_rate, **parameters):
            return self.step(image, labels, learning_rate, *parameters.values())

    class Infer(nn.Module):
        def forward(self, image, **parameters):
            return run(list(parameters.values()), image)

    named = {f"parameter_{number}": parameter for number, parameter in enumerate(parameters)}
    given = {"image": image, "labels": targets, "learning_rate": rate, **named}
    temporary = path.with_name(f".{path.name}")
    with refusing("litert", path.stem), silenced(), lean.conversion():
        with lean.imports():
            import litert_torch

        converted = litert_torch.signature("train", Train().eval(), sample_kwargs=given)
        converted = converted.signature("infer", Infer().eval(), sample_kwargs={"image": image, **named})
        converted.convert().export(str(temporary))
    temporary.replace(path)


def _training(shapes: list[list[int]], image: Sequence[int], classes: int, rate: float, file: str, state: bytes):
    """The contract's ``training``: both signatures, name by name, and the file of the first state."""

    def tensor(shape: Sequence[int], **more) -> dict:
        return {"shape": list(shape), "dtype": "float32", **more}

    parameters = {f"parameter_{number}": tensor(shape) for number, shape in enumerate(shapes)}
    inputs = {
        "image": tensor(image),
        "labels": tensor((image[0], classes)),
        "learning_rate": tensor((), default=rate),
        **parameters,
    }
    updated = {
        f"output_{number + 1}": tensor(shape, gives=f"parameter_{number}") for number, shape in enumerate(shapes)
    }
    return {
        "train": {"inputs": inputs, "outputs": {"output_0": tensor((), gives="loss"), **updated}},
        "infer": {
            "inputs": {"image": tensor(image), **parameters},
            "outputs": {"output_0": tensor((image[0], classes), gives="logits")},
        },
        "state": {"file": file, "bytes": len(state), "sha256": hashlib.sha256(state).hexdigest()},
    }


class LiteRTTrainer:
    """A network and its training step from a file of :func:`export_training`, with its state; one thread by default.

    Raises ValueError on a contract or a file that :func:`fl_utils.export.load_contract` refuses, on a contract without
    a training step, and on a state file that is truncated or altered.
    """

    def __init__(self, contract: Contract | Path | str, threads: int = 1):
        from ai_edge_litert.interpreter import Interpreter

        from fl_utils.export.quiet import silenced

        self.contract = load_contract(contract.path if isinstance(contract, Contract) else contract)
        signatures = self.contract.training
        if self.contract.runtime != "litert" or not {"train", "infer", "state"} <= signatures.keys():
            raise ValueError(f"contract {self.contract.path} has no training step for LiteRT: want export_training's")
        with silenced():
            self._interpreter = Interpreter(str(self.contract.model_path), num_threads=threads)
            self._train, self._infer = (self._interpreter.get_signature_runner(name) for name in ("train", "infer"))
        inputs = signatures["train"]["inputs"]
        self.batch, self.classes = inputs["labels"]["shape"]
        self.learning_rate = inputs["learning_rate"]["default"]
        outputs = signatures["train"]["outputs"].items()
        self._updated = {value["gives"]: name for name, value in outputs}
        names = sorted((name for name in inputs if name.startswith("parameter_")), key=lambda n: int(n.split("_")[1]))
        self._shapes = {name: tuple(inputs[name]["shape"]) for name in names}
        self.load(self._first(signatures["state"]))
        with silenced():  # the first call of each signature is when the runtime says what it has chosen
            image, targets = self._filled(
                np.zeros((1, *self.contract.input.shape[1:]), np.uint8), np.zeros(1, np.int64)
            )
            self._infer(image=image, **self._parameters)
            self._train(image=image, labels=targets, learning_rate=np.float32(0), **self._parameters)

    def _first(self, about: dict) -> np.ndarray:
        path = self.contract.model_path.with_name(about["file"])
        data = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(data).hexdigest() != about["sha256"]:
            raise ValueError(f"state {path} is missing, truncated or altered: export the model again")
        return np.frombuffer(data, "<f4").astype(np.float32)

    @property
    def vector(self) -> np.ndarray:
        """The state, float32 [d], a copy: every parameter in the order of the model's."""
        return np.concatenate([value.reshape(-1) for value in self._parameters.values()])

    def load(self, vector: np.ndarray) -> None:
        """Set the state from ``vector`` (float32 [d]). Raises ValueError on another type or length."""
        vector, sizes = np.asarray(vector), [int(np.prod(shape)) for shape in self._shapes.values()]
        if vector.dtype != np.float32 or vector.shape != (sum(sizes),):
            raise ValueError(f"vector is {vector.dtype} {list(vector.shape)}: this model's is float32 [{sum(sizes)}]")
        parts = np.split(vector.copy(), np.cumsum(sizes)[:-1])
        self._parameters = {
            name: part.reshape(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }

    def step(self, images: np.ndarray, labels: np.ndarray, learning_rate: float | None = None) -> float:
        """One step of SGD on at most ``batch`` images, uint8 [N, C, H, W], and labels, int [N]; the loss before it."""
        rate = np.float32(self.learning_rate if learning_rate is None else learning_rate)
        image, targets = self._filled(images, labels)
        given = self._train(image=image, labels=targets, learning_rate=rate, **self._parameters)
        self._parameters = {name: given[self._updated[name]] for name in self._parameters}
        return float(given[self._updated["loss"]])

    def train(
        self, x: np.ndarray, y: np.ndarray, epochs: int, batch_size: int, learning_rate: float, seed: int
    ) -> list[float]:
        """Local training on ``x`` uint8 [N, C, H, W], ``y`` int [N] in a device's order; the mean loss of each epoch.

        Raises ValueError where a batch is larger than the file's.
        """
        if not 1 <= (batch_size or len(x)) <= self.batch:
            raise ValueError(f"batch_size is {batch_size}: this file takes 1 to {self.batch} images at once")
        losses = [
            self.step(x[chosen], y[chosen], learning_rate) * len(chosen)
            for chosen in batches(len(x), batch_size, epochs, seed)
        ]
        return [float(part.sum() / len(x)) for part in np.split(np.array(losses), epochs)]

    def outputs(self, x: np.ndarray) -> np.ndarray:
        """Logits, float32 [N, classes], of ``x`` uint8 [N, C, H, W]."""
        results = []
        for start in range(0, len(x), self.batch):
            part = x[start : start + self.batch]
            image, _ = self._filled(part, np.zeros(len(part), np.int64))
            results.append(self._infer(image=image, **self._parameters)[self.contract.output.name][: len(part)])
        return np.concatenate(results)

    def accuracy(self, x: np.ndarray, y: np.ndarray) -> float:
        """Share of ``x`` uint8 [N, C, H, W] whose largest logit is at ``y`` int [N]."""
        return float((self.outputs(x).argmax(1) == y).mean())

    def _filled(self, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The two inputs of a step: images in [0, 1] and one-hot labels, filled up with zeros to the file's batch."""
        shape, images, labels = self.contract.input.shape, np.asarray(images), np.asarray(labels)
        if images.dtype != np.uint8 or images.shape[1:] != shape[1:] or not 1 <= len(images) <= self.batch:
            raise ValueError(
                f"images are {images.dtype} {list(images.shape)}: want uint8 {['N', *shape[1:]]}, N 1 to {self.batch}"
            )
        if labels.shape != images.shape[:1] or labels.min() < 0 or labels.max() >= self.classes:
            raise ValueError(f"labels: want one for each of {len(images)} images, from 0 to {self.classes - 1}")
        image, targets = np.zeros(shape, np.float32), np.zeros((self.batch, self.classes), np.float32)
        np.multiply(images, np.float32(1 / 255), out=image[: len(images)], casting="unsafe")
        targets[np.arange(len(labels)), labels] = 1
        return image, targets
