"""Training on the device in LiteRT and Core ML; in ONNX Runtime and ExecuTorch by their own environments."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fl_utils.export import lean
from fl_utils.export.quiet import refusing, silenced
from fl_utils.frameworks.converted import PACKAGES
from fl_utils.frameworks.trial import (
    CLASSES,
    CNN,
    MOBILENET,
    NO,
    NOT_INSTALLED,
    NOT_PROBED,
    PARTLY,
    Cell,
    Trial,
    attempt,
)
from fl_utils.models.mobile import mobilenet_v2
from fl_utils.on_device import coreml, other


def cell(framework: str, column: str, trial: Trial) -> Cell:
    """A training cell of ``framework``: tensorflow_lite, core_ml, onnx_runtime or executorch."""
    name = column.partition("_")[2]
    if framework == "tensorflow_lite":
        return attempt(lambda: (_litert_cnn if name == CNN else _litert_mobilenet)(trial), *PACKAGES["litert"])
    if framework == "core_ml":
        return attempt(lambda: (_coreml_cnn if name == CNN else _coreml_mobilenet)(trial), *PACKAGES["coreml"])
    runtime = {"onnx_runtime": "onnxruntime", "executorch": "executorch"}[framework]
    return attempt(lambda: _elsewhere(runtime, name, trial))


def _litert_cnn(trial: Trial) -> Cell:
    from fl_utils.on_device.litert import LiteRTTrainer, export_training

    made = export_training(trial.networks[CNN], trial.batch, trial.learning_rate, trial.folder / "litert_training")
    trainer = LiteRTTrainer(made)
    images = np.ascontiguousarray(trial.pixels[CNN][: trial.batch].transpose(0, 3, 1, 2))
    for _ in range(trial.steps):
        trainer.step(images, trial.labels.numpy())
    return _vector(trial, trainer.vector)


def _litert_mobilenet(trial: Trial) -> Cell:
    """The step that PyTorch Mobile takes, given to LiteRT's converter, of MobileNetV2's first block: a convolution, a
    batch norm, ReLU6.

    What the converter lacks for these, it lacks for the full network.
    """
    from fl_utils.frameworks.pytorch_mobile import training_step

    images = trial.inputs(MOBILENET)[: trial.batch]
    blocks = mobilenet_v2(CLASSES, width=trial.width).features[:1]
    inputs = blocks(images[:2]).flatten(1).shape[1]
    network = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(inputs, CLASSES))
    graph, state = training_step(network, images, trial.labels)
    with refusing("litert", "the step of a MobileNetV2"), silenced(), lean.conversion():
        with lean.imports():
            import litert_torch

        given = (images, trial.labels, torch.tensor(trial.learning_rate), *state)
        litert_torch.signature("train", graph.eval(), given).convert()
    return Cell(PARTLY, "a step of MobileNetV2's first block converts")


def _coreml_cnn(trial: Trial) -> Cell:
    """The updatable file, its layers computed in torch; the training itself is Apple's systems' alone."""
    from fl_utils.export.coreml import tools

    tools()
    network = trial.networks[CNN]
    made = coreml.export_updatable(network, trial.batch, trial.learning_rate, trial.steps, trial.folder / "updatable")
    spec = coreml.load(made.model_path)
    wrong = coreml.problems(spec, network)
    outputs = coreml.forward(spec, trial.inputs(CNN).numpy())
    wanted = torch.softmax(torch.from_numpy(trial.answers[CNN]), 1).numpy()
    gap = float(np.abs(outputs - wanted).max())
    if wrong or gap > trial.tolerance:
        return Cell(NO, f"its probabilities are off by {gap:.0e}", "; ".join(wrong))
    return Cell(PARTLY, f"updatable file written and checked, off by {gap:.0e}; trains on Apple's systems only")


def _coreml_mobilenet(trial: Trial) -> Cell:
    """MobileNetV2's kinds of layers with weights, each asked to be trainable: batch norm is the one that decides."""
    from fl_utils.export.coreml import tools

    tools()
    from coremltools.models import datatypes
    from coremltools.models.neural_network import NeuralNetworkBuilder

    shape = datatypes.Array(8, 4, 4)
    refused, trainable = "", []
    for kind in ("convolution", "depthwise convolution", "batch norm", "linear"):
        builder = NeuralNetworkBuilder([("given", shape)], [("made", shape)], disable_rank5_shape_mapping=True)
        ones = np.ones(8, np.float32)
        if kind == "batch norm":
            builder.add_batchnorm("layer", 8, ones, ones, ones, ones, input_name="given", output_name="made")
        elif kind == "linear":
            builder.add_inner_product("layer", np.ones((8, 8), np.float32), ones, 8, 8, True, "given", "made")
        else:
            groups = 8 if kind.startswith("depthwise") else 1
            weights = np.ones((3, 3, 8 // groups, 8), np.float32)
            form = {"height": 3, "width": 3, "stride_height": 1, "stride_width": 1, "border_mode": "same"}
            form |= {"kernel_channels": 8 // groups, "output_channels": 8, "groups": groups}
            builder.add_convolution(
                "layer", **form, W=weights, b=ones, has_bias=True, input_name="given", output_name="made"
            )
        try:
            with silenced():
                builder.make_updatable(["layer"])
            trainable.append(kind)
        except ValueError as error:
            refused = refused or f"{kind}: {error}"
    if refused:
        return Cell(NO, f"can be marked as trainable: {', '.join(trainable)}", refused)
    return Cell(PARTLY, "every kind of layer can be marked as trainable; trains on Apple's systems only")


def _elsewhere(runtime: str, name: str, trial: Trial) -> Cell:
    """By :mod:`fl_utils.on_device.other`, whose scripts train the CNN of Table 6.2 on small batches of its images."""
    known = other.OTHERS[runtime]
    if known.python() is None:
        return Cell(NOT_INSTALLED, f"its environment is {known.folder}")
    if name != CNN:
        return Cell(NOT_PROBED, f"{known.script.name} trains the CNN of Table 6.2 and no other network")
    network = trial.networks[CNN]
    x = np.ascontiguousarray(trial.pixels[CNN][: trial.batch].transpose(0, 3, 1, 2))
    y = trial.labels.numpy()
    trained = other.train(
        runtime,
        [parameter.detach().numpy() for parameter in network.parameters()],
        *(x, y, x, y),
        epochs=trial.steps,
        batch_size=trial.batch,
        learning_rate=trial.learning_rate,
        seed=trial.seed,
        check_steps=trial.steps,
    )
    return _vector(trial, trained.vector)


def _vector(trial: Trial, vector: np.ndarray) -> Cell:
    """The CNN's trained weights as one vector, compared."""
    wanted = torch.cat([value.reshape(-1) for value in trial.path(CNN)[-1].values()])
    return trial.drifted(float(np.abs(vector - wanted.numpy()).max()), len(vector))
