"""What three frameworks do where nothing is said: first weights, pre-processing, the last batch of an epoch.

Tables 11 and 12 and section 4.1 of Wang and Guo 2019, as code for torch:

    initialise(model, "vgg-16", "caffe", seed=0)                  # in place; Table 12
    x = prepare(images, "vgg-16", "caffe", size=224, generator=g)      # for training; Table 11
    x = prepare(images, "vgg-16", "caffe", size=224)                   # for evaluation
    for chosen in epoch(order, 32, "caffe"): ...                  # section 4.1

The tables are those of 2019 (Caffe 1.0.0, TensorFlow 1.6.0, PyTorch 0.3.1) as the paper prints them. Where today's
libraries do something else, the tests say so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fl_utils.other_frameworks import crops

FRAMEWORKS = ("caffe", "pytorch", "tensorflow")
NETWORKS = ("vgg-16", "inception-v3", "resnet-50", "densenet-121")
TRUNCATION = 2.0  # Table 12: -2 <= W <= 2


@dataclass(frozen=True)
class Rule:
    """A distribution around 0 of one layer's first weights (Table 12).

    kind: "normal", "truncated" (normal, drawn again beyond :data:`TRUNCATION`) or "uniform". Its scale, the standard
    deviation or half the width, is sqrt(numerator / (fan_in * ins + fan_out * outs)), or ``constant`` where it is set.
    """

    kind: str
    numerator: float = 0.0
    ins: int = 0
    outs: int = 0
    constant: float = 0.0

    def scale(self, shape: Sequence[int], printed: bool = False) -> float:
        """The scale for a weight of ``shape``, as :func:`fans` counts."""
        fan_in, fan_out = fans(shape, printed)
        return self.constant or math.sqrt(self.numerator / (self.ins * fan_in + self.outs * fan_out))

    def std(self, shape: Sequence[int]) -> float:
        """The standard deviation of the weights of ``shape`` before any truncation."""
        return self.scale(shape) / (math.sqrt(3) if self.kind == "uniform" else 1)

    def __str__(self) -> str:
        fan = {(1, 0): "fan_in", (0, 1): "fan_out", (1, 1): "(fan_in+fan_out)"}.get((self.ins, self.outs))
        scale = f"sqrt({self.numerator:g}/{fan})" if fan else f"{self.constant:g}"
        if self.kind == "truncated":
            return f"N(0, stddev), -{TRUNCATION:g} <= W <= {TRUNCATION:g}"
        return f"[-{scale}, {scale}]" if self.kind == "uniform" else f"N(0, {scale})"


@dataclass(frozen=True)
class Initialisation:
    """A network's rules in one framework. dense None: a dash in Table 12, where the network there has 1 x 1
    convolutions for its last layers. first: the first convolution's own rule where it has one."""

    convolution: Rule
    dense: Rule | None
    first: Rule | None = None


HE_IN, HE_OUT = Rule("normal", 2, ins=1), Rule("normal", 2, outs=1)
GLOROT = Rule("uniform", 6, ins=1, outs=1)
XAVIER_IN, LINEAR = Rule("uniform", 3, ins=1), Rule("uniform", 1, ins=1)
AVERAGED, SMALL = Rule("normal", 2, ins=1, outs=1), Rule("normal", constant=0.01)
TRUNCATED = Rule("truncated", constant=0.1)  # stddev is not printed: torchvision's, where a layer has none of its own

INITIALISATION = {
    ("vgg-16", "pytorch"): Initialisation(HE_OUT, LINEAR),
    ("vgg-16", "caffe"): Initialisation(XAVIER_IN, XAVIER_IN),
    ("vgg-16", "tensorflow"): Initialisation(GLOROT, None),
    ("inception-v3", "pytorch"): Initialisation(TRUNCATED, LINEAR),
    ("inception-v3", "caffe"): Initialisation(AVERAGED, AVERAGED),
    ("inception-v3", "tensorflow"): Initialisation(GLOROT, None),
    ("resnet-50", "pytorch"): Initialisation(HE_OUT, LINEAR),
    ("resnet-50", "caffe"): Initialisation(HE_IN, SMALL, first=HE_OUT),
    ("resnet-50", "tensorflow"): Initialisation(GLOROT, None),
    ("densenet-121", "pytorch"): Initialisation(HE_IN, LINEAR),
    ("densenet-121", "caffe"): Initialisation(XAVIER_IN, None),
    ("densenet-121", "tensorflow"): Initialisation(GLOROT, GLOROT),
}


