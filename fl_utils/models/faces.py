"""The networks of Wang and Guo 2019, Table 2, and small ones of the same kinds that learn 40 faces within seconds.

    model = build("resnet50", classes=10_575)        # as published; MODELS has the names
    model = small("vgg_bn", classes=30, size=48)     # SMALL_MODELS has the names

All take images [N, C, H, W], uint8 or float in [0, 1], and scale them themselves; grey ones (C = 1) and colour ones
(C = 3) both fit every network. ``model(images)`` gives logits [N, classes], ``model.features(images)`` the output of
the penultimate layer [N, d] (section 4.1), and ``model.classifier`` is the last layer. torchvision's networks are
torchvision's. :func:`parameters` counts on torch's meta device, where a network needs no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature

import torch
import torchvision.models as torchvision_models
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.vgg import make_layers

from fl_utils.models import face_networks
from fl_utils.models.inputs import as_unit
from fl_utils.models.resnet import resnet as basic_resnet
from fl_utils.models.vision import IMAGENET_MEAN, IMAGENET_STD

IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
CENTRED = ((0.5,) * 3, (128 / 255,) * 3)  # (x - 127.5) / 128, as the face networks' authors have it
PLAIN = ((0.0,) * 3, (1.0,) * 3)
LUMA = (0.299, 0.587, 0.114)


class FaceNetwork(nn.Module):
    """``body`` from scaled images to features [N, width], then dropout and ``classifier``, one row per identity.

    scaling: mean and standard deviation of each of three channels, of values in [0, 1]; a grey network takes their
    averages. auxiliary classifiers, where there are any, belong to the body: see :meth:`all_logits`.
    """

    def __init__(
        self, body: nn.Module, width: int, classes: int, channels: int, scaling=IMAGENET, dropout=0.0, bias=True
    ):
        super().__init__()
        mean, std = (values if channels == 3 else (sum(values) / 3,) for values in scaling)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        self.register_buffer("luma", torch.tensor(LUMA).view(-1, 1, 1), persistent=False)
        self.channels, self.width = channels, width
        self.body, self.dropout = body, nn.Dropout(dropout)
        self.classifier = nn.Linear(width, classes, bias=bias)

    def _outputs(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = as_unit(images)
        if x.shape[1] not in (1, 3):
            raise ValueError(f"images have {x.shape[1]} channels: want 1 (grey) or 3 (red, green, blue)")
        if x.shape[1] > self.channels:
            x = (x * self.luma).sum(1, keepdim=True)
        found = self.body((x.expand(-1, self.channels, -1, -1) - self.mean) / self.std)
        return (found,) if isinstance(found, torch.Tensor) else tuple(part for part in found if part is not None)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The output of the penultimate layer, float32 [N, width]."""
        return self._outputs(images)[0]

    def all_logits(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The logits [N, classes], and in training mode those of each auxiliary classifier after them."""
        first, *others = self._outputs(images)
        return [self.classifier(self.dropout(first)), *others]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.all_logits(images)[0]


def alexnet(
    classes: int,
    widths: tuple[int, ...] = (64, 192, 384, 256, 256),
    kernel: int = 11,
    stride: int = 4,
    padding: int = 2,
    groups: int = 1,
    lrn: bool = False,
    pooled: int = 6,
    hidden: int = 4096,
    dropout: float = 0.5,
    he: bool = False,
    channels: int = 3,
) -> FaceNetwork:
    """AlexNet: five convolutions, two hidden layers. The defaults are torchvision's (AlexNet-v2, Krizhevsky 2014).

    widths: of the convolutions. kernel, stride, padding: of the first. groups: of the second, fourth and fifth, 2 in
    AlexNet-v1 (Krizhevsky et al. 2012) and in Caffe. lrn: local response normalisation after the first two (v1).
    pooled: side of the last map. TensorFlow-slim's v2 is widths (64, 192, 384, 384, 256), padding 0, pooled 5.
    he: begin with He et al.'s weights in place of PyTorch's default ones, with which a short training goes nowhere.
    """
    layers: list[nn.Module] = []
    before = channels
    for index, after in enumerate(widths):
        first = index == 0
        shape = (kernel, stride, padding) if first else (5 if index == 1 else 3, 1, 2 if index == 1 else 1)
        layers += [nn.Conv2d(before, after, *shape, groups=groups if index in (1, 3, 4) else 1), nn.ReLU()]
        layers += [nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0)] if lrn and index < 2 else []
        layers += [nn.MaxPool2d(3, 2)] if index in (0, 1, len(widths) - 1) else []
        before = after
    body = nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(pooled), nn.Flatten(),
        nn.Dropout(dropout), nn.Linear(before * pooled**2, hidden), nn.ReLU(),
        nn.Dropout(dropout), nn.Linear(hidden, hidden), nn.ReLU(),
    )  # fmt: skip
    if he:
        _he(body)
    return FaceNetwork(body, hidden, classes, channels)


def _he(body: nn.Module) -> None:
    for module in body.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)


def vgg(
    classes: int,
    norm: bool = False,
    width: int = 64,
    stages: tuple[int, ...] = (2, 2, 3, 3, 3),
    pooled: int = 7,
    hidden: int = 4096,
    linear_std: float = 0.01,
    dropout: float = 0.5,
    channels: int = 3,
) -> FaceNetwork:
    """VGG (Simonyan and Zisserman 2015): stages of 3x3 convolutions, a pool after each. The defaults are VGG-16.

    norm: batch normalisation before each ReLU ("BN"). width: of the first stage; each later one has twice as many, at
    most eight times. pooled: side of the last map. linear_std: of the hidden layers' first weights, 0 = He et al.'s.
    """
    plan: list[int | str] = []
    for stage, count in enumerate(stages):
        plan += [min(width << stage, 8 * width)] * count + ["M"]
    layers, last = make_layers(plan, batch_norm=norm), plan[-2]
    layers[0] = nn.Conv2d(channels, width, 3, padding=1)
    body = nn.Sequential(
        layers, nn.AdaptiveAvgPool2d(pooled), nn.Flatten(),
        nn.Linear(last * pooled**2, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, hidden), nn.ReLU(),
    )  # fmt: skip
    model = FaceNetwork(body, hidden, classes, channels, dropout=dropout)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear) and (linear_std or module is model.classifier):
            nn.init.normal_(module.weight, std=linear_std or 0.01)
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.zeros_(module.bias)
    return model


def _of_torchvision(network: nn.Module, last: str, classes: int, dropout: float = 0.0) -> FaceNetwork:
    """torchvision's ``network`` without its last layer, which the head replaces."""
    width = getattr(network, last).in_features
    setattr(network, last, nn.Identity())
    return FaceNetwork(network, width, classes, 3, dropout=dropout)


def googlenet(classes: int, auxiliary: bool = False, channels: int = 3) -> FaceNetwork:
    """GoogLeNet as published (Szegedy et al. 2015); auxiliary: with its two classifiers on intermediate layers."""
    body = face_networks.GoogLeNet(channels, classes if auxiliary else 0)
    return FaceNetwork(body, 1024, classes, channels, dropout=0.4)


def googlenet_bn(classes: int, auxiliary: bool = False) -> FaceNetwork:
    """torchvision's GoogLeNet: batch normalisation, and 3x3 filters where the published one has 5x5."""
    network = torchvision_models.googlenet(
        weights=None, num_classes=classes, aux_logits=auxiliary, transform_input=False, init_weights=True
    )
    network.dropout = nn.Identity()
    return _of_torchvision(network, "fc", classes, 0.2)


def inception_v3(classes: int, auxiliary: bool = False) -> FaceNetwork:
    """torchvision's Inception-v3 (Szegedy et al. 2016), for 299 x 299 pixels; auxiliary: with its classifier."""
    network = torchvision_models.inception_v3(
        weights=None, num_classes=classes, aux_logits=auxiliary, transform_input=False, init_weights=True
    )
    network.dropout = nn.Identity()
    return _of_torchvision(network, "fc", classes, 0.5)


def resnet50(classes: int) -> FaceNetwork:
    """torchvision's ResNet-50 (He et al. 2016)."""
    return _of_torchvision(ResNet(Bottleneck, [3, 4, 6, 3]), "fc", classes)


def densenet(
    classes: int, growth: int = 32, blocks: tuple[int, ...] = (6, 12, 24, 16), first: int = 64, channels: int = 3
) -> FaceNetwork:
    """torchvision's DenseNet (Huang et al. 2017); the defaults are DenseNet-121. first: filters of the stem."""
    network = torchvision_models.DenseNet(growth, blocks, first)
    if channels != 3:
        network.features.conv0 = nn.Conv2d(channels, first, 7, 2, 3, bias=False)
    model = _of_torchvision(network, "classifier", classes)
    return model if channels == 3 else FaceNetwork(network, model.width, classes, channels)


def residual(classes: int, depth: int = 10, width: int = 64, stem: str = "imagenet", channels: int = 3) -> FaceNetwork:
    """A ResNet of basic blocks, see :func:`fl_utils.models.resnet.resnet`: depth 10, 18 or 34, of any width."""
    core = basic_resnet(depth, 1, width, channels, stem=stem)
    body = nn.Sequential(core.stem, core.blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return FaceNetwork(body, 8 * width, classes, channels)


def lightcnn(
    classes: int,
    depth: int = 29,
    width: int = 48,
    size: tuple[int, int] = (128, 128),
    channels: int = 1,
    features: int = 256,
    dropout: float = 0.5,
) -> FaceNetwork:
    """LightCNN of 9 or 29 layers, see :func:`fl_utils.models.face_networks.lightcnn`; grey, as published."""
    _known("depth", depth, face_networks.LIGHTCNN_UNITS)
    body, width = face_networks.lightcnn(depth, width, size, channels, features)
    return FaceNetwork(body, width, classes, channels, PLAIN, dropout)


def centerloss(
    classes: int, width: int = 64, size: tuple[int, int] = (112, 96), channels: int = 3, features: int = 512
) -> FaceNetwork:
    """The network of center loss, see :func:`fl_utils.models.face_networks.centerloss`; its loss is another room's."""
    return FaceNetwork(*face_networks.centerloss(width, size, channels, features), classes, channels, CENTRED)


def sphereface(
    classes: int,
    depth: int = 20,
    width: int = 64,
    size: tuple[int, int] = (112, 96),
    channels: int = 3,
    features: int = 512,
    norm: bool = False,
) -> FaceNetwork:
    """SphereFace's network, see :func:`fl_utils.models.face_networks.sphereface`; depth 4, 10, 20, 36 or 64."""
    _known("depth", depth, face_networks.SPHEREFACE_UNITS)
    body, width = face_networks.sphereface(depth, width, size, channels, features, norm)
    return FaceNetwork(body, width, classes, channels, CENTRED, bias=False)


def iresnet(
    classes: int,
    depth: int = 50,
    width: int = 64,
    size: tuple[int, int] = (112, 112),
    channels: int = 3,
    features: int = 512,
    dropout: float = 0.4,
) -> FaceNetwork:
    """ArcFace's network, see :func:`fl_utils.models.face_networks.iresnet`; Table 2 names none for its row."""
    _known("depth", depth, face_networks.IRESNET_UNITS)
    body, width = face_networks.iresnet(depth, width, size, channels, features, dropout)
    return FaceNetwork(body, width, classes, channels, CENTRED, bias=False)


Builder = Callable[..., FaceNetwork]
MODELS: dict[str, tuple[Builder, dict]] = {
    "alexnet_v1": (
        alexnet,
        {"widths": (96, 256, 384, 384, 256), "padding": 0, "groups": 2, "lrn": True},
    ),
    "alexnet": (alexnet, {}),
    "densenet121": (densenet, {}),
    "googlenet": (googlenet, {}),
    "googlenet_bn": (googlenet_bn, {}),
    "inception_v3": (inception_v3, {}),
    "lightcnn9": (lightcnn, {"depth": 9}),
    "lightcnn29": (lightcnn, {}),
    "resnet50": (resnet50, {}),
    "vgg16": (vgg, {}),
    "vgg16_bn": (vgg, {"norm": True}),
    "centerloss": (centerloss, {}),
    "sphereface": (sphereface, {}),
    "iresnet50": (iresnet, {}),
}
_SMALL_ALEXNET = {
    **{"widths": (24, 48, 64, 64, 48), "kernel": 7, "stride": 2, "padding": 3},
    **{"pooled": 3, "hidden": 128, "dropout": 0.2, "he": True},
}
_SMALL_VGG = {"width": 12, "stages": (1, 1, 2, 2), "pooled": 3, "hidden": 128, "linear_std": 0.0, "dropout": 0.2}
SMALL_MODELS: dict[str, tuple[Builder, dict]] = {
    "alexnet": (alexnet, _SMALL_ALEXNET),
    "vgg": (vgg, _SMALL_VGG),
    "vgg_bn": (vgg, {**_SMALL_VGG, "norm": True}),
    "resnet10": (residual, {"depth": 10, "width": 16}),
    "resnet18": (residual, {"depth": 18, "width": 16}),
    "densenet": (densenet, {"growth": 12, "blocks": (2, 4, 4, 2), "first": 24}),
    "lightcnn": (lightcnn, {"depth": 9, "width": 12, "features": 64, "dropout": 0.2}),
    "sphereface": (sphereface, {"depth": 10, "width": 16, "features": 64, "norm": True}),
}


def build(name: str, classes: int, **settings) -> FaceNetwork:
    """The network ``name`` of Table 2 (one of :data:`MODELS`) with a head of ``classes`` identities.

    settings: what is to differ from the published network; those of the function that MODELS names. Raises ValueError
    on a name or a setting that there is not.
    """
    return _built(MODELS, name, classes, settings)


def small(name: str, classes: int, size: int | tuple[int, int] = 48, channels: int = 1, **settings) -> FaceNetwork:
    """A small network of the same kind, one of :data:`SMALL_MODELS`, for images of ``size`` pixels (32 at least).

    size: one side of a square, or height and width. An epoch of 300 pictures of 48 x 48 pixels takes 0.3 to 0.8
    seconds of one core; those with batch normalisation learn 30 people in 8 epochs of Adam at 0.001, "alexnet", "vgg"
    and "lightcnn" in 20. Raises ValueError as :func:`build` does, and where the size is below 32.
    """
    size = (size, size) if isinstance(size, int) else tuple(size)
    if len(size) != 2 or min(size) < 32:
        raise ValueError(f"size is {size}: want a height and a width of at least 32 pixels")
    if name in SMALL_MODELS and "size" in signature(SMALL_MODELS[name][0]).parameters:
        settings = {"size": size, **settings}
    return _built(SMALL_MODELS, name, classes, {"channels": channels, **settings})


def parameters(name: str, classes: int, **settings) -> int:
    """How many trainable parameters :func:`build` with these arguments makes, counted without their memory."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build(name, classes, **settings).parameters())


def _built(known: dict[str, tuple[Builder, dict]], name: str, classes: int, settings: dict) -> FaceNetwork:
    _known("name", name, known)
    function, given = known[name]
    if not isinstance(classes, int) or classes < 1:
        raise ValueError(f"classes is {classes!r}: want a whole number from 1 up")
    for setting in settings:
        _known(f"a setting of {name}", setting, [key for key in signature(function).parameters if key != "classes"])
    if settings.get("channels", 3) not in (1, 3):
        raise ValueError(f"channels is {settings['channels']!r}: want 1 (grey) or 3 (colour)")
    return function(classes, **{**given, **settings})


def _known(what: str, value: object, known) -> None:
    if value not in known:
        raise ValueError(f"{what} is {value!r}: want one of {', '.join(map(str, known))}")
