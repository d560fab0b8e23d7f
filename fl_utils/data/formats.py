"""Two binary formats of images: idx files (MNIST) and CIFAR-10's pickled batches, which cannot run code here."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np

# md5 of the six batches as the official archive holds them: https://www.cs.toronto.edu/~kriz/cifar.html, as torchvision
CIFAR10_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3fb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}


def idx(path: Path, dimensions: int) -> np.ndarray:
    """A uint8 array of ``dimensions`` axes from an idx file, plain or gzip. Raises ValueError naming a damaged file.

    Format: two zero bytes, 8 for unsigned bytes, the number of axes, each axis as a big-endian 32-bit length, the data.
    """
    data = gunzip(path)
    if len(data) < 4 + 4 * dimensions or data[:4] != bytes([0, 0, 8, dimensions]):
        raise ValueError(
            f"{path}: not an idx file of {dimensions} axes of bytes: it begins {data[:4].hex(' ') or 'empty'}"
        )
    shape = tuple(int(length) for length in np.frombuffer(data, ">u4", dimensions, 4))
    have, want = len(data) - 4 - 4 * dimensions, int(np.prod(shape, dtype=np.int64))
    if have != want:
        raise ValueError(
            f"{path}: {'truncated' if have < want else 'too long'}: {have} bytes of data, want {want} {shape}"
        )
    return np.frombuffer(data, np.uint8, want, 4 + 4 * dimensions).reshape(shape)


def gunzip(path: Path) -> bytes:
    """The bytes of a file, unpacked if it is gzip. Raises ValueError naming a truncated or damaged file."""
    data = path.read_bytes()
    if data[:2] != b"\x1f\x8b":
        if path.suffix == ".gz":
            raise ValueError(f"{path}: not a gzip file: it begins {data[:2].hex(' ') or 'empty'}")
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: truncated or damaged gzip file: {error}") from error


def cifar_batch(data: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 3, 32, 32] and labels int64 [N] of one batch of CIFAR-10, python version.

    A batch of the official 10,000 images must have the official md5; a smaller one is a user's own cut and taken with a
    warning. Raises ValueError naming ``where`` on anything else, and on a pickle that asks for more than arrays.
    """
    try:
        batch = _Plain(io.BytesIO(data), encoding="bytes").load()
        images = np.asarray(batch[b"data"])
        labels = np.asarray(batch[b"labels"], dtype=np.int64)
    except Exception as error:  # pickle raises nearly anything on damaged input
        raise ValueError(f"{where}: not a batch of CIFAR-10: {type(error).__name__}: {error}") from error
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != 3072 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{where}: data {images.dtype} {images.shape}, labels {labels.shape}; want uint8 (N, 3072), (N,)"
        )
    if len(labels) and not (labels.min() >= 0 and labels.max() <= 9):
        raise ValueError(f"{where}: labels from {labels.min()} to {labels.max()}, want 0 to 9")
    official = CIFAR10_MD5.get(where.replace("\\", "/").rpartition("/")[2].rpartition(" ")[2])
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != official:
        if len(images) >= 10_000:
            raise ValueError(f"{where}: {len(images)} images, but not the official md5 {official}: damaged or altered")
        warnings.warn(f"{where}: {len(images)} images, not the official batch of 10,000", stacklevel=2)
    return images.reshape(-1, 3, 32, 32), labels


class _Plain(pickle.Unpickler):
    """Admits numpy arrays and Python's plain values, so that a batch cannot run code."""

    ADMITTED = frozenset(
        (module, name)
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name in ("_reconstruct", "scalar")
    ) | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"), ("numpy._core.numeric", "_frombuffer")}
    ADMITTED |= {("numpy.core.numeric", "_frombuffer")}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ADMITTED:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}; only arrays, bytes, lists and dicts are admitted"
            )
        return super().find_class(module, name)
