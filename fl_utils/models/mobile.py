"""Small networks for phones: MobileNetV1 and V2, SqueezeNet, ShuffleNet V1 and V2 (Hofman 2020, chapters 3 and 4).

All take images [N, C, H, W], float in [0, 1] or uint8 (divided by 255 inside), and give logits [N, classes]; nothing
else is done to the pixels. torchvision's networks are torchvision's, with their names, so its weights fit where the
shapes do. FedMobileNetV2 and FedShuffleNet are settings of ``strides`` and ``first_stride``, not networks of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torchvision import models as torchvision_models
from torchvision.models.shufflenetv2 import channel_shuffle
from torchvision.ops import Conv2dNormActivation

from fl_utils.models.inputs import ChannelsLast, UnitInput

# First convolution, then the first block of each of the seven stages.
MOBILENET_V2_STRIDES = {
    "stock": (2, 1, 2, 2, 2, 1, 2, 1),  # Sandler et al. 2018, table 2; the "old stride" of Hofman's Table 4.1
    "kuangliu": (1, 1, 1, 2, 2, 1, 2, 1),  # the CIFAR-10 network that Hofman took the change from (section 4.2)
    "table_4_1": (1, 1, 1, 1, 2, 1, 2, 1),  # FedMobileNetV2, the "new stride" of Table 4.1 as printed
}
MOBILENET_V2_STAGES = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
MOBILENET_V1_CHANNELS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
# First convolution, then the 13 depthwise ones.
MOBILENET_V1_STRIDES = {
    "stock": (2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1),  # Howard et al. 2017, table 1, by its shapes
    # The same for CIFAR-10: the first convolution keeps its size.
    "kuangliu": (1, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1),
    "table_3_2": (2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 2),  # as printed, by Howard et al. too; 7 x 7 becomes 4 x 4
}
SHUFFLENET_V1_CHANNELS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}  # of the first stage, by groups; then twice, 4 times
SHUFFLENET_UNITS = (4, 8, 4)  # in each stage, the first with stride 2
SHUFFLENET_V2_CHANNELS = {
    0.5: (24, 48, 96, 192, 1024),
    1.0: (24, 116, 232, 464, 1024),
    1.5: (24, 176, 352, 704, 1024),
    2.0: (24, 244, 488, 976, 2048),
}
NORM_GROUPS = 8  # of group normalisation; every MobileNetV2 layer has a multiple of 8 channels


class MobileNetV2(ChannelsLast, torchvision_models.MobileNetV2):
    """torchvision's, see :func:`mobilenet_v2`."""


class MobileNetV1(UnitInput, nn.Sequential):
    """See :func:`mobilenet_v1`."""


class SqueezeNet(UnitInput, torchvision_models.SqueezeNet):
    """torchvision's, see :func:`squeezenet`."""


class ShuffleNetV1(UnitInput, nn.Sequential):
    """See :func:`shufflenet_v1`."""


class ShuffleNetV2(ChannelsLast, torchvision_models.ShuffleNetV2):
    """torchvision's, see :func:`shufflenet_v2`."""


class SmallCNN600k(UnitInput, nn.Sequential):
    """See :func:`small_cnn_600k`."""


def mobilenet_v2(
    classes: int,
    strides: str = "stock",
    channels: int = 3,
    width: float = 1.0,
    norm: str = "batch",
    dropout: float = 0.2,
    blocks: int = 0,
    last: int = 0,
) -> MobileNetV2:
    """torchvision's MobileNetV2 (Sandler et al. 2018; Hofman 2020, Tables 3.3 and 4.1); 2,236,682 parameters for 10.

    strides: "stock", "kuangliu" (CIFAR-10) or "table_4_1" (FedMobileNetV2), see MOBILENET_V2_STRIDES. channels: of the
    images. width: the multiplier alpha, channels rounded to multiples of 8. norm: "batch" or "group" (8 groups), which
    keeps no statistics that clients would have to average. dropout: before the last layer. blocks: of each stage at
    most; 0 is the network as published, 1 a shallow one with the same strides that learns within a minute. last:
    channels of the last convolution; 0 is the network as published, with 1280 of them however narrow the rest is.
    Raises ValueError on any other value.
    """
    _whole("classes", classes)
    _whole("channels", channels)
    for name, value in (("blocks", blocks), ("last", last)):
        if value:
            _whole(name, value)
    _among("strides", strides, MOBILENET_V2_STRIDES)
    _above("width", width)
    _share("dropout", dropout)
    first, *others = MOBILENET_V2_STRIDES[strides]
    stages = [
        [expansion, outputs, min(count, blocks or count), stride]
        for (expansion, outputs, count), stride in zip(MOBILENET_V2_STAGES, others, strict=True)
    ]
    model = MobileNetV2(classes, width, stages, norm_layer=_norm(norm), dropout=dropout)
    _reshape_first(model.features[0], channels, first)
    if last:
        _replace_last(model, last, norm)
    return model