def fans(shape: Sequence[int], printed: bool = False) -> tuple[int, int]:
    """fan_in and fan_out of a weight [out, in] or [out, in, height, width] (Table 12's caption).

    printed: with the third kernel_size that the caption has in fan_in, and no framework.
    Raises ValueError on a shape that is neither.
    """
    if len(shape) not in (2, 4) or min(shape) < 1:
        raise ValueError(f"weight has shape {list(shape)}: want [out, in] or [out, in, height, width]")
    area = math.prod(shape[2:])
    return shape[1] * area * (shape[-1] if printed and len(shape) == 4 else 1), shape[0] * area


@torch.no_grad()
def initialise(
    model: nn.Module, network: str, framework: str, seed: int, kernels: Mapping[str, int] | None = None
) -> dict[str, Rule]:
    """Draw all convolutions' and linear layers' weights of ``model`` anew, in place, as Table 12 has it.

    network, framework: one of :data:`NETWORKS` and of :data:`FRAMEWORKS`, whose rules are taken. Biases become 0, since
    the table has none; nothing else is touched. A layer's own attribute ``stddev`` goes before Inception-v3's 0.1, as
    in torchvision. kernels: for a linear layer, by name, the side of the convolution that the framework has in its
    place: TensorFlow's first dense layer of VGG-16 is one of 7 x 7, whose fan_out is 49 times as large.
    Returns each layer's rule by name. Raises ValueError on another network or framework, on a name in ``kernels`` that
    is no linear layer and on a model with nothing to draw.
    """
    known(network, framework)
    rules, kernels = INITIALISATION[network, framework], dict(kernels or {})
    generator, taken = torch.Generator().manual_seed(seed), {}
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    if unknown := [name for name in kernels if not isinstance(layers.get(name), nn.Linear)]:
        raise ValueError(f"kernels names {unknown[0]!r}, which is no linear layer of the model")
    if not layers:
        raise ValueError(f"a {type(model).__name__} without convolutions and linear layers: nothing to draw")
    for name, layer in layers.items():
        convolution = isinstance(layer, nn.Conv2d)
        rule = rules.convolution if convolution or rules.dense is None else rules.dense
        if convolution and rules.first is not None and not any(isinstance(layers[n], nn.Conv2d) for n in taken):
            rule = rules.first
        if rule.kind == "truncated" and hasattr(layer, "stddev"):
            rule = Rule("truncated", constant=float(layer.stddev))
        shape, side = tuple(layer.weight.shape), kernels.get(name, 1)
        if side > 1:
            if shape[1] % side**2:
                raise ValueError(f"{name} has {shape[1]} inputs: no convolution of {side} x {side} has so many")
            shape = (shape[0], shape[1] // side**2, side, side)
        scale, drawn = rule.scale(shape), torch.empty(layer.weight.shape)
        if rule.kind == "uniform":
            drawn.uniform_(-scale, scale, generator=generator)
        elif rule.kind == "truncated":
            nn.init.trunc_normal_(drawn, 0.0, scale, -TRUNCATION, TRUNCATION, generator=generator)
        else:
            drawn.normal_(0.0, scale, generator=generator)
        layer.weight.copy_(drawn)
        if layer.bias is not None:
            layer.bias.zero_()
        taken[name] = rule
    return taken


@dataclass(frozen=True)
class Recipe:
    """One cell of Table 11. crop: "box" (random size and shape), "place" (random place) or "centre"; sides: what is
    scaled before it, the "smaller" side, "both", or "none"; flip, colours: changed at random. Then each pixel x becomes
    (x / full - mean) / std, channel by channel in ``order``."""

    crop: str
    sides: str
    flip: bool
    colours: bool
    order: str
    full: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET, WEBFACE = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), (87.1, 102.7, 134.6)
PREPROCESSING = {  # (training, evaluation) by framework and group of models
    "pytorch/all": (
        Recipe("box", "none", True, False, "RGB", 255.0, *IMAGENET),
        Recipe("centre", "none", False, False, "RGB", 255.0, *IMAGENET),
    ),
    "tensorflow/vgg-style": (
        Recipe("place", "smaller", True, False, "RGB", 1.0, (123.68, 116.779, 103.939), (1.0,) * 3),
        Recipe("centre", "smaller", False, False, "RGB", 1.0, (123.68, 116.779, 103.939), (1.0,) * 3),
    ),
    "tensorflow/inception-style": (
        Recipe("box", "none", False, True, "RGB", 255.0, (0.5,) * 3, (0.5,) * 3),
        Recipe("centre", "none", False, False, "RGB", 255.0, (0.5,) * 3, (0.5,) * 3),
    ),
    "caffe/lightcnn-29": (
        Recipe("place", "both", True, False, "BGR", 1.0, (127.5,) * 3, (127.5,) * 3),
        Recipe("centre", "none", False, False, "BGR", 1.0, WEBFACE, (255.0,) * 3),
    ),
    "caffe/imagenet-models": (
        Recipe("place", "both", True, False, "BGR", 1.0, WEBFACE, (255.0,) * 3),
        Recipe("centre", "none", False, False, "BGR", 1.0, WEBFACE, (255.0,) * 3),
    ),
}
AREA = {
    "pytorch/all": 0.08,
    "tensorflow/inception-style": 0.05,
}  # least share of an image in a box


