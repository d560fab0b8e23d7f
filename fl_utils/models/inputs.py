"""What a network does to its images before its first layer: uint8 as float in [0, 1], and the layout it trains on."""

from __future__ import annotations

import torch


def as_unit(images: torch.Tensor) -> torch.Tensor:
    """uint8 images as float in [0, 1]; float ones as they are. Raises ValueError on another type or shape."""
    if images.ndim != 4:
        raise ValueError(f"images have {images.ndim} axes, want 4: [N, C, H, W]")
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}, want float in [0, 1] or torch.uint8")
    return images


class UnitInput:
    """Mixed into a network: its images pass :func:`as_unit` first."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(as_unit(images))


class ChannelsLast(UnitInput):
    """Mixed into a network: it trains on images laid out channels last, in a half to two thirds of the time on a CPU.

    Not where ``channels_last`` is set to False. Weights whose numbers lie in memory alike either way (depthwise ones,
    and those of 1 x 1) say so too while it trains, or else the first layer that joins channels would undo it.
    """

    channels_last = True
    _laid_out = False

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = as_unit(images)
        if not torch.compiler.is_compiling():
            wanted = self.training and self.channels_last
            self.lay_out(wanted)
            if wanted:
                images = images.contiguous(memory_format=torch.channels_last)
        return super().forward(images)

    def train(self, mode: bool = True) -> ChannelsLast:
        self.lay_out(False)  # for whoever exports it now
        return super().train(mode)

    def lay_out(self, last: bool) -> None:
        """Have the weights say that they lie channels last, or not, where both are true."""
        if last == self._laid_out:
            return
        for parameter in self.parameters():
            if parameter.ndim == 4 and parameter.is_contiguous():
                _, inputs, height, width = parameter.shape
                if inputs == 1 or height == width == 1:
                    steps = (1, width * inputs, inputs) if last else (height * width, width, 1)
                    parameter.data = parameter.data.as_strided(parameter.shape, (inputs * height * width, *steps))
        self._laid_out = last
