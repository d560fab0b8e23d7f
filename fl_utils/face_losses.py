"""The losses of the face benchmark: softmax, center, SphereFace, CosFace, ArcFace (Wang and Guo 2019, section 2.2).

    build = partial(recogniser, partial(small, "resnet10", 30), "arcface")
    trainer = Trainer(build)
    trainer.train(x, y, LocalTraining(loss="own", ...), seed)
    verification.features(trainer, pictures)

A margin loss has weights of its own, one row per identity, and takes features instead of logits. So the network and
its loss are one model here: both are trained, sent and averaged as one vector. The margin losses are those of
pytorch-metric-learning.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from fl_utils.models.faces import FaceNetwork

LOSSES = ("softmax", "center", "sphereface", "cosface", "arcface")


class Softmax(nn.Module):
    """Equation 1: a linear layer of ``classes`` rows, then the cross entropy. features [N, d], targets [N]."""

    def __init__(self, classes: int, features: int):
        super().__init__()
        self.linear = nn.Linear(features, classes)

    def forward(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(self.linear(features), targets)


class CenterLoss(Softmax):
    """Equation 2: softmax, and ``weight`` / 2 times the mean squared distance of features to their identity's center.

    weight: lambda. The equation's sum is taken as a mean, as its authors' code does. rate: alpha; after each batch in
    training a center moves towards its features' mean by alpha n / (1 + n) of the way, n of them (Wen et al. 2016,
    equation 4): centers are statistics, not weights, and have no gradient.
    """

    def __init__(self, classes: int, features: int, weight: float = 0.008, rate: float = 0.5):
        super().__init__(classes, features)
        if not weight >= 0 or not 0 < rate <= 1:
            raise ValueError(f"weight is {weight}, rate {rate}: want lambda from 0 up, and alpha above 0 and at most 1")
        self.weight, self.rate = weight, rate
        self.register_buffer("centers", torch.zeros(classes, features))

    def forward(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        distance = features - self.centers[targets]
        loss = super().forward(features, targets) + self.weight / 2 * distance.square().sum(1).mean()
        if self.training:
            with torch.no_grad():
                moved = torch.zeros_like(self.centers).index_add_(0, targets, distance)
                counts = torch.bincount(targets, minlength=len(self.centers))[:, None]
                self.centers += self.rate * moved / (1 + counts)
        return loss


class Recogniser(nn.Module):
    """See :func:`recogniser`."""

    def __init__(self, network: FaceNetwork, head: nn.Module):
        super().__init__()
        self.network, self.head = network, head
        network.classifier = nn.Identity()

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The features [N, d] of ``images`` [N, C, H, W]."""
        return self.network.features(images)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network.dropout(self.features(images))

    def loss(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean loss of ``features`` [N, d] for identities ``targets`` [N]."""
        return self.head(features, targets)


def recogniser(network: Callable[[], FaceNetwork], loss: str, **settings) -> Recogniser:
    """A face network whose last layer is ``loss``, trained by :class:`LocalTraining` with loss "own".

    network: makes one, for instance ``partial(small, "resnet10", classes)``; its last layer gives way to the loss'
    weights. loss: one of :data:`LOSSES`. settings: weight and rate (center), margin and scale (the margin losses, as
    pytorch-metric-learning takes them: SphereFace's m a whole number, CosFace's m of the cosine, ArcFace's in degrees).
    Raises ValueError on a loss or a setting that there is not.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss is {loss!r}: want one of {', '.join(map(repr, LOSSES))}")
    known = {"softmax": (), "center": ("weight", "rate")}.get(loss, ("margin", "scale"))
    if unknown := [name for name in settings if name not in known]:
        raise ValueError(f"{loss} has no setting {unknown[0]!r}: want {' or '.join(known) or 'none'}")
    built = network()
    return Recogniser(built, _head(loss, built.classifier.out_features, built.width, settings))


def _head(loss: str, classes: int, features: int, settings: dict) -> nn.Module:
    if loss in ("softmax", "center"):
        return (Softmax if loss == "softmax" else CenterLoss)(classes, features, **settings)
    from pytorch_metric_learning import losses

    kind = {"sphereface": losses.SphereFaceLoss, "cosface": losses.CosFaceLoss, "arcface": losses.ArcFaceLoss}[loss]
    return kind(classes, features, **settings)
