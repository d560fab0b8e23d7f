"""Compressed weights of a MIL program, decoded: whole numbers with a step size, tables, sparse ones.

Both generations of Core ML's operators: those of iOS 16, with packed bits, and those of iOS 18, with blocks and groups.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Inputs = dict[str, Any]


def decode(kind: str, inputs: Inputs) -> np.ndarray:
    """The dense weights, float32, that the operator ``kind`` stands for, from its inputs' values by name.

    Raises ValueError on an operator that is none of these.
    """
    if kind not in DECODERS:
        raise ValueError(f"unknown MIL operator {kind!r}: compressed weights are read from {', '.join(DECODERS)}")
    return DECODERS[kind](inputs)


def _affine(inputs: Inputs) -> np.ndarray:
    """iOS 16: scale * (number - zero point), scalars or one per slice along ``axis``."""
    numbers = np.asarray(inputs["quantized_data"]).astype(np.float32)
    shape = [1] * numbers.ndim
    shape[int(inputs["axis"])] = -1
    scale, zero = (np.asarray(inputs[key]).astype(np.float32) for key in ("scale", "zero_point"))
    return (numbers - (zero.reshape(shape) if zero.ndim else zero)) * (scale.reshape(shape) if scale.ndim else scale)


def _blockwise(inputs: Inputs) -> np.ndarray:
    """iOS 18: scale * (number - offset), one scale and offset for each block."""
    numbers = np.asarray(inputs["data"]).astype(np.float32)
    if inputs.get("offset") is not None:
        numbers = numbers - _spread(np.asarray(inputs["offset"]).astype(np.float32), numbers.shape)
    return numbers * _spread(np.asarray(inputs["scale"]).astype(np.float32), numbers.shape)


def _spread(blocks: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Each entry of ``blocks`` repeated over its block, so that the result has ``shape``."""
    for axis, (few, many) in enumerate(zip(blocks.shape, shape, strict=True)):
        blocks = np.repeat(blocks, many // few, axis)
    return blocks


def _table(inputs: Inputs) -> np.ndarray:
    """Indices into a table of 2^bits values. With ``shape`` (iOS 16) one table and packed bits; else one per group."""
    table = np.asarray(inputs["lut"]).astype(np.float32)
    if inputs.get("shape") is not None:
        shape = [int(size) for size in inputs["shape"]]
        bits = (len(table) - 1).bit_length() or 1
        return table[_unpacked(np.asarray(inputs["indices"]), bits, int(np.prod(shape)))].reshape(shape)
    indices = np.asarray(inputs["indices"]).astype(np.int64)
    *groups, entries, length = table.shape
    which = np.zeros(indices.shape, np.int64)
    for axis, (size, count) in enumerate(zip(indices.shape, groups, strict=True)):
        along = (np.arange(size) // (size // count)).reshape([-1 if a == axis else 1 for a in range(indices.ndim)])
        which = which * count + along
    vectors = table.reshape(-1, entries, length)[which, indices]
    if length == 1:
        return vectors[..., 0]
    axis = int(inputs["vector_axis"]) % indices.ndim
    shape = list(indices.shape)
    shape[axis] *= length
    return np.moveaxis(vectors, -1, axis + 1).reshape(shape)


def _unpacked(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """``count`` numbers of ``bits`` bits each out of bytes, the lowest bit first."""
    stream = np.unpackbits(packed.view(np.uint8), bitorder="little")[: count * bits].reshape(count, bits)
    return (stream.astype(np.int64) << np.arange(bits)).sum(1)


def _sparse(inputs: Inputs) -> np.ndarray:
    """Zeros, but for where the mask has a one. With ``shape`` (iOS 16) the mask is packed bits."""
    values, mask = np.asarray(inputs["nonzero_data"]).astype(np.float32), np.asarray(inputs["mask"])
    if inputs.get("shape") is not None:
        shape = [int(size) for size in inputs["shape"]]
        mask = _unpacked(mask, 1, int(np.prod(shape))).reshape(shape)
    dense = np.zeros(mask.shape, np.float32)
    dense[mask.astype(bool)] = values
    return dense


def _cast(inputs: Inputs) -> np.ndarray:
    return np.asarray(inputs["source_val"]).astype(np.float32)


DECODERS: dict[str, Callable[[Inputs], np.ndarray]] = {
    "constexpr_affine_dequantize": _affine,
    "constexpr_blockwise_shift_scale": _blockwise,
    "constexpr_lut_to_dense": _table,
    "constexpr_sparse_to_dense": _sparse,
    "constexpr_cast": _cast,
}
