"""Loops without a framework: plain SGD over the same minibatches, and FedAvg as a textbook writes it."""

from __future__ import annotations

import copy
import sys

import torch
from torch.nn import functional

from benchmarks.rivals.job import BATCH, RATE, Task, parameters, serve


class Plain:
    """One model, one optimizer, no federation: the limit."""

    def __init__(self, task: Task):
        self.task, self.model = task, task.model()
        self.optimizer = torch.optim.SGD(self.model.parameters(), RATE)

    def run(self, block: int) -> None:
        """Every minibatch of the block's rounds, in the federation's order."""
        for number, cohort in enumerate(self.task.cohorts[block]):
            for place, client in enumerate(cohort):
                x, y = self.task.x[client], self.task.y[client]
                for batch in self.task.order(block, number, place).split(BATCH):
                    self.optimizer.zero_grad()
                    functional.cross_entropy(self.model(x[batch]), y[batch]).backward()
                    self.optimizer.step()

    def vector(self) -> torch.Tensor:
        """The trainable parameters, float32 [d']."""
        return parameters(self.model)


class Textbook:
    """A deep copy, an optimizer, a data loader and a state dict for every client of every round."""

    def __init__(self, task: Task):
        self.task, self.model = task, task.model()

    def run(self, block: int) -> None:
        """The block's rounds of federated averaging."""
        for number, cohort in enumerate(self.task.cohorts[block]):
            states = []
            for place, client in enumerate(cohort):
                own = copy.deepcopy(self.model)
                optimizer = torch.optim.SGD(own.parameters(), RATE)
                data = torch.utils.data.TensorDataset(self.task.x[client], self.task.y[client])
                order = self.task.order(block, number, place).tolist()
                for x, y in torch.utils.data.DataLoader(data, BATCH, sampler=order):
                    optimizer.zero_grad()
                    functional.cross_entropy(own(x), y).backward()
                    optimizer.step()
                states.append(own.state_dict())
            self.model.load_state_dict({name: sum(s[name] for s in states) / len(states) for name in states[0]})

    def vector(self) -> torch.Tensor:
        """The trainable parameters, float32 [d']."""
        return parameters(self.model)


LOOPS = {"plain": Plain, "textbook": Textbook}

if __name__ == "__main__":
    serve(LOOPS[sys.argv[1]], "torch")
