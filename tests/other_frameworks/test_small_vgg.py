"""The small VGG: three ways of computing one convolution, trainings that differ by their defaults alone."""

from __future__ import annotations

import math

import pytest
import torch

from fl_utils.framework_defaults import FRAMEWORKS, prepare
from fl_utils.other_frameworks.small_vgg import SmallVGG
from fl_utils.other_frameworks.training import Prepared, Schedule, arithmetic, step, train


@pytest.fixture(scope="module")
def pictures():
    """Sixty pictures of three kinds that are told apart by how bright they are."""
    y = torch.arange(60) % 3
    x = torch.randint(60, (60, 1, 16, 16), generator=torch.Generator().manual_seed(0)) + 95 * y[:, None, None, None]
    return x.to(torch.uint8), y


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_each_arithmetic_gives_the_same_training_but_for_rounding(framework, pictures):
    """After a few steps the others' weights differ from PyTorch's by no more than float32 explains."""
    found = {}
    for computed in ("pytorch", framework):
        model = SmallVGG(3, 14, (8, 0, 16, 0), embedding=8)
        train(model, *pictures, "vgg-16", "pytorch", 14, Schedule(1, 16, 0.01), 3, computed)
        found[computed] = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    assert torch.allclose(found[framework], found["pytorch"], atol=1e-4)


def test_an_unknown_arithmetic_is_named():
    with pytest.raises(ValueError, match="arithmetic is 'theano'"), arithmetic("theano"):
        pass


def test_shapes_and_what_the_network_cannot_be():
    model = SmallVGG(5, 16, (4, 0, 8, 0), embedding=6)
    x = torch.zeros(2, 3, 16, 16)
    assert model.features(x).shape == (2, 6)
    assert model(x).shape == (2, 5)
    assert model.embed.in_features == 8 * 4 * 4
    for widths in ((0, 0), (4, 0, 0, 0, 0, 0)):
        with pytest.raises(ValueError, match="widths is"):
            SmallVGG(5, 16, widths)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_framework_s_defaults_learn_what_is_easy(framework, pictures):
    model = SmallVGG(3, 14, (4, 0, 8, 0), embedding=8)
    rate = 0.002 if framework == "tensorflow" else 0.05
    losses = train(model, *pictures, "vgg-16", framework, 14, Schedule(12, 16, rate), seed=1)
    assert losses[-1] < 0.5 * losses[0]


def test_the_seed_alone_decides_a_training(pictures):
    def trained(seed, global_seed):
        torch.manual_seed(global_seed)
        model = SmallVGG(3, 14, (4, 0), embedding=4)
        train(model, *pictures, "vgg-16", "pytorch", 14, Schedule(1, 16, 0.01), seed)
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    assert torch.equal(trained(3, 0), trained(3, 1))
    assert not torch.equal(trained(3, 0), trained(4, 0))


def test_a_step_is_torch_s_own_sgd():
    torch.manual_seed(0)
    ours, theirs = torch.randn(5), torch.nn.Parameter(torch.empty(5))
    theirs.data.copy_(ours)
    reference = torch.optim.SGD([theirs], 0.1, momentum=0.9, weight_decay=0.01)
    velocity = [torch.zeros(5)]
    for _ in range(4):
        gradient = torch.randn(5)
        step([ours], velocity, [gradient.clone()], Schedule(1, 1, 0.1, 0.9, 0.01))
        theirs.grad = gradient
        reference.step()
    assert torch.allclose(ours, theirs.data, atol=1e-6)


def test_a_training_that_diverges_ends_there(pictures):
    model = SmallVGG(3, 14, (4, 0))
    losses = train(model, *pictures, "vgg-16", "tensorflow", 14, Schedule(20, 16, 50.0), seed=0)
    assert len(losses) < 20
    assert not math.isfinite(losses[-1])


def test_the_rate_is_a_tenth_after_each_so_many_epochs():
    schedule = Schedule(60, 16, 0.1, rate_epochs=17)
    assert [schedule.rate(epoch) for epoch in (0, 16, 17, 34)] == pytest.approx([0.1, 0.1, 0.01, 0.001])
    assert Schedule(60, 16, 0.1).rate(59) == 0.1


def test_prepared_takes_pictures_as_they_are(pictures):
    model = SmallVGG(3, 14, (4, 0), embedding=4)
    for framework in FRAMEWORKS:
        features = Prepared(model, "vgg-16", framework, 14).features(pictures[0])
        assert torch.equal(features, model.features(prepare(pictures[0], "vgg-16", framework, 14)))


def test_examples_that_do_not_fit_are_refused(pictures):
    with pytest.raises(ValueError, match="60 examples and 3 labels"):
        train(SmallVGG(3, 14, (4,)), pictures[0], pictures[1][:3], "vgg-16", "caffe", 14, Schedule(1, 16, 0.1), 0)
