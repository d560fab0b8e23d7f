"""A state vector as it goes over a wire: a framed message, without pickle.

    magic "FLN1" | header length, 4 bytes | payload length, 8 bytes | header, UTF-8 JSON | payload, little-endian floats

A frame is a list of buffers, as ``socket.sendmsg`` takes them, so the vector itself is never copied. Bytes up and down
are counted from these buffers: what is counted is what is sent.
"""

from __future__ import annotations

import json
import struct

import numpy as np
import torch

MAGIC = b"FLN1"
PREFIX = struct.Struct(">4sIQ")
LARGEST_HEADER = 1 << 20


class WireError(ValueError):
    """A message that does not follow the format; its text says where."""


def frame(vector: torch.Tensor, **header) -> list[bytes | memoryview]:
    """``vector`` (float32 [d]) and a JSON header as buffers to send: prefix, header, payload."""
    array = vector.detach().cpu().numpy()
    if array.dtype != np.float32 or array.ndim != 1:
        raise TypeError(f"vector is {array.dtype} of shape {array.shape}: the wire carries float32 [d]")
    array = np.ascontiguousarray(array, dtype="<f4")
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    payload = memoryview(array).cast("B") if array.size else memoryview(b"")
    return [PREFIX.pack(MAGIC, len(text), len(payload)), text, payload]


def size(buffers: list[bytes | memoryview]) -> int:
    """Bytes that these buffers take on the wire."""
    return sum(len(buffer) for buffer in buffers)


def parse(message: bytes | memoryview) -> tuple[dict, torch.Tensor]:
    """The header and the vector (float32 [d], a copy) of one whole message. Raises WireError where it is not one."""
    message = memoryview(message)
    if len(message) < PREFIX.size:
        raise WireError(f"message of {len(message)} bytes: the prefix alone takes {PREFIX.size}")
    magic, header_length, payload_length = PREFIX.unpack(message[: PREFIX.size])
    if magic != MAGIC:
        raise WireError(f"message begins with {magic!r}: want {MAGIC!r}")
    if header_length > LARGEST_HEADER:
        raise WireError(f"header of {header_length} bytes: at most {LARGEST_HEADER}")
    expected = PREFIX.size + header_length + payload_length
    if len(message) != expected:
        raise WireError(f"message of {len(message)} bytes: its prefix announces {expected}")
    if payload_length % 4:
        raise WireError(f"payload of {payload_length} bytes: float32 values take 4 each")
    try:
        header = json.loads(bytes(message[PREFIX.size : PREFIX.size + header_length]))
    except ValueError as error:
        raise WireError(f"header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise WireError(f"header is a {type(header).__name__}: want a JSON object")
    vector = np.frombuffer(message[PREFIX.size + header_length :], dtype="<f4").astype(np.float32)
    return header, torch.from_numpy(vector)
