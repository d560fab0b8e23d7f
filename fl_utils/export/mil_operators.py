"""Core ML's MIL operators in torch, as far as networks for images need them; the names are MIL's.

Each takes its inputs by name: tensors float32, attributes as numpy values or Python ones. ``None`` where not given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional

Inputs = dict[str, Any]


def whole(values: Any) -> list[int]:
    return [int(value) for value in np.asarray(values).reshape(-1)]


def _padding(inputs: Inputs, kernel: list[int], strides: list[int], sizes: list[int], dilations: list[int]) -> list:
    """Pixels before and after each spatial dimension, in MIL's order."""
    kind = str(inputs.get("pad_type") or "valid")
    if kind == "custom":
        return whole(inputs["pad"])
    if kind == "valid":
        return [0] * (2 * len(kernel))
    pads = []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size)
        less, more = total // 2, total - total // 2
        pads += [more, less] if kind == "same_lower" else [less, more]
    return pads


def _padded(x: torch.Tensor, pads: list[int], value: float = 0.0) -> torch.Tensor:
    """``pads`` as MIL has them (first dimension first) put around the last dimensions of ``x``."""
    pairs = [pads[i : i + 2] for i in range(0, len(pads), 2)]
    return functional.pad(x, [n for pair in reversed(pairs) for n in pair], value=value) if any(pads) else x


def conv(inputs: Inputs) -> torch.Tensor:
    x, weight = inputs["x"], inputs["weight"]
    rank = weight.ndim - 2
    strides = whole(inputs["strides"]) if inputs.get("strides") is not None else [1] * rank
    dilations = whole(inputs["dilations"]) if inputs.get("dilations") is not None else [1] * rank
    pads = _padding(inputs, list(weight.shape[2:]), strides, list(x.shape[2:]), dilations)
    groups = int(inputs["groups"]) if inputs.get("groups") is not None else 1
    apply = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[rank]
    return apply(_padded(x, pads), weight, inputs.get("bias"), strides, 0, dilations, groups)


def max_pool(inputs: Inputs) -> torch.Tensor:
    x, kernel, strides, pads = _pooling(inputs)
    _no_ceiling(inputs, x, kernel, strides, pads)
    return functional.max_pool2d(_padded(x, pads, float("-inf")), kernel, strides)


def avg_pool(inputs: Inputs) -> torch.Tensor:
    x, kernel, strides, pads = _pooling(inputs)
    _no_ceiling(inputs, x, kernel, strides, pads)
    means, exclude = (
        functional.avg_pool2d(_padded(x, pads), kernel, strides),
        inputs.get("exclude_padding_from_average"),
    )
    if bool(exclude) and any(pads):
        means = means / functional.avg_pool2d(_padded(torch.ones_like(x), pads), kernel, strides)
    return means


def _pooling(inputs: Inputs) -> tuple[torch.Tensor, list[int], list[int], list[int]]:
    x, kernel = inputs["x"], whole(inputs["kernel_sizes"])
    if len(kernel) != 2:
        raise ValueError(f"MIL pooling over {len(kernel)} dimensions is not read here, only over 2")
    strides = whole(inputs["strides"]) if inputs.get("strides") is not None else kernel
    return x, kernel, strides, _padding(inputs, kernel, strides, list(x.shape[2:]), [1, 1])


def _no_ceiling(inputs: Inputs, x: torch.Tensor, kernel: list[int], strides: list[int], pads: list[int]) -> None:
    """Pad on for ``ceil_mode``, in place: the last window may reach over the edge, if it begins before it."""
    if not bool(inputs.get("ceil_mode")):
        return
    for i, (size, k, stride) in enumerate(zip(x.shape[2:], kernel, strides, strict=True)):
        room = size + pads[2 * i] + pads[2 * i + 1] - k
        windows = -(-room // stride)
        if windows * stride < size + pads[2 * i]:
            pads[2 * i + 1] += windows * stride - room


def reshape(inputs: Inputs) -> torch.Tensor:
    x, shape = inputs["x"], whole(inputs["shape"])
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape)])


def slice_by_index(inputs: Inputs) -> torch.Tensor:
    x, count = inputs["x"], inputs["x"].ndim
    masks = {
        key: [bool(v) for v in inputs[key]] if inputs.get(key) is not None else [False] * count
        for key in ("begin_mask", "end_mask", "squeeze_mask")
    }
    strides = whole(inputs["stride"]) if inputs.get("stride") is not None else [1] * count
    if min(strides) < 1:
        raise ValueError("MIL slice_by_index with a negative stride is not read here")
    index: list[slice | int] = []
    for d, (begin, end) in enumerate(zip(whole(inputs["begin"]), whole(inputs["end"]), strict=True)):
        if masks["squeeze_mask"][d]:
            index.append(begin)
        else:
            first, last = None if masks["begin_mask"][d] else begin, None if masks["end_mask"][d] else end
            index.append(slice(first, last, strides[d]))
    return x[tuple(index)]


def split(inputs: Inputs) -> list[torch.Tensor]:
    x, axis = inputs["x"], int(inputs["axis"])
    if inputs.get("split_sizes") is not None:
        return list(x.split(whole(inputs["split_sizes"]), axis))
    return list(x.chunk(int(inputs["num_splits"]), axis))


