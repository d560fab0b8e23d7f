"""What is checked and made ready before any converter sees a model."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fl_utils.export.contract import COLOURS, Contract, Input, Output

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Made:
    """What a converter wrote: a file or folder, and what it calls its input and output."""

    path: Path
    input_name: str
    output_name: str


def check_name(name: str) -> None:
    """Raise ValueError unless ``name`` can be the beginning of a file's name on every system."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError(f"name is {name!r}: want letters, digits, '_', '-' and '.', it becomes a file's name")


def image_input(
    runtime: str, shape: tuple[int, ...], scale: float | Sequence[float], bias: float | Sequence[float]
) -> Input:
    """The input that a contract will state. Raises ValueError on a shape or numbers that are none of an image."""
    if len(shape) != 4 or not all(type(size) is int and size > 0 for size in shape):
        raise ValueError(f"example_shape is {shape}: want [N, C, H, W], four whole numbers from 1 up")
    channels = shape[1]
    if runtime == "coreml" and channels not in COLOURS:
        raise ValueError(f"example_shape is {shape}: Core ML's images have 1 or 3 colours, not {channels}")
    spread = {}
    for name, given in (("scale", scale), ("bias", bias)):
        values = [float(each) for each in given] if isinstance(given, Sequence) else [float(given)] * channels
        if len(values) != channels or not all(map(math.isfinite, values)):
            raise ValueError(f"{name} is {given}: want a finite number, or {channels}, one per colour")
        spread[name] = tuple(values)
    if 0.0 in spread["scale"]:
        raise ValueError(f"scale is {scale}: 0 would give the model the same image always")
    if runtime == "coreml" and len(set(spread["scale"])) > 1:
        raise ValueError(f"scale is {scale}: a Core ML image has one scale for all colours; put others into the model")
    applied_by = "model" if runtime == "coreml" else "caller"
    return Input("", shape, "float32", "NCHW", COLOURS.get(channels, "OTHER"), **spread, applied_by=applied_by)


def network(model: nn.Module, shape: tuple[int, ...]) -> tuple[nn.Module, torch.Tensor, int]:
    """A copy of ``model`` on the CPU, in evaluation mode and float32, an example input, and its number of outputs.

    Batch norms are folded into the convolutions before them. The copy's parameters own their memory (a federation's are
    views of one vector), and it is wrapped in a module of one child, since ExecuTorch 0.7 loses parameters whose name
    begins with a digit, as those of nn.Sequential do.
    Raises ValueError where the model does not take ``shape`` or does not give [N, classes].
    """
    import torch
    from torch import nn

    class Network(nn.Module):
        def __init__(self, inner: nn.Module):
            super().__init__()
            self.network = inner

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.network(image)

    wrapped = Network(copy.deepcopy(model)).cpu().float().eval()
    fold_batch_norms(wrapped)
    with torch.no_grad():
        for tensor in [*wrapped.parameters(), *wrapped.buffers()]:
            tensor.data = tensor.detach().clone()
            tensor.requires_grad_(False)
    example = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            outputs = wrapped(example)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ValueError(f"the model does not take images of shape {list(shape)}: {error}") from error
    fit = isinstance(outputs, torch.Tensor) and outputs.ndim == 2 and len(outputs) == shape[0]
    if not fit:
        found = list(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
        raise ValueError(f"the model gives {found} for {shape[0]} images: want logits [{shape[0]}, classes]")
    return wrapped, example, outputs.shape[1]


def fold_batch_norms(network: nn.Module) -> None:
    """In place: in each plain nn.Sequential, a convolution and the batch norm right after it become one convolution.

    In evaluation mode both are one affine map. Converters do so too; done once, before, they take a third less time.
    """
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for module in network.modules():
        if not isinstance(module, nn.Sequential) or type(module).forward is not nn.Sequential.forward:
            continue
        for at in range(len(module) - 1):
            if isinstance(module[at], nn.Conv2d) and isinstance(module[at + 1], nn.BatchNorm2d):
                module[at], module[at + 1] = fuse_conv_bn_eval(module[at], module[at + 1]), nn.Identity()


def calibration_batches(image: Input, images: np.ndarray | None, mode: str) -> list[np.ndarray]:
    """Calibration images (uint8 [N, H, W, C]) as what the network takes: float32, in whole batches of its size."""
    if mode != "static":
        return []
    size, channels, height, width = image.shape
    if images is None or len(images) < size:
        have = "there are none" if images is None else f"there are {len(images)}"
        message = f"mode 'static' measures activations on calibration images, uint8 [N, {height}, {width}, {channels}]"
        raise ValueError(f"{message}: {have}, want at least {size} and better a hundred")
    asked = Contract("calibration", "", "", "", 8, mode, "", 0, "", image, Output("", (size, 1), ""), ())
    inputs = asked.tensor(images)
    return [inputs[start : start + size] for start in range(0, len(inputs) - size + 1, size)]


def distribution_version(*names: str) -> str:
    """``name version`` of installed distributions, joined by commas."""
    from importlib import metadata

    return ", ".join(f"{name} {metadata.version(name)}" for name in names)


def half(network: nn.Module) -> Any:
    """``network`` (a copy) with 16-bit weights and arithmetic, and 32-bit inputs and outputs."""
    from torch import nn

    class Half(nn.Module):
        def __init__(self, inner: nn.Module):
            super().__init__()
            self.network = copy.deepcopy(inner).half()

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.network(image.half()).float()

    return Half(network).eval()
