"""The network in operations that lower: values and gradients are torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fl_utils.cohorts import Client
from fl_utils.on_device import lowered, order
from fl_utils.training import LocalTraining, Trainer


def gradients(run, parameters, x, y):
    return torch.autograd.grad(functional.cross_entropy(run(parameters, x), y), parameters)


def test_the_network_and_its_gradient_are_torchs_on_digits(network, digits):
    x, y = digits[0][:64].float() / 255, digits[1][:64]
    parameters = list(network.parameters())
    run = lowered.forward(network)
    assert torch.allclose(run(parameters, x), network(x), atol=1e-6)
    for ours, theirs in zip(
        gradients(run, parameters, x, y), gradients(lambda _, x: network(x), parameters, x, y), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(6, 6), (7, 5), (4, 9)])
def test_pooling_gives_the_first_of_equal_values_the_gradient(height, width):
    """Blank paper makes ties in nearly every window of a digit."""
    generator = torch.Generator().manual_seed(height)
    x = torch.randint(0, 3, (2, 3, height, width), generator=generator).float().requires_grad_()
    weight = torch.rand(2, 3, height // 2, width // 2, generator=generator)
    expected = functional.max_pool2d(x, 2, 2)
    ours = lowered.MaxPool.apply(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert torch.equal(ours, expected)
    (gradient,) = torch.autograd.grad((ours * weight).sum(), x)
    (wanted,) = torch.autograd.grad((expected * weight).sum(), x)
    assert torch.allclose(gradient, wanted)


def test_a_short_batch_filled_up_has_its_own_step(network, digits):
    x, y = digits[0][:5].float() / 255, functional.one_hot(digits[1][:5], 10).float()
    parameters = [parameter.detach() for parameter in network.parameters()]
    step, rate = lowered.sgd_step(network), torch.tensor(0.1)
    alone = step(x, y, rate, *parameters)
    filled = step(torch.cat([x, torch.rand(3, 1, 28, 28)]), torch.cat([y, torch.zeros(3, 10)]), rate, *parameters)
    for a, b in zip(alone, filled, strict=True):
        assert torch.allclose(a, b, atol=1e-7)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (nn.Conv2d(1, 4, 3, stride=2), "stride 1"),
        (nn.Conv2d(1, 4, 3, padding=1), "no padding"),
        (nn.MaxPool2d(3, 2), r"want MaxPool2d\(2, 2\)"),
        (nn.BatchNorm2d(1), "BatchNorm2d.*has no training step"),
        (nn.Linear(3, 3, bias=False), "want a bias"),
    ],
)
def test_another_layer_is_named(layer, said):
    with pytest.raises(lowered.Unsupported, match=said):
        lowered.forward(nn.Sequential(nn.ReLU(), layer))


def test_batches_pass_over_every_example_once_an_epoch():
    chosen = list(order.batches(10, 4, 2, seed=3))
    assert [len(each) for each in chosen] == [4, 4, 2, 4, 4, 2]
    assert sorted(np.concatenate(chosen[:3])) == sorted(np.concatenate(chosen[3:])) == list(range(10))
    assert not np.array_equal(np.concatenate(chosen[:3]), np.concatenate(chosen[3:]))


def test_torch_in_a_devices_order_refuses_what_a_device_cannot(digits):
    trainer = Trainer(lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)))
    client = Client(0, digits[0][:20].float() / 255, digits[1][:20])
    first, second = (order.train(trainer, client, LocalTraining(2, 8, 0.1), 1) for _ in range(2))
    assert second < first
    with pytest.raises(ValueError, match=r"momentum is 0.9: a device trains by plain SGD"):
        order.train(trainer, client, LocalTraining(momentum=0.9), 1)