def mobilenet_v1(
    classes: int, alpha: float = 1.0, strides: str = "stock", channels: int = 3, norm: str = "batch"
) -> MobileNetV1:
    """MobileNetV1 (Howard et al. 2017; Hofman 2020, section 3.2.1 and Table 3.2).

    4,231,976 parameters for 1000 classes, 569 million multiply-adds at 224 x 224. alpha: the width multiplier in
    (0, 1]; a layer of n channels gets alpha n, rounded, at least 8. The resolution multiplier rho is the size of the
    images: the network takes any. strides: "stock", "kuangliu" (CIFAR-10) or
    "table_3_2" (as the thesis prints them), see MOBILENET_V1_STRIDES. norm: as :func:`mobilenet_v2`.
    Raises ValueError on any other value.
    """
    _whole("classes", classes)
    _whole("channels", channels)
    _among("strides", strides, MOBILENET_V1_STRIDES)
    if not _is_number(alpha) or not 0 < alpha <= 1:
        raise ValueError(f"alpha is {alpha!r}, want a number in (0, 1]")
    convolution = partial(Conv2dNormActivation, norm_layer=_norm(norm))

    def scaled(count: int) -> int:
        return max(8, round(alpha * count))

    first, *others = MOBILENET_V1_STRIDES[strides]
    width = scaled(32)
    layers: list[nn.Module] = [convolution(channels, width, 3, first)]
    for stride, count in zip(others, MOBILENET_V1_CHANNELS, strict=True):
        layers.append(convolution(width, width, 3, stride, groups=width))
        layers.append(convolution(width, scaled(count), 1))
        width = scaled(count)
    model = MobileNetV1()
    model.add_module("features", nn.Sequential(*layers))
    model.add_module("pool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flatten", nn.Flatten())
    model.add_module("classifier", nn.Linear(width, classes))
    return model


def squeezenet(classes: int, version: str = "1_0", channels: int = 3, dropout: float = 0.5) -> SqueezeNet:
    """torchvision's SqueezeNet (Iandola et al. 2016; Hofman 2020, section 3.1 and Table 3.1); 1,248,424 parameters.

    version: "1_0" (Table 3.1, "Squeezenet1_0" of section 6.2) or "1_1". Images need about 21 pixels a side at least.
    Raises ValueError on any other value.
    """
    _whole("classes", classes)
    _whole("channels", channels)
    _among("version", version, ("1_0", "1_1"))
    _share("dropout", dropout)
    model = SqueezeNet(version, classes, dropout)
    _reshape_first(model.features, channels, 2)
    return model


def shufflenet_v1(
    classes: int, groups: int = 3, scale: float = 1.0, first_stride: int = 2, channels: int = 3
) -> ShuffleNetV1:
    """ShuffleNet (Zhang et al. 2018; Hofman 2020, section 3.3 and Table 3.4).

    groups: of the pointwise convolutions, 1, 2, 3, 4 or 8. scale: s, for instance 1, 0.5 or 0.25; scaled channels are
    rounded to the nearest multiple that the groups and the bottleneck of a quarter can share. first_stride: of the
    first convolution, 2, or 1 as in FedShuffleNet (section 4.3). Raises ValueError on any other value.
    """
    _whole("classes", classes)
    _whole("channels", channels)
    _among("groups", groups, SHUFFLENET_V1_CHANNELS)
    _above("scale", scale)
    _among("first_stride", first_stride, (1, 2))
    width = _nearest_multiple(24 * scale, groups)
    layers: dict[str, nn.Module] = {
        "conv1": Conv2dNormActivation(channels, width, 3, first_stride),
        "maxpool": nn.MaxPool2d(3, 2, padding=1),
    }
    for stage, units in enumerate(SHUFFLENET_UNITS):
        outputs = _nearest_multiple(SHUFFLENET_V1_CHANNELS[groups] * scale, 4 * groups) * 2**stage
        first = ShuffleUnit(width, outputs, groups, 2, 1 if stage == 0 else groups)
        rest = [ShuffleUnit(outputs, outputs, groups, 1, groups) for _ in range(units - 1)]
        layers[f"stage{stage + 2}"] = nn.Sequential(first, *rest)
        width = outputs
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(width, classes)}
    model = ShuffleNetV1()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model


class ShuffleUnit(nn.Module):
    """The unit of Hofman's Figure 3.9: pointwise group convolution, shuffle, depthwise, pointwise group convolution.

    With stride 1 the result is added to the input, with stride 2 joined to its average pool. ``first_groups`` is 1 in
    the first unit, whose input has too few channels to be divided (Zhang et al. 2018, section 3.2).
    """

    def __init__(self, inputs: int, outputs: int, groups: int, stride: int, first_groups: int):
        super().__init__()
        self.groups, self.stride = groups, stride
        middle, made = outputs // 4, outputs - inputs if stride == 2 else outputs
        self.reduce = Conv2dNormActivation(inputs, middle, 1, groups=first_groups)
        self.depthwise = Conv2dNormActivation(middle, middle, 3, stride, groups=middle, activation_layer=None)
        self.expand = Conv2dNormActivation(middle, made, 1, groups=groups, activation_layer=None)
        self.shortcut = nn.AvgPool2d(3, 2, padding=1) if stride == 2 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.expand(self.depthwise(channel_shuffle(self.reduce(x), self.groups)))
        kept = self.shortcut(x)
        return torch.relu(torch.cat((kept, made), 1) if self.stride == 2 else kept + made)


