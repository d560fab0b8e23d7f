"""Core ML trains on the device from an updatable model: built layer by layer, since a converted one is refused.

coremltools writes and checks the file anywhere; only Apple's systems can run it. So on other systems this room exports
the model, checks what it says (:func:`problems`), and computes its layers in torch (:func:`forward`), which shows that
the file holds the network; its training is not run, and nothing here says so (:data:`NOT_RUN`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fl_utils.export.contract import Contract, Input, Output, digest

if TYPE_CHECKING:
    import torch
    from torch import nn

NOT_RUN = "Core ML trains on Apple's systems only: the updatable model is exported and checked here, not trained"
IMAGE, PROBABILITIES = "image", "probabilities"


def export_updatable(
    model: nn.Sequential,
    batch: int,
    learning_rate: float,
    epochs: int,
    folder: Path | str,
    labels: Sequence[str] = tuple("0123456789"),
    image_shape: Sequence[int] = (1, 28, 28),
    name: str = "training",
    version: str = "1",
) -> Contract:
    """Write ``<name>.mlmodel``, every convolution and linear layer of it updatable, and its contract.

    model: a sequence of Conv2d (no padding), ReLU, MaxPool2d, Flatten and Linear ending in logits; the softmax of
    Table 6.2 is appended. Its input ``image`` is float32 [C, H, W] in [0, 1]; it is trained by SGD on cross-entropy
    with ``probabilities_true``, a label's index. Raises ValueError on another layer or on numbers that do not fit.
    """
    from fl_utils.export import prepare
    from fl_utils.export.contract import COLOURS, check_labels
    from fl_utils.export.quiet import silenced

    for what, value in (("batch", batch), ("epochs", epochs)):
        if type(value) is not int or value < 1:
            raise ValueError(f"{what} is {value!r}: want a whole number from 1 up")
    if not 0 < learning_rate < float("inf"):
        raise ValueError(f"learning_rate is {learning_rate!r}: want a finite number above 0")
    prepare.check_name(name)
    classes = _classes(model, image_shape)
    check_labels(labels, classes)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path, temporary = folder / f"{name}.mlmodel", folder / f".{name}.mlmodel"
    with silenced():
        spec = _spec(model, batch, learning_rate, epochs, image_shape, classes)
    temporary.write_bytes(spec.SerializeToString())
    temporary.replace(path)
    channels = image_shape[0]
    contract = Contract(
        *(name, version, "coreml", prepare.distribution_version("coremltools"), 32, "float", path.name, *digest(path)),
        input=Input(
            IMAGE,
            (1, *image_shape),
            "float32",
            "NCHW",
            COLOURS.get(channels, "OTHER"),
            (1 / 255,) * channels,
            (0.0,) * channels,
            "caller",
        ),
        output=Output(PROBABILITIES, (1, classes), "float32"),
        labels=tuple(labels),
        training={"update": _about(spec, image_shape, batch, learning_rate, epochs)},
    )
    return contract.write(folder)


def _spec(model, batch: int, learning_rate: float, epochs: int, image_shape: Sequence[int], classes: int) -> Any:
    """The specification, layer by layer, then what makes it trainable."""
    from fl_utils.export.coreml import tools

    tools()
    from coremltools.models import datatypes
    from coremltools.models.neural_network import NeuralNetworkBuilder, SgdParams

    given, made = datatypes.Array(*image_shape), datatypes.Array(classes)
    builder = NeuralNetworkBuilder([(IMAGE, given)], [(PROBABILITIES, made)])
    updatable, last = [], IMAGE
    for number, layer in enumerate(model):
        step = f"{number}_{type(layer).__name__.lower()}"
        if _add(builder, step, layer, last):
            updatable.append(step)
        last = step
    builder.add_softmax("softmax", last, PROBABILITIES)
    builder.make_updatable(updatable)
    builder.set_categorical_cross_entropy_loss("loss", PROBABILITIES)
    builder.set_sgd_optimizer(SgdParams(lr=learning_rate, batch=batch))
    builder.set_epochs(epochs)
    return builder.spec


def _classes(model: nn.Sequential, image_shape: Sequence[int]) -> int:
    import torch

    try:
        with torch.no_grad():
            return model(torch.zeros(1, *image_shape)).shape[1]
    except (RuntimeError, IndexError) as error:
        raise ValueError(f"the model does not take images of shape {list(image_shape)}: {error}") from error


def _add(builder: Any, step: str, layer: nn.Module, last: str) -> bool:
    """Append ``layer`` after ``last`` under its own name ``step``; True where it has weights."""
    from torch import nn

    def array(tensor: torch.Tensor) -> np.ndarray:
        return tensor.detach().cpu().numpy().copy()

    if isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding in ((0, 0), "valid"):
        outputs, inputs, height, width = layer.weight.shape
        builder.add_convolution(
            *(step, inputs, outputs, height, width, *layer.stride, "valid", 1),
            *(array(layer.weight).transpose(2, 3, 1, 0), array(layer.bias), True, False, None, last, step),
        )
    elif isinstance(layer, nn.Linear):
        outputs, inputs = layer.weight.shape
        builder.add_inner_product(step, array(layer.weight), array(layer.bias), inputs, outputs, True, last, step)
    elif isinstance(layer, nn.ReLU):
        builder.add_activation(step, "RELU", last, step)
    elif isinstance(layer, nn.MaxPool2d):
        size, stride = ((v, v) if isinstance(v, int) else v for v in (layer.kernel_size, layer.stride))
        builder.add_pooling(step, *size, *stride, "MAX", "VALID", last, step)
    elif isinstance(layer, nn.Flatten):
        builder.add_flatten(step, 0, last, step)
    else:
        message = "want Conv2d without padding, ReLU, MaxPool2d, Flatten, Linear"
        raise ValueError(f"layer {step}, {layer}, is not built for an updatable Core ML model: {message}")
    return isinstance(layer, nn.Conv2d | nn.Linear)


def _about(spec: Any, image_shape: Sequence[int], batch: int, learning_rate: float, epochs: int) -> dict:
    """What the contract says of the update: its inputs as the file names them, and what it does by default."""
    image, target = (each.name for each in spec.description.trainingInput)
    return {
        "inputs": {
            image: {"shape": list(image_shape), "dtype": "float32"},
            target: {"shape": [1], "dtype": "int32"},
        },
        "outputs": {},
        "defaults": {"batch": batch, "learning_rate": learning_rate, "epochs": epochs},
    }


def load(path: Path | str) -> Any:
    """The specification in an ``.mlmodel`` file. Raises ValueError where it is missing or cannot be read as one."""
    from fl_utils.export.coreml import tools

    tools()
    from coremltools.proto import Model_pb2
    from google.protobuf.message import DecodeError

    spec = Model_pb2.Model()
    try:
        spec.ParseFromString(Path(path).read_bytes())
    except (OSError, DecodeError) as error:
        raise ValueError(f"model {path} cannot be read as a Core ML model ({error}): export it again") from error
    if not spec.HasField("neuralNetwork"):
        raise ValueError(f"model {path} holds no neural network: want an updatable one, from export_updatable")
    return spec


def problems(spec: Any, model: nn.Sequential) -> list[str]:
    """What keeps ``spec`` from being ``model`` made trainable, one line each: nothing where all is as it should be.

    Looked at: that it is updatable, its layers in order and which of them train, their weights bit by bit, loss,
    optimizer, training inputs, and the specification's version.
    """
    from torch import nn

    kinds = {
        nn.Conv2d: "convolution",
        nn.ReLU: "activation",
        nn.MaxPool2d: "pooling",
        nn.Flatten: "flatten",
        nn.Linear: "innerProduct",
    }
    wanted = [kinds.get(type(layer), type(layer).__name__) for layer in model] + ["softmax"]
    network = spec.neuralNetwork
    found = [layer.WhichOneof("layer") for layer in network.layers]
    wrong = [] if spec.isUpdatable else ["the model is not marked as updatable"]
    if spec.specificationVersion < 4:
        wrong.append(f"specification {spec.specificationVersion}: training came with 4 (iOS 13)")
    if found != wanted:
        return [*wrong, f"layers are {', '.join(found)}; want {', '.join(wanted)}"]
    for layer, module in zip(network.layers, model, strict=False):
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        if not layer.isUpdatable:
            wrong.append(f"layer {layer.name} is not updatable")
        for name, ours, theirs in zip(("weights", "bias"), _weights(layer), (module.weight, module.bias), strict=True):
            if not np.array_equal(ours, theirs.detach().cpu().numpy()):
                wrong.append(f"layer {layer.name}: its {name} differ from the model's")
    update = network.updateParams
    losses = [layer.WhichOneof("LossLayerType") for layer in update.lossLayers]
    if losses != ["categoricalCrossEntropyLossLayer"]:
        wrong.append(f"loss is {losses}; want one categorical cross-entropy")
    elif update.lossLayers[0].categoricalCrossEntropyLossLayer.input != PROBABILITIES:
        wrong.append("the loss is not taken of the softmax's output")
    if (optimizer := update.optimizer.WhichOneof("OptimizerType")) != "sgdOptimizer":
        wrong.append(f"optimizer is {optimizer}; want sgdOptimizer")
    inputs = [each.name for each in spec.description.trainingInput]
    if inputs != [IMAGE, f"{PROBABILITIES}_true"]:
        wrong.append(f"training inputs are {inputs}; want {IMAGE} and {PROBABILITIES}_true")
    return wrong


def _weights(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Weights and bias of a convolution ([O, I, k, k]) or inner product ([O, I]) in torch's shapes."""
    if layer.WhichOneof("layer") == "convolution":
        of = layer.convolution
        shape = (of.outputChannels, of.kernelChannels, *of.kernelSize)
    else:
        of = layer.innerProduct
        shape = (of.outputChannels, of.inputChannels)
    return np.float32(of.weights.floatValue).reshape(shape), np.float32(of.bias.floatValue)


