"""The face losses against equations 1 to 5, worked out slowly, and through a training."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from fl_utils import face_losses
from fl_utils.models.faces import FaceNetwork
from fl_utils.training import LocalTraining, Trainer

TARGETS = torch.tensor([0, 2, 1, 2])
FEATURES = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))


def network(classes=3):
    return FaceNetwork(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), 3, classes, channels=1)


def build(loss, **settings):
    torch.manual_seed(0)
    return face_losses.recogniser(network, loss, **settings)


def angles(head):
    """theta [4, 3], and the lengths of the features [4, 1]."""
    cosine = nn.functional.normalize(FEATURES) @ nn.functional.normalize(head.W, dim=0)
    return torch.acos(cosine.clamp(-1, 1)), FEATURES.norm(dim=1, keepdim=True)


def cross_entropy(logits):
    return -torch.stack([row.log_softmax(0)[target] for row, target in zip(logits, TARGETS, strict=True)]).mean()


def with_target(logits, changed):
    return torch.where(nn.functional.one_hot(TARGETS, 3).bool(), changed, logits)


def test_softmax_is_equation_1():
    model = build("softmax")
    logits = FEATURES @ model.head.linear.weight.T + model.head.linear.bias
    assert torch.allclose(model.loss(FEATURES, TARGETS), cross_entropy(logits))


def test_center_is_equation_2_and_its_centers_follow():
    model = build("center", weight=0.3, rate=0.5)
    softmax = cross_entropy(FEATURES @ model.head.linear.weight.T + model.head.linear.bias)
    model.train()
    expected = softmax + 0.15 * FEATURES.square().sum(1).mean()  # the centers begin at zero
    assert torch.allclose(model.loss(FEATURES, TARGETS), expected)
    moved = model.head.centers
    assert torch.allclose(moved[0], FEATURES[0] * 0.5 / 2)
    assert torch.allclose(moved[2], (FEATURES[1] + FEATURES[3]) * 0.5 / 3)
    model.eval()
    before = moved.clone()
    expected = softmax + 0.15 * (FEATURES - before[TARGETS]).square().sum(1).mean()
    assert torch.allclose(model.loss(FEATURES, TARGETS), expected)
    assert torch.equal(model.head.centers, before)
    for _ in range(200):
        model.train().loss(FEATURES, TARGETS)
    assert torch.allclose(moved[2], (FEATURES[1] + FEATURES[3]) / 2, atol=1e-5)


def test_sphereface_is_equation_3():
    m = 4
    model = build("sphereface", margin=m)
    theta, length = angles(model.head)
    k = (theta * m / math.pi).floor()
    psi = (-1) ** k * torch.cos(m * theta) - 2 * k
    assert torch.allclose(
        model.loss(FEATURES, TARGETS), cross_entropy(with_target(theta.cos(), psi) * length), atol=1e-5
    )


def test_cosface_is_equation_4():
    model = build("cosface", margin=0.35, scale=8)
    theta, _ = angles(model.head)
    logits = 8 * with_target(theta.cos(), theta.cos() - 0.35)
    assert torch.allclose(model.loss(FEATURES, TARGETS), cross_entropy(logits), atol=1e-5)


def test_arcface_is_equation_5():
    model = build("arcface", margin=math.degrees(0.3), scale=8)
    theta, _ = angles(model.head)
    assert (theta.diag()[:1] + 0.3 < math.pi).all()
    logits = 8 * with_target(theta.cos(), torch.cos(theta + 0.3))
    assert torch.allclose(model.loss(FEATURES, TARGETS), cross_entropy(logits), atol=1e-5)


@pytest.mark.parametrize("loss", face_losses.LOSSES)
def test_it_trains_with_its_weights_in_the_models_vector(loss):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    x = torch.eye(3)[y] @ torch.randn(3, 4, generator=generator) * 2 + 0.1 * torch.randn(60, 4, generator=generator)
    torch.manual_seed(0)
    trainer = Trainer(partial(face_losses.recogniser, network, loss))
    before = trainer.vector.clone()
    x = x.view(60, 1, 2, 2)
    losses = trainer.train(x, y, LocalTraining(20, 10, 0.05, loss="own"), 0)
    assert losses[-1] < losses[0] - 0.1
    assert (trainer.vector != before).float().mean() > 0.9  # the loss' own rows too
    assert trainer.model.features(x).shape == (60, 3)


@pytest.mark.parametrize(
    ("loss", "settings", "told"),
    [
        ("triplet", {}, "loss is 'triplet'"),
        ("arcface", {"weight": 1}, "arcface has no setting 'weight': want margin or scale"),
        ("softmax", {"margin": 1}, "softmax has no setting 'margin': want none"),
        ("center", {"rate": 0}, "rate 0"),
    ],
)
def test_what_does_not_fit_is_named(loss, settings, told):
    with pytest.raises(ValueError, match=told):
        build(loss, **settings)


def test_a_model_without_a_loss_of_its_own_is_told_so():
    with pytest.raises(ValueError, match="Linear has no method loss"):
        Trainer(partial(nn.Linear, 4, 3)).train(torch.rand(2, 4), torch.tensor([0, 1]), LocalTraining(loss="own"), 0)