def shufflenet_v2(
    classes: int, width: float = 1.0, first_stride: int = 2, channels: int = 3, units: int = 0
) -> ShuffleNetV2:
    """torchvision's ShuffleNetV2 (Ma et al. 2018); "ShuffleNet_2.0" of Hofman's section 4.3 is width 2.0.

    width: 0.5, 1.0, 1.5 or 2.0. first_stride: 2, or 1 as in FedShuffleNet. units: of each stage at most; 0 is the
    network as published (4, 8, 4). Raises ValueError on any other value.
    """
    if units:
        _whole("units", units)
    _whole("classes", classes)
    _whole("channels", channels)
    _among("width", width, SHUFFLENET_V2_CHANNELS)
    _among("first_stride", first_stride, (1, 2))
    model = ShuffleNetV2(
        [min(count, units or count) for count in SHUFFLENET_UNITS], list(SHUFFLENET_V2_CHANNELS[width]), classes
    )
    _reshape_first(model.conv1, channels, first_stride)
    return model


def small_cnn_600k(classes: int = 10, channels: int = 1) -> SmallCNN600k:
    """The network trained on the phone (Hofman 2020, Table 6.2), for 28 x 28 images; 585,958 parameters for 10 classes.

    Table 6.2 prints the order of the layers and their strides, neither kernels nor channels. This reading, 32 channels
    by 3 x 3 and 2 x 2 without padding and 500 hidden units, rounds to the 600,000 of section 6.6. It ends in logits:
    the table's softmax is in the loss. Raises ValueError on other than whole numbers from 1 on.
    """
    _whole("classes", classes)
    _whole("channels", channels)
    return SmallCNN600k(
        nn.Conv2d(channels, 32, 3), nn.ReLU(), nn.MaxPool2d(2, 2),
        nn.Conv2d(32, 32, 2), nn.ReLU(), nn.MaxPool2d(2, 2),
        nn.Flatten(), nn.Linear(6 * 6 * 32, 500), nn.ReLU(), nn.Linear(500, classes),
    )  # fmt: skip


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation in 8 groups, or in as many as divide both 8 and ``channels``."""
    return nn.GroupNorm(math.gcd(NORM_GROUPS, channels), channels)


def _norm(norm: str) -> Callable[[int], nn.Module]:
    layers = {"batch": nn.BatchNorm2d, "group": group_norm}
    _among("norm", norm, layers)
    return layers[norm]


def _reshape_first(layers: nn.Sequential, channels: int, stride: int) -> None:
    """Give the first convolution of ``layers`` this stride, and new weights where the images have not 3 channels."""
    old = layers[0]
    if channels != old.in_channels:
        layers[0] = nn.Conv2d(
            channels, old.out_channels, old.kernel_size, old.stride, old.padding, bias=old.bias is not None
        )
        nn.init.kaiming_normal_(layers[0].weight, mode="fan_out")
    layers[0].stride = (stride, stride)


def _nearest_multiple(number: float, of: int) -> int:
    """The multiple of ``of`` nearest to ``number``, the larger of two, at least one time."""
    return of * max(1, math.floor(number / of + 0.5))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}, want a whole number from 1 on")


def _above(name: str, value: object) -> None:
    if not _is_number(value) or value <= 0:
        raise ValueError(f"{name} is {value!r}, want a number above 0")


def _share(name: str, value: object) -> None:
    if not _is_number(value) or not 0 <= value < 1:
        raise ValueError(f"{name} is {value!r}, want a number in [0, 1)")


def _among(name: str, value: object, known) -> None:
    if isinstance(value, bool) or not any(value == one for one in known):
        raise ValueError(f"{name} is {value!r}, want one of {', '.join(map(repr, known))}")


def _replace_last(model: MobileNetV2, outputs: int, norm: str) -> None:
    """Give ``model`` a last convolution with so many channels; its weights are drawn as torchvision draws them."""
    model.features[-1] = Conv2dNormActivation(
        model.features[-1][0].in_channels, outputs, 1, norm_layer=_norm(norm), activation_layer=nn.ReLU6
    )
    model.classifier[1] = nn.Linear(outputs, model.classifier[1].out_features)
    model.last_channel = outputs
    nn.init.kaiming_normal_(model.features[-1][0].weight, mode="fan_out")
    nn.init.normal_(model.classifier[1].weight, 0, 0.01)
    nn.init.zeros_(model.classifier[1].bias)