def forward(spec: Any, images: np.ndarray) -> np.ndarray:
    """Probabilities, float32 [N, classes], that the layers of ``spec`` give ``images`` float32 [N, C, H, W].

    An interpreter in torch of the seven kinds of layers that :func:`export_updatable` writes, for systems without Core
    ML. Raises ValueError on another kind.
    """
    import torch
    from torch.nn import functional

    values = {IMAGE: torch.from_numpy(np.ascontiguousarray(images, np.float32))}
    for layer in spec.neuralNetwork.layers:
        x, kind = values[layer.input[0]], layer.WhichOneof("layer")
        if kind == "convolution":
            weight, bias = map(torch.from_numpy, _weights(layer))
            x = functional.conv2d(x, weight, bias, tuple(layer.convolution.stride))
        elif kind == "innerProduct":
            x = functional.linear(x, *map(torch.from_numpy, _weights(layer)))
        elif kind == "activation" and layer.activation.WhichOneof("NonlinearityType") == "ReLU":
            x = torch.relu(x)
        elif kind == "pooling":
            x = functional.max_pool2d(x, tuple(layer.pooling.kernelSize), tuple(layer.pooling.stride))
        elif kind == "flatten":
            x = x.flatten(1)
        elif kind == "softmax":
            x = torch.softmax(x, 1)
        else:
            raise ValueError(f"layer {layer.name} is a {kind}: this interpreter has none")
        values[layer.output[0]] = x
    return values[PROBABILITIES].numpy()
