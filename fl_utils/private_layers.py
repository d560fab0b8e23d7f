"""Federated averaging in which some layers never leave their client: a shared backbone, private heads.

Parties that know different people cannot average their last layers: row 3 is another person at each of them. They
average everything else, and each keeps its own head (FedPer, Arivazhagan et al. 2019; here for face verification, which
needs the features below the head alone).

    private = PrivateLayers(build, clients, layers=("classifier",))
    result = federation.run(build, clients, rounds=10, local=local, evaluate=verify, **private.settings)
    with private.of_client(trainer, 2):    # the shared layers of ``trainer`` with this client's own
        trainer.evaluate(x, y)

All clients have one architecture, so their heads have one size, that of the largest. A client's labels are 0 .. n - 1;
the rows from n up are nobody's, and stay out of its loss (their logits count as minus infinity).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from fl_utils.cohorts import Client
from fl_utils.federation import Rule, Train, fedavg_rule, train_locally
from fl_utils.training import LocalTraining, Trainer, check_examples


class PrivateLayers:
    """Every client's own ``layers`` (names of modules or of single tensors), kept in this process.

    Neither other processes nor a resumed run have them: both are refused. What a client sends has the server's numbers
    in their place: ``numbers`` of the vector's float32 values travel for nothing, and count as bytes. rule, train: what
    is done to the shared layers, and on a client. Raises ValueError on a name that the model lacks, a model with
    nothing left to share, and labels that are not 0 .. rows - 1.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        clients: Sequence[Client],
        layers: Sequence[str] = ("classifier",),
        rule: Rule = fedavg_rule,
        train: Train = train_locally,
    ):
        trainer = Trainer(build)
        entries = trainer.layout.names
        if isinstance(layers, str) or not layers:
            raise ValueError(f"layers is {layers!r}: want a list of names, such as ('classifier',)")
        if missing := [layer for layer in layers if not any(_within(name, layer) for name in entries)]:
            there = ", ".join(name for name, _ in trainer.model.named_children())
            raise ValueError(f"layers: {type(trainer.model).__name__} has no {missing[0]!r}; it has {there}")
        own = [any(_within(name, layer) for layer in layers) for name in entries]
        if all(own[: trainer.layout.trainable]):
            raise ValueError(f"layers: {', '.join(layers)} are the whole model: nothing would be averaged")
        self.where = torch.repeat_interleave(torch.tensor(own), torch.tensor(trainer.layout.sizes)).nonzero().squeeze(1)
        self.numbers = len(self.where)
        self.classes = {client.id: _classes(trainer, client) for client in clients}
        self.rule, self.inner, self.rounds = rule, train, 0
        self.new: torch.Tensor | None = None  # what a client begins with: the first state's own
        self.of: dict[int, torch.Tensor] = {}  # client -> its layers

    @property
    def settings(self) -> dict:
        """``rule`` and ``train`` of :func:`fl_utils.federation.run`."""
        return {"rule": self.combine, "train": self.train}

    def train(self, trainer: Trainer, client: Client, local: LocalTraining, seed: int) -> float:
        """What ``train`` does, with this client's own layers and rows alone; the layers stay here."""
        if client.id not in self.classes:
            raise ValueError(f"client {client.id} is not one of {sorted(self.classes)} that the layers are private to")
        where = self.where.to(trainer.device)
        self._begin(sent := trainer.vector[where])
        trainer.vector[where] = self.of.get(client.id, self.new).to(trainer.device)
        with self._own_rows(trainer, client.id, local.loss):
            loss = self.inner(trainer, client, local, seed)
        trained = trainer.vector[where].detach().cpu()
        if torch.isfinite(trained).all():
            self.of[client.id] = trained
        trainer.vector[where] = sent
        return loss

    def _begin(self, sent: torch.Tensor) -> None:
        """The server's numbers in the place of the layers: the first state's, then minus the rounds that are done."""
        done = -int(sent[0]) if (sent == sent[0]).all() and sent[0] < 0 and sent[0] == sent[0].round() else 0
        if done != self.rounds:
            raise RuntimeError(
                f"a run goes on after {done} rounds, but private layers were kept for {self.rounds}: a run cannot be "
                "resumed without them, and each run needs a new PrivateLayers"
            )
        if done == 0:
            self.new = sent.cpu()

    @contextmanager
    def _own_rows(self, trainer: Trainer, id: int, loss: str = "cross_entropy") -> Iterator[None]:
        own = self.classes[id]

        def mask(module: nn.Module, inputs: tuple, outputs: torch.Tensor) -> torch.Tensor:
            if outputs.shape[-1] == own:
                return outputs
            if loss != "cross_entropy":
                raise ValueError(
                    f"client {id} has {own} identities of {outputs.shape[-1]}: rows are masked out of 'cross_entropy' "
                    f"alone, not of {loss!r}; give all clients as many identities"
                )
            return outputs.masked_fill(torch.arange(outputs.shape[-1], device=outputs.device) >= own, float("-inf"))

        handle = trainer.model.register_forward_hook(mask)
        try:
            yield
        finally:
            handle.remove()

    def combine(self, old: torch.Tensor, updates: Iterable[tuple[torch.Tensor, int]]) -> torch.Tensor:
        """What ``rule`` gives for the shared layers; the private ones' place says how many rounds are done."""
        vector = self.rule(old, updates)
        self.rounds += 1
        vector[self.where.to(vector.device)] = -float(self.rounds)
        return vector

    @contextmanager
    def of_client(self, trainer: Trainer, id: int) -> Iterator[Trainer]:
        """``trainer`` with client ``id``'s own layers for as long as this lasts. ValueError where it has none yet."""
        if id not in self.of:
            raise ValueError(f"client {id} has no layers of its own yet; {sorted(self.of)} have")
        where = self.where.to(trainer.device)
        before, trainer.vector[where] = trainer.vector[where], self.of[id].to(trainer.device)
        try:
            with self._own_rows(trainer, id):
                yield trainer
        finally:
            trainer.vector[where] = before

    def __reduce__(self):
        raise TypeError("layers that clients keep are kept in one process: run the federation without an executor")


def _within(name: str, layer: str) -> bool:
    return name == layer or name.startswith(f"{layer}.")


def _classes(trainer: Trainer, client: Client) -> int:
    check_examples(client.x, client.y, f"client {client.id}")
    rows = trainer.outputs(client.x[:1]).shape[-1]
    if not 0 <= int(client.y.min()) <= int(client.y.max()) < rows:
        raise ValueError(
            f"client {client.id} has labels {int(client.y.min())} .. {int(client.y.max())}, the model {rows} outputs: "
            "want each client's own people numbered from 0 up, and a head for the most of them"
        )
    return int(client.y.max()) + 1
