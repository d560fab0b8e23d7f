"""Cutting, scaling and colouring images for Table 11 of Wang and Guo 2019, a whole batch in one call.

Images are float32 [N, 3, H, W] between 0 and 255; scaling is bilinear.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional


def resized(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Whole images scaled to ``size`` (height, width), smoothed where they shrink."""
    if list(x.shape[2:]) == list(size):
        return x
    return functional.interpolate(x, size=list(size), mode="bilinear", align_corners=False, antialias=True)


def cut(x: torch.Tensor, tops: torch.Tensor, lefts: torch.Tensor, size: int) -> torch.Tensor:
    """The square of ``size`` pixels at (top, left) of each image."""
    steps = torch.arange(size)
    rows, columns = (tops[:, None] + steps)[:, None, :, None], (lefts[:, None] + steps)[:, None, None, :]
    return x[torch.arange(len(x))[:, None, None, None], torch.arange(x.shape[1])[None, :, None, None], rows, columns]


def boxes(x: torch.Tensor, size: int, least: float, generator: torch.Generator) -> torch.Tensor:
    """A box of each image, of at least a share ``least`` of its area and 3:4 to 4:3 in shape, resized (bilinear).

    The first of ten that fits; the whole image where none does.
    """
    n, (height, width) = len(x), x.shape[2:]
    share = least + (1 - least) * torch.rand(10, n, generator=generator)
    ratio = torch.exp((2 * torch.rand(10, n, generator=generator) - 1) * math.log(4 / 3))
    wide = (share * height * width * ratio).sqrt().round().clamp(min=1)
    high = (share * height * width / ratio).sqrt().round().clamp(min=1)
    fits = (wide <= width) & (high <= height)
    first = fits.int().argmax(0)
    wide = torch.where(fits.any(0), wide[first, torch.arange(n)], width)
    high = torch.where(fits.any(0), high[first, torch.arange(n)], height)
    left = (torch.rand(n, generator=generator) * (width - wide + 1)).floor()
    top = (torch.rand(n, generator=generator) * (height - high + 1)).floor()
    return sampled(x, top, left, high, wide, size)


def sampled(x, top, left, high, wide, size: int) -> torch.Tensor:
    """Boxes of any size, scaled to ``size`` x ``size``, as if each were cut out and interpolated."""
    centres = (torch.arange(size) + 0.5) / size
    grids = []
    for start, length, side in ((left, wide, x.shape[3]), (top, high, x.shape[2])):
        places = (length[:, None] * centres).clamp(min=0.5).minimum(length[:, None] - 0.5) + start[:, None]
        grids.append(2 * places / side - 1)
    columns, rows = grids[0][:, None, :].expand(-1, size, -1), grids[1][:, :, None].expand(-1, -1, size)
    return functional.grid_sample(x, torch.stack([columns, rows], -1), align_corners=False, padding_mode="border")


def colours(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Brightness, saturation, hue, contrast at random, of each image its own: TF-Slim's ranges, in its first order."""
    from torchvision.transforms.functional import adjust_contrast, adjust_hue, adjust_saturation

    draws = 2 * torch.rand(len(x), 4, generator=generator) - 1
    changed = []
    for image, (brightness, saturation, hue, contrast) in zip(x / 255, draws.tolist(), strict=True):
        image = adjust_saturation((image + brightness * 32 / 255).clamp(0, 1), 1 + saturation / 2)
        changed.append(adjust_contrast(adjust_hue(image, hue / 5), 1 + contrast / 2))
    return 255 * torch.stack(changed).clamp(0, 1)
