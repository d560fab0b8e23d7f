"""A small CNN and its training step in operations whose gradient lowers to LiteRT.

The backward pass of a convolution has no LiteRT operator, that of a max-pool neither. So a convolution becomes shifted
slices of its input, joined and multiplied by the weights as one matrix; a max-pool two comparisons, of neighbours in a
row, then of rows. Values and gradients are torch's: of equal values in a window, the first has the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional

Function = Callable[[Sequence[torch.Tensor], torch.Tensor], torch.Tensor]


class Unsupported(ValueError):
    """A layer that this module cannot write in such operations."""


def forward(model: nn.Sequential) -> Function:
    """``f(parameters, images)``: the logits [N, classes] of ``model`` for images float32 [N, C, H, W].

    parameters: those of ``model.parameters()``, in that order and of these shapes. The model is a sequence of Conv2d
    (stride 1, no padding, one group, with bias), ReLU, MaxPool2d(2, 2), Flatten and Linear (with bias). Raises
    :class:`Unsupported` on any other layer, naming it.
    """
    if not isinstance(model, nn.Sequential):
        raise Unsupported(f"{type(model).__name__} is no nn.Sequential: a training step is made of one layer by layer")
    layers = [(name, layer) for name, layer in model.named_children()]
    for name, layer in layers:
        _check(name, layer)

    def run(parameters: Sequence[torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        rest, x = iter(parameters), images.permute(0, 2, 3, 1)  # channels last: a pixel's channels lie together
        for _, layer in layers:
            if isinstance(layer, nn.Conv2d):
                x = convolution(x, next(rest), next(rest))
            elif isinstance(layer, nn.Linear):
                x = x @ next(rest).t() + next(rest)
            elif isinstance(layer, nn.ReLU):
                x = torch.relu(x)
            elif isinstance(layer, nn.MaxPool2d):
                x = MaxPool.apply(x)
            else:
                x = x.permute(0, 3, 1, 2).reshape(len(x), -1)
        return x

    return run


def _check(name: str, layer: nn.Module) -> None:
    said = f"layer {name}, {layer}"
    if isinstance(layer, nn.Conv2d):
        plain = layer.stride == (1, 1) and layer.padding in ((0, 0), "valid") and layer.dilation == (1, 1)
        plain = plain and layer.groups == 1 and layer.bias is not None and len(set(layer.kernel_size)) == 1
        if not plain:
            raise Unsupported(f"{said}: want a square kernel, stride 1, no padding, one group, a bias")
    elif isinstance(layer, nn.MaxPool2d):
        sizes = {str(value) for value in (layer.kernel_size, layer.stride)}
        if not sizes <= {"2", "(2, 2)"} or layer.padding not in (0, (0, 0)) or layer.ceil_mode:
            raise Unsupported(f"{said}: want MaxPool2d(2, 2)")
    elif isinstance(layer, nn.Linear):
        if layer.bias is None:
            raise Unsupported(f"{said}: want a bias")
    elif not isinstance(layer, nn.ReLU | nn.Flatten):
        raise Unsupported(f"{said} has no training step in LiteRT: want Conv2d, ReLU, MaxPool2d, Flatten, Linear")


def convolution(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """``x`` [N, H, W, I] convolved with ``weight`` [O, I, k, k]: [N, H - k + 1, W - k + 1, O]."""
    outputs, inputs, size, _ = weight.shape
    height, width = x.shape[1] - size + 1, x.shape[2] - size + 1
    shifted = [x[:, i : i + height, j : j + width, :] for i in range(size) for j in range(size)]
    matrix = weight.permute(2, 3, 1, 0).reshape(size * size * inputs, outputs)
    flat = torch.cat(shifted, -1).reshape(-1, size * size * inputs) @ matrix + bias
    return flat.reshape(len(x), height, width, outputs)


def _columns(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The left and the right pixel of each pair in a row: twice [N, H, W / 2, C]; an odd last column is left out."""
    n, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2, :].reshape(n, h // 2 * 2, w // 2, 2 * c)
    return x[..., :c], x[..., c:]


def _rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The upper and the lower row of each pair: twice [N, H / 2, W * C]."""
    n, h, w, c = x.shape
    x = x.reshape(n, h // 2, 2 * w * c)
    return x[..., : w * c], x[..., w * c :]


class MaxPool(torch.autograd.Function):
    """2 x 2 max-pooling with stride 2 of [N, H, W, C]."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        pooled = torch.maximum(*_columns(x))
        n, h, w, c = pooled.shape
        return torch.maximum(*_rows(pooled)).reshape(n, h // 2, w, c)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        n, h, w, c = x.shape
        left, right = _columns(x)
        upper, lower = _rows(torch.maximum(left, right))
        gradient = gradient.reshape(upper.shape)
        above = gradient * (upper >= lower).to(gradient.dtype)
        pooled = torch.cat((above, gradient - above), -1).reshape(left.shape)
        first = pooled * (left >= right).to(gradient.dtype)
        whole = torch.cat((first, pooled - first), -1).reshape(n, h // 2 * 2, w // 2 * 2, c)
        return functional.pad(whole, (0, 0, 0, w % 2, 0, h % 2)) if h % 2 or w % 2 else whole


def loss(run: Function, parameters: Sequence[torch.Tensor], images: torch.Tensor, labels: torch.Tensor):
    """Mean cross-entropy over the rows of ``labels`` (one-hot [N, classes]) that are not all zero.

    So a short last batch, filled up with rows of zeros, has its own loss and gradient and no other's.
    """
    return -(torch.log_softmax(run(parameters, images), 1) * labels).sum() / labels.sum()


def sgd_step(model: nn.Sequential) -> Callable[..., tuple[torch.Tensor, ...]]:
    """``step(images, labels, learning_rate, *parameters) -> (loss, *new parameters)``: one step of plain SGD."""
    run = forward(model)

    def step(images, labels, learning_rate, *parameters):
        def of(values):
            return loss(run, values, images, labels)

        gradients, value = torch.func.grad_and_value(of)(list(parameters))
        return value, *(p - learning_rate * g for p, g in zip(parameters, gradients, strict=True))

    return step
