"""Raj 2020, sections II to IV: two classes of images, a pretrained network with a new last layer, ten submodels.

D1, D2 and D3 lay figures of the same networks beside each other; this room holds what they share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from fl_utils import federation
from fl_utils.data import fetch, images, partition
from fl_utils.data.examples import Examples
from fl_utils.models import vision
from fl_utils.training import LocalTraining, Trainer

MODELS = ("small_cnn", "alexnet", "mobilenet_v2")


@dataclass(frozen=True)
class Task:
    """Images of two classes (labels 0 and 1, ``names``), split; ``build()`` makes the network all models start as."""

    train: Examples
    test: Examples
    names: tuple[str, str]
    build: Callable[[], nn.Module]
    build_random: Callable[[], nn.Module]

    def clients(self, count: int, seed: int) -> list[federation.Client]:
        """``count`` disjoint, equal shares of the training images, as many of each class in each (section IV.A)."""
        per_class = []
        for label in (0, 1):
            indices = (self.train.y == label).nonzero().squeeze(1).numpy()
            if len(indices) < count:
                raise ValueError(
                    f"submodels is {count}: the training set has {len(indices)} images of class {self.names[label]!r}"
                )
            shuffled = np.random.default_rng([seed, label]).permutation(indices)
            per_class.append(shuffled[: len(indices) // count * count].reshape(count, -1))
        shares = (self.train.take(np.concatenate(part)) for part in zip(*per_class, strict=True))
        return [federation.Client(id, share.x, share.y) for id, share in enumerate(shares)]


def load(
    dataset: str,
    model: str,
    *,
    seed: int,
    data_dir: str = "",
    weights: str = "",
    classes: tuple[int, int] = (3, 5),
    pretrain_epochs: int = 3,
    image_size: int = 224,
    num_images: int = 0,
    test_share: float = 1013 / 3016,
) -> Task:
    """Load, split and pretrain.

    dataset: "digits" (two ``classes`` of MNIST-5k; the network is pretrained here, on the other eight) or "catsdogs".
    model: one of :data:`MODELS`; "small_cnn" goes with digits, the others with cats and dogs, 3-channel images of
    ``image_size``. weights: the card of the ImageNet weights they start from, "" for random ones.
    num_images: how many images to use, half of each class, 0 = all (the paper takes 3,016 of 25,000).
    Raises ValueError where these do not fit together.
    """
    if model not in MODELS:
        raise ValueError(f"model is {model!r}: want one of {', '.join(MODELS)}")
    if (dataset == "digits") != (model == "small_cnn") or dataset not in ("digits", "catsdogs"):
        raise ValueError(
            f"dataset {dataset!r} and model {model!r}: want digits with small_cnn, or catsdogs with another"
        )
    if dataset == "digits":
        if len(set(classes)) != 2 or not set(classes) <= set(range(10)):
            raise ValueError(f"classes is {classes}: want two different digits")
        everything = images.load("digits", data_dir)["mnist"]
        chosen = torch.isin(everything.y, torch.tensor(classes))
        rest = everything.take((~chosen).nonzero().squeeze(1).numpy())
        two = everything.take(chosen.nonzero().squeeze(1).numpy())
        two = Examples(two.x, (two.y == classes[1]).long())
        names = (str(classes[0]), str(classes[1]))
        build = partial(vision.small_cnn, 2, _pretrain(rest, pretrain_epochs, seed))
        build_random = partial(vision.small_cnn, 2)
    else:
        two, names = images.load("catsdogs", data_dir, size=image_size)["all"], ("cat", "dog")
        make = vision.alexnet if model == "alexnet" else vision.mobilenet_v2
        build_random = partial(make, 2)
        build = partial(make, 2, fetch.weights(weights, data_dir)) if weights else build_random
    if num_images:
        two = two.take(_balanced(two.y, num_images, seed))
    train, test = partition.split(two, [1 - test_share, test_share], seed)
    return Task(two.take(train), two.take(test), names, build, build_random)


def _pretrain(rest: Examples, epochs: int, seed: int) -> dict[str, torch.Tensor] | None:
    """The weights below the last layer after training on ``rest``: the "available data" of section III.A."""
    if epochs == 0:
        return None
    torch.manual_seed(seed)
    trainer = Trainer(partial(vision.small_cnn, 10))
    trainer.train(rest.x, rest.y, LocalTraining(epochs, 32, 0.05), seed)
    return {name: tensor.clone() for name, tensor in trainer.model.features.state_dict().items()}


def _balanced(labels: torch.Tensor, count: int, seed: int) -> np.ndarray:
    """Indices of ``count`` images, half of each class."""
    halves = []
    for label, wanted in [(0, count - count // 2), (1, count // 2)]:
        indices = (labels == label).nonzero().squeeze(1).numpy()
        if wanted > len(indices):
            raise ValueError(f"num_images is {count}: class {label} has {len(indices)} images, {wanted} are wanted")
        halves.append(np.random.default_rng([seed, label]).permutation(indices)[:wanted])
    return np.sort(np.concatenate(halves))
