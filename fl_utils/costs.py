"""What a network costs: multiply-adds, parameters, and memory by three measures.

    costs = count(model, (3, 224, 224)); costs.multiply_adds, costs.parameters, costs.rows
    summary(model, (3, 32, 32)).forward_backward     # the torchsummary measure, one image
    saved_bytes(model, images)                       # what autograd keeps from forward to backward
    peak_bytes(model, images)                        # the most that is alive at once in inference

Multiply-adds are those of Hofman 2020, equations 3.3 to 3.9: one for each product of a weight with an activation;
biases, normalisation, activations and pooling count nothing, as in the papers of these networks.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm, nn.PReLU)
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Layer:
    """One call of one layer for one image; shapes without the batch."""

    name: str
    kind: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    stride: int | None
    kernel: tuple[int, ...]
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Costs:
    """multiply_adds: for one image. parameters, buffers: numbers held (buffers: those of the state). rows: in order."""

    multiply_adds: int
    parameters: int
    buffers: int
    rows: tuple[Layer, ...]

    def kinds(self, *kinds: str) -> list[Layer]:
        """The rows of these kinds, such as "Conv2d"."""
        return [row for row in self.rows if row.kind in kinds]


@dataclass(frozen=True)
class Summary:
    """torchsummary's four sizes for one image, in bytes (it prints them divided by 2**20, as "MB")."""

    input: int
    forward_backward: int
    parameters: int

    @property
    def total(self) -> int:
        """torchsummary's "Estimated Total Size"."""
        return self.input + self.forward_backward + self.parameters


def count(model: nn.Module, input_shape: Sequence[int]) -> Costs:
    """Run one image of ``input_shape`` (C, H, W) through ``model`` and count.

    Each layer without parts of its own is a row, as often as it is called. A model built under
    ``torch.device("meta")`` is counted without computing anything. Raises ValueError on a shape that is not three whole
    numbers from 1 on, and on a layer with weights of a kind whose multiply-adds are not known here.
    """
    shape = _image_shape(input_shape)
    rows: list[Layer] = []

    def seen(name: str) -> Callable:
        def hook(layer: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            rows.append(_row(name, layer, inputs[0], output))

        return hook

    leaves = [(name, layer) for name, layer in model.named_modules() if not [*layer.children()]]
    with ExitStack() as hooks:
        for name, layer in leaves:
            hooks.callback(layer.register_forward_hook(seen(name)).remove)
        with _evaluating(model), torch.no_grad():
            model(_image(model, shape))
    return Costs(
        sum(row.multiply_adds for row in rows),
        sum(parameter.numel() for parameter in model.parameters()),
        sum(buffer.numel() for buffer in model.buffers()),
        tuple(rows),
    )


def _row(name: str, layer: nn.Module, x: torch.Tensor, output: torch.Tensor) -> Layer:
    parameters = sum(parameter.numel() for parameter in layer.parameters())
    kernel: tuple[int, ...] = ()
    if isinstance(layer, CONVOLUTIONS):
        kernel = layer.kernel_size
        products = output[0].numel() * math.prod(kernel) * layer.in_channels // layer.groups
    elif isinstance(layer, nn.Linear):
        products = output[0].numel() * layer.in_features
    elif parameters and not isinstance(layer, NORMS):
        raise ValueError(f"layer {name!r} is a {type(layer).__name__}: its multiply-adds cannot be counted here")
    else:
        products, kernel = 0, _pair(getattr(layer, "kernel_size", ()))
    stride = _pair(getattr(layer, "stride", ()))
    return Layer(
        name,
        type(layer).__name__,
        tuple(x.shape[1:]),
        tuple(output.shape[1:]),
        stride[0] if stride else None,
        kernel,
        parameters,
        products,
    )


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)


def products(layer: nn.Conv2d, input_shape: Sequence[int]) -> int:
    """The multiply-adds of one convolution on one image of ``input_shape`` (C, H, W), found by running it.

    Weights, image and padding are all ones, so each product is one and the sum of the outputs counts them; no formula
    is involved. Exact up to 2**24 products for one output. Raises ValueError on a shape that is not three whole numbers
    from 1 on.
    """
    image = torch.ones(1, *_image_shape(input_shape))
    rows, columns = layer.padding
    padded = nn.functional.pad(image, (columns, columns, rows, rows), value=1.0)
    ones = torch.ones(layer.weight.shape)
    outputs = nn.functional.conv2d(padded, ones, None, layer.stride, 0, layer.dilation, layer.groups)
    return int(outputs.double().sum())


