"""A cohort's clients trained together: their states are the rows of one matrix, and a step advances all of them.

FedAvg trains many small models for a few steps each, so that most of the time goes into everything but arithmetic. Here
the model runs under ``torch.func.vmap`` over clients, each with weights and a minibatch of its own (the minibatches of
the sequential path, in its order); the step is recorded once (:mod:`fl_utils.recording`) and replayed. Results are the
sequential path's up to rounding, not to the bit, so nobody gets them unasked (:mod:`fl_utils.training_choice`).

Clients that follow one another in the cohort and have as many examples as each other train at once, as many as fit in
:data:`CHUNK_BYTES` of state: more would only leave the processor's cache. Any other client trains as a group of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache

import torch
from torch.func import functional_call, vmap

from fl_utils.cohorts import Client
from fl_utils.recording import CannotRecord, record
from fl_utils.training import LOSSES, LocalTraining, Trainer, _batches, _stepper, client_seed

CHUNK_BYTES, CHUNK_CLIENTS = 4 << 20, 32
GATHERED = 1 << 24  # bytes of minibatches gathered at a time
KEPT = 64  # recorded steps, one for each number of clients and shape of minibatch
TOLERANCE = 1e-3  # of a step's length: a recording that is further from the sequential step is refused


class Cohort:
    """Trains clients of one federation together. ``trainer`` gives the model; its state is left alone."""

    def __init__(self, trainer: Trainer, local: LocalTraining):
        self.trainer, self.layout, self.loss = trainer, trainer.layout, LOSSES[local.loss]
        self.most = max(1, min(CHUNK_CLIENTS, CHUNK_BYTES // (4 * self.layout.numel)))
        self.state = torch.empty(self.most, self.layout.numel)
        self.fuses = not (local.momentum or local.clip_norm)  # an update is one multiple of the weight and the gradient
        self.recorded: dict[tuple, tuple[Callable, tuple[int, ...]]] = {}

    def train(
        self, clients: list[Client], vector: torch.Tensor, local: LocalTraining, seed: int, number: int
    ) -> list[tuple[torch.Tensor, float]]:
        """Each client's new state (float32 [d], good until the next call) and loss, trained from ``vector``.

        clients: at most :attr:`most`, with equally many examples of one shape. Raises CannotRecord.
        """
        state = self.state[: len(clients)].copy_(vector)
        self.trainer.model.train()
        size = local.batch_size or len(clients[0])
        generators = [torch.Generator().manual_seed(client_seed(seed, number, client.id)) for client in clients]
        stepper = self._stepper(state, local)
        for _ in range(local.local_epochs):
            total = torch.zeros(len(clients))
            orders = [
                _batches(client.x, client.y, size, generator, most=GATHERED // len(clients))
                for client, generator in zip(clients, generators, strict=True)
            ]
            for batches in zip(*orders, strict=True):
                x, y = (torch.stack(part) for part in zip(*batches, strict=True))
                total += self._step(self._recording(state, x, y, local), state, x, y, local, stepper) * y.shape[1]
        return list(zip(state, (total / len(clients[0])).tolist(), strict=True))

    def _views(self, state: torch.Tensor, trainable: bool) -> dict[str, torch.Tensor]:
        """Parameters, trainable or frozen ones, of the rows of ``state`` [clients, d]: name to view [clients, ...]."""
        parts = zip(state.split(self.layout.sizes, 1), self.layout.shapes, strict=True)
        views = [part.unflatten(1, shape) if shape else part.squeeze(1) for part, shape in parts]
        wanted = {n for n, parameter in self.trainer.model.named_parameters() if parameter.requires_grad == trainable}
        return {name: view for name, view in zip(self.layout.names, views, strict=True) if name in wanted}

    def _stepper(self, state: torch.Tensor, local: LocalTraining) -> Callable:
        """(which parameters) -> a function that takes their gradients and changes them: SGD without decay and clip."""
        views, plain = list(self._views(state, True).values()), replace(local, weight_decay=0.0, clip_norm=0.0)

        @cache
        def stepper(left: tuple[int, ...]) -> tuple[list[torch.Tensor], Callable]:
            chosen = [views[i] for i in left]
            return chosen, _stepper(chosen, plain)

        return stepper

    @torch.no_grad()
    def _step(self, recording, state, x, y, local: LocalTraining, stepper: Callable) -> torch.Tensor:
        """One step of all rows of ``state`` on minibatches ``x`` [clients, B, ...], ``y``; their losses [clients]."""
        replay, left = recording
        rate, decay = local.learning_rate, local.weight_decay
        loss, *gradients = replay(x, y, alpha=-rate, beta=1 - rate * decay)
        if left:
            chosen, apply = stepper(left)
            if local.clip_norm:
                gradients = _clipped(gradients, local.clip_norm)
            apply(torch._foreach_add(gradients, chosen, alpha=decay) if decay else gradients)
        return loss

    def _recording(self, state, x, y, local: LocalTraining) -> tuple[Callable, tuple[int, ...]]:
        key = (x.shape, x.dtype, y.shape, y.dtype)
        if key not in self.recorded:
            if len(self.recorded) == KEPT:
                del self.recorded[next(iter(self.recorded))]
            made = self._record(state, x, y)
            self._check(made, state, x.flip(1), y, local)
            self.recorded[key] = made
        return self.recorded[key]

    def _record(self, state, x, y) -> tuple[Callable, tuple[int, ...]]:
        trainable, frozen = self._views(state, True), self._views(state, False)

        def step(
            views: list[torch.Tensor], x: torch.Tensor, y: torch.Tensor
        ) -> tuple[torch.Tensor, list[torch.Tensor]]:
            leaves = [view.detach().requires_grad_() for view in views]
            losses = vmap(self._loss)({**dict(zip(trainable, leaves, strict=True)), **frozen}, x, y)
            return losses.detach(), list(torch.autograd.grad(losses.sum(), leaves, materialize_grads=True))

        try:
            return record(step, list(trainable.values()), [x, y], self.fuses)
        except CannotRecord:
            raise
        except Exception as error:  # whatever vmap refuses
            reason = (str(error).strip() or type(error).__name__).split("\n")[0]
            if "random operation" in reason:
                reason = "it draws random numbers (dropout?)"
            raise CannotRecord(f"{type(self.trainer.model).__name__} does not run under vmap: {reason}") from error

    def _loss(self, parameters: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.loss(functional_call(self.trainer.model, parameters, (x,)), y)

    def _check(self, made, state, x, y, local: LocalTraining) -> None:
        """Compare a recorded step with the first and the last client's own, on other data than it was recorded with."""
        before = state.clone()
        self._step(made, state, x, y, local, self._stepper(state, local))
        for row in {0, len(state) - 1}:
            own = before[row : row + 1].clone()
            parameters = {name: view[0].requires_grad_() for name, view in self._views(own, True).items()}
            loss = self._loss({**parameters, **{n: v[0] for n, v in self._views(own, False).items()}}, x[row], y[row])
            leaves = list(parameters.values())
            _stepper(leaves, local)(torch.autograd.grad(loss, leaves, materialize_grads=True))
            own = own.detach()[0]
            apart, moved = (own - state[row]).norm(), (own - before[row]).norm()
            if not apart <= TOLERANCE * moved + 1e-6 * own.norm():
                raise CannotRecord(
                    f"a recorded step is {apart:.1g} from {type(self.trainer.model).__name__}'s own of {moved:.1g}: "
                    "what the model does seems to depend on more than weights and minibatch"
                )
        state.copy_(before)


def _clipped(gradients: list[torch.Tensor], longest: float) -> list[torch.Tensor]:
    """``gradients`` [clients, ...] each, scaled so that no client's is longer than ``longest``."""
    norm = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
    scale = torch.clamp(longest / (norm + 1e-6), max=1.0)
    return [gradient * scale.view(-1, *[1] * (gradient.ndim - 1)) for gradient in gradients]


def groups(clients: Iterable[Client], most: int) -> Iterator[list[Client]]:
    """``clients`` in their order, those together that follow one another and have the same shapes; ``most`` at most."""
    group: list[Client] = []
    for client in clients:
        if group and (len(group) == most or _shapes(client) != _shapes(group[0])):
            yield group
            group = []
        group.append(client)
    if group:
        yield group


def _shapes(client: Client) -> tuple:
    return client.x.shape, client.x.dtype, client.y.shape, client.y.dtype