def batch_norm(inputs: Inputs) -> torch.Tensor:
    keys = ("mean", "variance", "gamma", "beta")
    mean, variance, gamma, beta = (inputs.get(key) for key in keys)
    return functional.batch_norm(inputs["x"], mean, variance, gamma, beta, eps=float(inputs["epsilon"]))


def layer_norm(inputs: Inputs) -> torch.Tensor:
    x, axes = inputs["x"], whole(inputs["axes"])
    mean = x.mean(axes, keepdim=True)
    x = (x - mean) / ((x - mean).square().mean(axes, keepdim=True) + float(inputs["epsilon"])).sqrt()
    x = x * inputs["gamma"] if inputs.get("gamma") is not None else x
    return x + inputs["beta"] if inputs.get("beta") is not None else x


def pad(inputs: Inputs) -> torch.Tensor:
    if str(inputs.get("mode") or "constant") != "constant":
        raise ValueError(f"MIL pad in mode {inputs['mode']} is not read here, only constant")
    return _padded(inputs["x"], whole(inputs["pad"]), float(inputs.get("constant_val") or 0.0))


def _reduced(function: Callable) -> Callable[[Inputs], torch.Tensor]:
    def reduce(inputs: Inputs) -> torch.Tensor:
        x = inputs["x"]
        axes = whole(inputs["axes"]) if inputs.get("axes") is not None else list(range(x.ndim))
        return function(x, axes, bool(inputs.get("keep_dims")))

    return reduce


def _of_two(function: Callable) -> Callable[[Inputs], torch.Tensor]:
    return lambda inputs: function(torch.as_tensor(inputs["x"]), torch.as_tensor(inputs["y"]))


def _of_one(function: Callable) -> Callable[[Inputs], torch.Tensor]:
    return lambda inputs: function(inputs["x"])


def _rsqrt(i: Inputs) -> torch.Tensor:
    return (i["x"] + float(i.get("epsilon") or 0.0)).rsqrt()


def _matmul(i: Inputs) -> torch.Tensor:
    x = i["x"].transpose(-1, -2) if i.get("transpose_x") is not None and bool(i["transpose_x"]) else i["x"]
    y = i["y"].transpose(-1, -2) if i.get("transpose_y") is not None and bool(i["transpose_y"]) else i["y"]
    return x @ y


def _concat(i: Inputs) -> torch.Tensor:
    values, axis = list(i["values"]), int(i["axis"]) % i["values"][0].ndim
    if bool(i.get("interleave")):  # one of each in turn: what a channel shuffle of two groups becomes
        return torch.stack(values, axis + 1).flatten(axis, axis + 1)
    return torch.cat(values, axis)


def _squeeze(i: Inputs) -> torch.Tensor:
    return i["x"].squeeze(tuple(whole(i["axes"]))) if i.get("axes") is not None else i["x"].squeeze()


def _expand(i: Inputs) -> torch.Tensor:
    x = i["x"]
    for axis in sorted(whole(i["axes"])):
        x = x.unsqueeze(axis)
    return x


class Read(dict):
    """An operator's inputs, which remember what was read of them: an attribute that nobody reads would be ignored."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.left = set(self)

    def __getitem__(self, name: str) -> Any:
        self.left.discard(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.left.discard(name)
        return super().get(name, default)


# What an operator may leave unread: names, types, and padding that its pad_type says not to look at.
UNREAD = {"name", "dtype", "pad", "classes"}
OPERATORS: dict[str, Callable[[Inputs], Any]] = {
    "conv": conv,
    "max_pool": max_pool,
    "avg_pool": avg_pool,
    "reshape": reshape,
    "slice_by_index": slice_by_index,
    "split": split,
    "batch_norm": batch_norm,
    "layer_norm": layer_norm,
    "pad": pad,
    "matmul": _matmul,
    "squeeze": _squeeze,
    "expand_dims": _expand,
    "linear": lambda i: functional.linear(i["x"], i["weight"], i.get("bias")),
    "clip": lambda i: i["x"].clamp(float(i["alpha"]), float(i["beta"])),
    "leaky_relu": lambda i: functional.leaky_relu(i["x"], float(i["alpha"])),
    "softmax": lambda i: i["x"].softmax(int(i["axis"])),
    "transpose": lambda i: i["x"].permute(whole(i["perm"])),
    "concat": _concat,
    "rsqrt": _rsqrt,
    "classify": lambda i: i["probabilities"],
    "reduce_mean": _reduced(lambda x, axes, keep: x.mean(axes, keep)),
    "reduce_sum": _reduced(lambda x, axes, keep: x.sum(axes, keep)),
    "reduce_max": _reduced(lambda x, axes, keep: x.amax(axes, keep)),
    "add": _of_two(torch.add),
    "sub": _of_two(torch.sub),
    "mul": _of_two(torch.mul),
    "real_div": _of_two(torch.div),
    "pow": _of_two(torch.pow),
    "maximum": _of_two(torch.maximum),
    "minimum": _of_two(torch.minimum),
    "relu": _of_one(torch.relu),
    "relu6": _of_one(functional.relu6),
    "sigmoid": _of_one(torch.sigmoid),
    "tanh": _of_one(torch.tanh),
    "silu": _of_one(functional.silu),
    "square": _of_one(torch.square),
    "sqrt": _of_one(torch.sqrt),
    "exp": _of_one(torch.exp),
    "abs": _of_one(torch.abs),
    "identity": _of_one(lambda x: x),
    "cast": _of_one(lambda x: x),  # the program rounds what it casts to 16 bits, as every result of 16 bits
}