def summary(model: nn.Module, input_shape: Sequence[int]) -> Summary:
    """The sizes that torchsummary prints for one image of ``input_shape`` (C, H, W).

    Its "Forward/backward pass size" is 4 bytes for each output element of every module but containers (Sequential,
    ModuleList) and the model itself, times two for the gradients. It is no measurement: a block counts once more than
    its layers, functions not at all, in-place layers as if they were not, and inference would need no gradients.
    Raises ValueError on a shape that is not three whole numbers from 1 on.
    """
    shape = _image_shape(input_shape)
    outputs = 0

    def hook(layer: nn.Module, inputs: tuple, output: object) -> None:
        nonlocal outputs
        outputs += sum(tensor[0].numel() for tensor in _tensors(output))

    with ExitStack() as hooks:
        for layer in model.modules():
            if layer is not model and not isinstance(layer, nn.Sequential | nn.ModuleList):
                hooks.callback(layer.register_forward_hook(hook).remove)
        with _evaluating(model), torch.no_grad():
            model(_image(model, shape))
    held = sum(parameter.numel() for parameter in model.parameters())
    return Summary(FLOAT_BYTES * math.prod(shape), 2 * FLOAT_BYTES * outputs, FLOAT_BYTES * held)


def activation_bytes(model: nn.Module, input_shape: Sequence[int]) -> int:
    """torchsummary's "Forward/backward pass size" of one image, in bytes; see :func:`summary`."""
    return summary(model, input_shape).forward_backward


def saved_bytes(model: nn.Module, images: torch.Tensor) -> int:
    """Bytes that autograd keeps between the forward and the backward pass of ``model`` on the batch ``images``.

    Each piece of memory counts once, however many operations keep it; the model's own parameters and buffers do not
    count, the batch does where it is kept. The model runs once in training mode; its buffers and mode and the random
    generator are left as they were. Raises ValueError where nothing in the model trains.
    """
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that no later one can have its address
        return tensor

    with _evaluating(model, training=True), _unchanged_buffers(model), torch.random.fork_rng(devices=[]):
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model(images)
        if not any(tensor.requires_grad for tensor in _tensors(output)):
            raise ValueError("the model's output needs no gradient: want a model with parameters that train")
    return sum(storage.nbytes() for storage in kept.values())


def peak_bytes(model: nn.Module, images: torch.Tensor) -> int:
    """The most bytes of tensors alive at once while ``model`` infers the batch ``images``, the batch itself included.

    The parameters and the working space inside one operation do not count. The model runs in evaluation mode, without
    gradients.
    """
    with _evaluating(model), torch.no_grad(), _Alive(images) as alive:
        model(images)
    return alive.peak


class _Alive(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, from making to freeing."""

    def __init__(self, images: torch.Tensor):
        super().__init__()
        self.live = self.peak = images.nbytes
        self.known = {images.untyped_storage()._cdata}

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((arguments, keywords))}
        result = function(*arguments, **(keywords or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in given and key not in self.known:
                self.known.add(key)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._free, key, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


@contextmanager
def _evaluating(model: nn.Module, training: bool = False) -> Iterator[None]:
    """The model in evaluation (or training) mode; afterwards each of its modules in its own mode again."""
    modes = {layer: layer.training for layer in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode


@contextmanager
def _unchanged_buffers(model: nn.Module) -> Iterator[None]:
    """Running statistics move in training mode; here they are put back."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, old in before:
                buffer.copy_(old)


def _image(model: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    parameter = next(model.parameters(), torch.zeros(0))
    return torch.zeros(1, *shape, dtype=parameter.dtype, device=parameter.device)


def _image_shape(shape: Sequence[int]) -> tuple[int, ...]:
    shape = tuple(shape)
    if len(shape) != 3 or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in shape):
        raise ValueError(f"input_shape is {shape}, want one image's (channels, height, width), whole numbers from 1 on")
    return shape


def _tensors(values: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