def group(network: str, framework: str) -> str:
    """The row of Table 11 that ``network`` belongs to in ``framework``: a key of :data:`PREPROCESSING`."""
    if (network, framework) == ("lightcnn-29", "caffe"):
        return "caffe/lightcnn-29"
    known(network, framework)
    style = "inception" if network == "inception-v3" else "vgg"
    return {"pytorch": "pytorch/all", "tensorflow": f"tensorflow/{style}-style"}.get(framework, "caffe/imagenet-models")


def prepare(
    images: torch.Tensor, network: str, framework: str, size: int, generator: torch.Generator | None = None
) -> torch.Tensor:
    """``images`` uint8 [N, C, H, W], C 3 (RGB) or 1 (grey, repeated), as float32 [N, 3, size, size] (Table 11).

    generator: draws crops, flips and colours for training; None prepares for evaluation. The image around a crop of
    ``size`` is 8/7 of it (Table 2: 256 and 224; Inception-v3's 299 and 299). The paper does not say how wide Caffe's
    "[0, 1]" is: pixels are divided by 255 after the mean is taken off, so 0 is the mean and the range one wide.
    Raises ValueError on other images, an unknown network or framework and a size below 1.
    """
    row = group(network, framework)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or min(images.shape) < 1:
        raise ValueError(f"images are {images.dtype} {list(images.shape)}: want uint8 [N, 3 or 1, H, W], N at least 1")
    if size < 1:
        raise ValueError(f"size is {size}: want at least 1 pixel")
    recipe = PREPROCESSING[row][generator is None]
    around = size if network == "inception-v3" else round(size * 8 / 7)
    x = images.float().expand(-1, 3, -1, -1)
    height, width = x.shape[2:]
    if recipe.sides != "none":
        smaller = min(height, width)
        scaled = (
            [round(side * around / smaller) for side in (height, width)] if recipe.sides == "smaller" else 2 * [around]
        )
        x = crops.resized(x, scaled)
        height, width = scaled
    if recipe.crop == "box":
        x = crops.boxes(x, size, AREA[row], generator)
    elif recipe.crop == "place":
        tops, lefts = (torch.randint(side - size + 1, (len(x),), generator=generator) for side in (height, width))
        x = crops.cut(x, tops, lefts, size)
    else:
        side = size if recipe.sides != "none" else max(1, round(min(height, width) * 7 / 8))
        top, left = (height - side) // 2, (width - side) // 2
        x = crops.resized(x[:, :, top : top + side, left : left + side], [size, size])
    if recipe.flip:
        turned = torch.rand(len(x), generator=generator) < 0.5
        x = torch.where(turned[:, None, None, None], x.flip(3), x)
    if recipe.colours:
        x = crops.colours(x, generator)
    if recipe.order == "BGR":
        x = x.flip(1)
    mean, std = (torch.tensor(values)[:, None, None] for values in (recipe.mean, recipe.std))
    return (x / recipe.full - mean) / std


def epoch(order: Sequence[int] | np.ndarray, batch_size: int, framework: str) -> Iterator[np.ndarray]:
    """The batches of one epoch over ``order`` (int [N], the shuffled examples) as index sequences (section 4.1).

    Where N is no multiple of ``batch_size``, "caffe" fills the last batch from the start of the order, again and again,
    "pytorch" uses the smaller one, "tensorflow" drops it. Raises ValueError where that leaves no batch at all.
    """
    order = np.asarray(order)
    if framework not in FRAMEWORKS:
        raise ValueError(f"framework is {framework!r}: want one of {', '.join(FRAMEWORKS)}")
    if order.ndim != 1 or not len(order) or batch_size < 1:
        raise ValueError(
            f"order has shape {list(order.shape)}, batch_size is {batch_size}: want [N] and 1, at least 1 each"
        )
    if framework == "tensorflow" and len(order) < batch_size:
        raise ValueError(
            f"{len(order)} examples, batch_size {batch_size}: TensorFlow drops them all; want a smaller batch"
        )
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        if len(batch) == batch_size or framework == "pytorch":
            yield batch
        elif framework == "caffe":
            yield np.concatenate([batch, np.resize(order, batch_size - len(batch))])


def known(network: str, framework: str) -> None:
    """Raise ValueError where Table 12 has no such network or framework."""
    if network not in NETWORKS or framework not in FRAMEWORKS:
        raise ValueError(
            f"network is {network!r}, framework {framework!r}: want one of {', '.join(NETWORKS)}, and one of "
            f"{', '.join(FRAMEWORKS)}"
        )
