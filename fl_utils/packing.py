"""Python objects as one run of bytes in which tensors lie as they are: read back without copying them.

    heads, 8 bytes each: number of parts, length of each part | parts, each at a multiple of 64

The first part is a pickle of what is no tensor; the others are the tensors' values. A tensor that is a view of a larger
one is written alone, where torch's own pickle writes all of the larger one. For processes that trust each other.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Iterator

import cloudpickle
import numpy as np
import torch

ALIGNED = 64  # bytes: a cache line


class _Pickler(cloudpickle.Pickler):
    def reducer_override(self, value):
        if type(value) is torch.Tensor and _is_plain(value):
            return torch.from_numpy, (np.asarray(value.numpy(), order="C"),)
        return super().reducer_override(value)


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether NumPy can hold it: other tensors are pickled as torch does it."""
    special = tensor.requires_grad or tensor.is_conj() or tensor.is_neg() or tensor.is_quantized
    dense = tensor.device.type == "cpu" and tensor.layout is torch.strided
    return dense and not special and tensor.dtype is not torch.bfloat16


def pack(value) -> list[bytes | memoryview]:
    """``value`` as buffers that make up one packed object when joined. Raises what pickling raises."""
    text, buffers = io.BytesIO(), []
    _Pickler(text, protocol=5, buffer_callback=buffers.append).dump(value)
    parts = [memoryview(text.getbuffer()), *(buffer.raw() for buffer in buffers)]
    heads = struct.pack(f"<{len(parts) + 1}Q", len(parts), *(part.nbytes for part in parts))
    packed = [heads, bytes(-len(heads) % ALIGNED)]
    for part in parts:
        packed += [part, bytes(-part.nbytes % ALIGNED)]
    return packed


def unpack(packed: memoryview):
    """What was packed. Its tensors are views of ``packed``, which has to be writable, and keep it alive."""
    parts = list(_parts(packed))
    return pickle.loads(parts[0], buffers=parts[1:])


def _parts(packed: memoryview) -> Iterator[memoryview]:
    (count,) = struct.unpack_from("<Q", packed)
    lengths = struct.unpack_from(f"<{count}Q", packed, 8)
    at = 8 * (count + 1)
    for length in lengths:
        at += -at % ALIGNED
        yield packed[at : at + length]
        at += length
