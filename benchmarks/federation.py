"""FedAvg against plain SGD over the same minibatches, and against FedAvg as a textbook writes it."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch.nn import functional

from benchmarks.measure import interleaved
from fl_utils import federation
from fl_utils.data import images, partition
from fl_utils.models.vision import SmallCNN, two_nn
from fl_utils.training import LocalTraining, client_seed

MODELS = {"2NN": two_nn, "CNN": partial(SmallCNN, 10, 32, 512)}  # the CNN has the widths of McMahan et al. 2017
LOCAL = LocalTraining(1, 10, 0.05)
ROUNDS, FRACTION = 5, 0.1


def clients() -> list[federation.Client]:
    """100 clients with 50 digits each, as McMahan et al. 2017 draw them, of MNIST-5k."""
    digits = images.load("digits")["mnist"]
    parts = [digits.take(part) for part in partition.iid(len(digits), 100, 0)]
    return [federation.Client(id, part.x, part.y) for id, part in enumerate(parts)]


def batches(parties: list[federation.Client]):
    """Every minibatch of the whole run, in the federation's order: (round, client, x, y)."""
    for number in range(ROUNDS):
        for id in federation.draw(range(100), FRACTION, 0, number):
            generator = torch.Generator().manual_seed(client_seed(0, number, id))
            for batch in torch.randperm(len(parties[id]), generator=generator).split(LOCAL.batch_size):
                yield number, id, parties[id].x[batch], parties[id].y[batch]


def plain(build, parties) -> None:
    """One model, one optimizer, no federation."""
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), LOCAL.learning_rate)
    for _, _, x, y in batches(parties):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def textbook(build, parties) -> None:
    """A deep copy, an optimizer and a state dict for every client of every round."""
    model = build()
    for number in range(ROUNDS):
        states = []
        for id in federation.draw(range(100), FRACTION, 0, number):
            own = copy.deepcopy(model)
            optimizer = torch.optim.SGD(own.parameters(), LOCAL.learning_rate)
            data = torch.utils.data.TensorDataset(parties[id].x, parties[id].y)
            for x, y in torch.utils.data.DataLoader(data, LOCAL.batch_size, shuffle=True):
                optimizer.zero_grad()
                functional.cross_entropy(own(x), y).backward()
                optimizer.step()
            states.append(own.state_dict())
        model.load_state_dict({name: sum(s[name] for s in states) / len(states) for name in states[0]})


def run() -> dict:
    """Ratios of CPU time to plain SGD, by model."""
    parties = clients()
    return {
        name: interleaved(
            {
                "plain SGD": partial(plain, build, parties),
                "fl_utils": partial(
                    federation.run, build, parties, rounds=ROUNDS, local=LOCAL, client_fraction=FRACTION
                ),
                "textbook FedAvg": partial(textbook, build, parties),
            }
        )
        for name, build in MODELS.items()
    }
