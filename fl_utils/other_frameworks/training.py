"""Training with one framework's defaults: its first weights, its pre-processing, its last batch (section 4.2.3)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fl_utils import framework_defaults, probe
from fl_utils.training import check_examples


@dataclass(frozen=True)
class Schedule:
    """What is the same in every framework: SGD with momentum.

    rate_epochs: the learning rate is a tenth after each so many epochs (Table 2: 17 for VGG-16); 0: it is constant. At
    a constant rate the three frameworks' SGD is one: v = momentum * v + g, w = w - rate * v. Where the rate changes
    Caffe's and Keras' would differ from this, since they keep rate * v.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float = 0.9  # Table 2's caption
    weight_decay: float = 0.0
    rate_epochs: int = 0

    def rate(self, epoch: int) -> float:
        """The learning rate in ``epoch``, from 0 up."""
        return self.learning_rate * (0.1 ** (epoch // self.rate_epochs) if self.rate_epochs else 1)


@contextmanager
def arithmetic(framework: str) -> Iterator[None]:
    """Within this, torch convolves in the way of ``framework``: the same sums, rounded in another order.

    "caffe": matrix products over columns (im2col, Chetlur et al. 2014) in place of oneDNN and cuDNN; "tensorflow": the
    layout NHWC, which :func:`train` gives its model and images; "pytorch": as it is.
    """
    if framework not in framework_defaults.FRAMEWORKS:
        raise ValueError(f"arithmetic is {framework!r}: want one of {', '.join(framework_defaults.FRAMEWORKS)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of a setting for Intel's GPUs
        if framework != "caffe":
            yield
            return
        with torch.backends.mkldnn.flags(enabled=False), torch.backends.cudnn.flags(enabled=False):
            yield


def train(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    network: str,
    framework: str,
    size: int,
    schedule: Schedule,
    seed: int,
    computed: str = "pytorch",
    device: str = "cpu",
) -> list[float]:
    """Train ``model`` in place on images uint8 [N, C, H, W] and labels int64 [N]; the mean loss of each epoch.

    framework: whose defaults for ``network`` initialise the model, prepare the images and end an epoch. computed: in
    whose :func:`arithmetic`. The order of examples, all crops and flips depend on ``seed`` alone. A training whose loss
    is no longer finite ends there, with that loss. Raises ValueError on examples that do not fit together.
    """
    check_examples(images, labels)
    framework_defaults.initialise(model, network, framework, seed)
    layout = torch.channels_last if computed == "tensorflow" else torch.contiguous_format
    model.to(device, memory_format=layout).train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    velocity = [torch.zeros_like(parameter) for parameter in parameters]
    random, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    losses = []
    with arithmetic(computed):
        for number in range(schedule.epochs):
            total, seen, order = 0.0, 0, random.permutation(len(images))
            batches = list(framework_defaults.epoch(order, schedule.batch_size, framework))
            about = (model, images, framework, size, computed, device)
            for chosen in probe.few(map(torch.from_numpy, batches), len(batches), 1, *about):
                x = framework_defaults.prepare(images[chosen], network, framework, size, generator)
                outputs = model(x.to(device, memory_format=layout))
                loss = functional.cross_entropy(outputs, labels[chosen].to(device))
                step(parameters, velocity, torch.autograd.grad(loss, parameters), schedule, number)
                total, seen = total + loss.item() * len(chosen), seen + len(chosen)
            losses.append(total / max(seen, 1))
            if not np.isfinite(total):
                break
    return losses


@torch.no_grad()
def step(parameters, velocity, gradients, schedule: Schedule, epoch: int = 0) -> None:
    """One step of SGD in place."""
    gradients = list(gradients)
    if schedule.weight_decay:
        torch._foreach_add_(gradients, parameters, alpha=schedule.weight_decay)
    torch._foreach_mul_(velocity, schedule.momentum)
    torch._foreach_add_(velocity, gradients)
    torch._foreach_add_(parameters, velocity, alpha=-schedule.rate(epoch))


class Prepared(nn.Module):
    """A network that takes pictures as they are, uint8 [N, C, H, W], and prepares them as ``framework`` does."""

    def __init__(self, model: nn.Module, network: str, framework: str, size: int):
        super().__init__()
        self.model, self.network, self.framework, self.size = model, network, framework, size

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The network's features of pictures prepared for evaluation, float32 [N, d]."""
        x = framework_defaults.prepare(images.cpu(), self.network, self.framework, self.size)
        return self.model.features(x.to(next(self.model.parameters()).device))
