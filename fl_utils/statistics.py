"""Batch norm's running statistics in federated averaging: averaged, kept local, or estimated anew on the server.

Clients train with their batches' own means; the running statistics only decide how a model is evaluated. Federated
averaging averages them like weights, although they describe the clients' networks and not the averaged one. Hofman 2020
(chapter 4) does not say what was done:

averaged      the average of the clients' statistics, as :func:`fl_utils.federation.run` does unasked
kept_local    each client goes on with its own and sends none (FedBN, Li et al. 2021, for the statistics alone: batch
              norm's scale and shift are averaged); the accuracy is the mean over the clients, each with its own
re_estimated  the server measures them anew on images of its own after each average

    how = settings("kept_local", build, test.x, test.y)
    result = federation.run(build, clients, rounds=10, local=local, **how)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from fl_utils.cohorts import Client
from fl_utils.federation import Rule, Train, fedavg_rule, train_locally
from fl_utils.quantization import recalibrate
from fl_utils.training import LocalTraining, Trainer, check_examples

HOW = ("averaged", "kept_local", "re_estimated")
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def settings(
    how: str,
    build: Callable[[], nn.Module],
    x: torch.Tensor,
    y: torch.Tensor,
    images: torch.Tensor | None = None,
    device: str = "cpu",
    rule: Rule = fedavg_rule,
    train: Train = train_locally,
) -> dict:
    """What :func:`fl_utils.federation.run` takes (``evaluate``, ``rule``, ``train``) to treat statistics by ``how``.

    x, y: test examples; an evaluation has their accuracy (0 to 1) and loss. images: the server's own, [N, ...], at
    least 2, for "re_estimated" alone. rule, train: what is done to everything but the statistics.
    Raises ValueError on another ``how``, a model without running statistics (but for "averaged"), missing images.
    """
    if how not in HOW:
        raise ValueError(f"how is {how!r}: want one of {', '.join(HOW)}")
    check_examples(x, y, "test data")
    if (images is None) == (how == "re_estimated") or (images is not None and len(images) < 2):
        held = "none" if images is None else len(images)
        raise ValueError(f"images: {held} with how {how!r}; want 2 or more with 're_estimated' and none otherwise")
    if how != "kept_local":
        used = rule if how == "averaged" else ReEstimated(build, images, device, rule)
        return {"evaluate": Accuracy(x, y), "rule": used, "train": train}
    kept = KeptLocal(build, rule, train)
    return {"evaluate": lambda trainer: kept.evaluate(trainer, x, y), "rule": kept.combine, "train": kept.train}


def mask(model: nn.Module, names: Iterable[str]) -> list[bool]:
    """Which of the state's entries (:class:`fl_utils.flat.Layout`, ``names``) are batch norm's running statistics.

    Raises ValueError where none is.
    """
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    found = [owner in norms and leaf in BUFFERS for owner, _, leaf in (name.rpartition(".") for name in names)]
    if not any(found):
        raise ValueError(
            f"{type(model).__name__} has no batch norm with running statistics: there is nothing to keep local or to "
            "estimate anew; want how 'averaged'"
        )
    return found


class Accuracy:
    """``evaluate`` of :func:`fl_utils.federation.run`: accuracy (0 to 1) and loss on ``x`` [N, ...], ``y`` [N]."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor):
        self.x, self.y = x, y

    def __call__(self, trainer: Trainer) -> dict[str, float]:
        scores = trainer.evaluate(self.x, self.y)
        return {"accuracy": scores.accuracy, "loss": scores.loss}


class ReEstimated:
    """A rule: what ``rule`` gives, with the statistics that ``images`` [N, ...] have under the new weights."""

    def __init__(self, build: Callable[[], nn.Module], images: torch.Tensor, device: str = "cpu", rule=fedavg_rule):
        self.trainer, self.rule, self.streams = Trainer(build, device), rule, getattr(rule, "streams", False)
        mask(self.trainer.model, self.trainer.layout.names)
        self.images = images.to(self.trainer.device)

    def __call__(self, old: torch.Tensor, updates: Iterable[tuple[torch.Tensor, int]]) -> torch.Tensor:
        self.trainer.vector.copy_(self.rule(old, updates))
        recalibrate(self.trainer.model, self.images)
        return self.trainer.vector.to(old.device, copy=True)


class KeptLocal:
    """Each client's statistics from its last round, in this process: neither other processes nor a resumed run.

    ``train`` and ``combine`` are for :func:`fl_utils.federation.run`. The server's state has the statistics of a new
    model, but for the counters of batches: they count the rounds, by which a run resumed without the clients'
    statistics is known and refused (RuntimeError).
    """

    def __init__(self, build: Callable[[], nn.Module], rule: Rule = fedavg_rule, train: Train = train_locally):
        trainer = Trainer(build)
        entries = mask(trainer.model, trainer.layout.names)
        parts = list(zip(trainer.layout.names, trainer.layout.sizes, entries, strict=True))
        self.where = torch.cat([torch.full((n,), own) for _, n, own in parts]).nonzero().squeeze(1)
        self.counters = torch.cat([torch.full((n,), name.endswith(BUFFERS[2])) for name, n, own in parts if own])
        self.new = trainer.vector[self.where].clone()  # what a client begins with
        self.rule, self.inner, self.rounds = rule, train, 0
        self.of: dict[int, torch.Tensor] = {}  # client -> its statistics

    def train(self, trainer: Trainer, client: Client, local: LocalTraining, seed: int) -> float:
        """What ``train`` does, from this client's own statistics on; they stay here."""
        where = self.where.to(trainer.device)
        done = int(trainer.vector[where][self.counters.to(trainer.device)].max())
        if done != self.rounds:
            raise RuntimeError(f"round {done} begins, but statistics were kept for {self.rounds} rounds: not resumable")
        trainer.vector[where] = self.of.get(client.id, self.new).to(trainer.device)
        loss = self.inner(trainer, client, local, seed)
        self.of[client.id] = trainer.vector[where].detach().cpu()
        return loss

    def combine(self, old: torch.Tensor, updates: Iterable[tuple[torch.Tensor, int]]) -> torch.Tensor:
        """What ``rule`` gives for everything else."""
        vector = self.rule(old, updates)
        self.rounds += 1
        vector[self.where] = torch.where(self.counters, float(self.rounds), self.new).to(vector.device)
        return vector

    def evaluate(self, trainer: Trainer, x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
        """The mean over the clients that have trained, and their lowest and highest accuracy."""
        where, server = self.where.to(trainer.device), trainer.vector.clone()
        scores = []
        for own in self.of.values():
            trainer.vector[where] = own.to(trainer.device)
            scores.append(trainer.evaluate(x, y))
        trainer.vector.copy_(server)
        right, losses = [one.accuracy for one in scores], [one.loss for one in scores]
        means = {"accuracy": sum(right) / len(right), "loss": sum(losses) / len(losses)}
        return {**means, "lowest": min(right), "highest": max(right)}

    def __reduce__(self):
        raise TypeError("statistics that clients keep are kept in one process: run the federation without an executor")
