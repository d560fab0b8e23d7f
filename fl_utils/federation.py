"""Federated averaging: clients, cohorts, rounds, checkpoints (McMahan et al. 2017, algorithm 1).

    1. The server draws a cohort of max(1, round(C * K)) of the K clients, by (seed, round).
    2. It sends each the state vector; each trains for E local epochs on its own examples and sends its vector back.
    3. The server combines the vectors, in the cohort's order, by a rule (FedAvg unless another is given).

A result depends on the seed and the data alone: not on the executor, nor on a kill and a resume in between.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fl_utils import checkpoints, probe
from fl_utils.aggregation import fedavg_stream, polyak
from fl_utils.cohorts import Client, ClientDropped, FederationError, Round, client_task, draw, finite, updates
from fl_utils.populations import Population
from fl_utils.terraces import Terraces
from fl_utils.training import LocalTraining, Trainer, check_examples, drawing
from fl_utils.training_choice import Choice, unsupported

__all__ = [
    "Client",
    "ClientDropped",
    "FederationError",
    "Result",
    "Round",
    "fedavg_rule",
    "intervals",
    "polyak_rule",
    "run",
]

Rule = Callable[[torch.Tensor, Iterable[tuple[torch.Tensor, int]]], torch.Tensor]
Train = Callable[[Trainer, Client, LocalTraining, int], float]


@dataclass
class Result:
    """The state ``vector`` (float32 [d]) after the last round, and every :class:`Round`.

    training: how clients trained in this process ("how": "sequential" or "together"), why, and, where a probe decided,
    CPU seconds of a client's step each way ("sequential_s", "together_s").
    """

    vector: torch.Tensor
    rounds: list[Round] = field(default_factory=list)
    training: dict = field(default_factory=dict)

    @property
    def bytes_down(self) -> int:
        """Bytes from the server to its clients, all rounds."""
        return sum(r.bytes_down for r in self.rounds)

    @property
    def bytes_up(self) -> int:
        """Bytes from the clients to the server, all rounds."""
        return sum(r.bytes_up for r in self.rounds)

    @property
    def evaluations(self) -> list[dict]:
        """What ``evaluate`` returned, in order of the rounds that asked for it."""
        return [r.evaluation for r in self.rounds if r.evaluation is not None]


def fedavg_rule(old: torch.Tensor, updates: Iterable[tuple[torch.Tensor, int]]) -> torch.Tensor:
    """The average of the clients' vectors, weighted by their examples."""
    return fedavg_stream(updates)


fedavg_rule.streams = True  # takes each vector before it asks for the next, so that one buffer serves them all


def polyak_rule(old: torch.Tensor, updates: Iterable[tuple[torch.Tensor, int]], k: float = 0.5) -> torch.Tensor:
    """The server's vector folded with each client's in turn: ``k * old + (1 - k) * new``. The order matters."""
    result = old.clone()
    for vector, _ in updates:
        polyak(result, vector, k, out=result)
    return result


polyak_rule.streams = True


def intervals(epochs: int, average_interval: int) -> list[int]:
    """Local epochs of each round when ``epochs`` are trained with an average every ``average_interval`` of them.

    >>> intervals(10, 4)
    [4, 4, 2]
    """
    if epochs < 1 or average_interval < 1:
        raise ValueError(f"epochs is {epochs}, average_interval {average_interval}: want whole numbers from 1 up")
    whole, rest = divmod(epochs, average_interval)
    return [average_interval] * whole + [rest] * bool(rest)


def train_locally(
    trainer: Trainer, client: Client, local: LocalTraining, seed: int, start: torch.Tensor | None = None
) -> float:
    """The default of ``train``: local SGD in place; the mean loss of the last local epoch.

    start (float32 [d]): the state to begin with instead of the trainer's.
    """
    return trainer.train(client.x, client.y, local, seed, start)[-1]


train_locally.starts = True  # takes the state to begin with, which need not be copied to the trainer before


def run(
    build: Callable[[], nn.Module],
    clients: Sequence[Client],
    *,
    rounds: int | Sequence[int],
    local: LocalTraining | Terraces,
    client_fraction: float = 1.0,
    seed: int = 0,
    initial: torch.Tensor | None = None,
    rule: Rule = fedavg_rule,
    train: Train = train_locally,
    executor: Executor | None = None,
    together: str = "never",
    device: str = "cpu",
    on_failure: str = "stop",
    client_timeout: float | None = None,
    evaluate: Callable[[Trainer], dict] | None = None,
    evaluate_every: int = 1,
    checkpoint: Path | str | None = None,
    progress: Callable[[Round], None] | None = None,
) -> Result:
    """Train one model over ``clients`` by federated averaging.

    clients: a list, or a :class:`fl_utils.populations.Population`, of which only the cohorts' clients are ever made.
    build: makes the model (its architecture; a picklable callable where an executor has other processes).
    rounds: how many, or the local epochs of each (:func:`intervals`); ``local.local_epochs`` holds for a number.
    local: how a client trains in every round, or :class:`Terraces`, which lower the rate when the accuracy stalls.
    client_fraction: C, in (0, 1]. initial: the first state vector (float32 [d]); by default ``build()``'s own under
    ``torch.manual_seed(seed)``. rule: combines the vectors. train: what a client does; returns its loss.
    together: "always" trains the clients of a cohort as one batch (:mod:`fl_utils.together`: small models take about
    half the time, to the same result but for rounding), "auto" does where a probe in the first round finds it faster.
    on_failure: a client that raises, drops out, is silent for ``client_timeout`` seconds (with an executor) or returns
    a value that is not finite is named, and either stops the run ("stop", FederationError) or is left out of the
    round ("skip"); a round in which nobody is left always stops.
    evaluate: called with a trainer that holds the new state, every ``evaluate_every`` rounds and after the last.
    checkpoint: a file written whole after every round; where it exists, the run goes on from it, and its result is
    that of an unbroken one. A file of another run (other data, seed, model or settings) raises ValueError.
    progress: called after each round.

    Raises ValueError for bad input before anything is trained.
    """
    terraces = local if isinstance(local, Terraces) else Terraces(local, lowerings=0)
    schedule = [terraces.local.local_epochs] * rounds if isinstance(rounds, int) else list(rounds)
    check(clients, schedule, client_fraction, on_failure, evaluate_every)
    if terraces.lowerings and terraces.metric != "train_loss" and evaluate is None:
        raise ValueError(
            f"local lowers its rate by {terraces.metric!r}, but evaluate is None: nothing would measure it"
        )
    by_id = clients if isinstance(clients, Population) else {client.id: client for client in clients}
    ids = clients.ids if isinstance(clients, Population) else list(by_id)
    trainer, vector = begin(build, device, seed, initial)

    identity = _identity(trainer, vector, clients, terraces, client_fraction, seed, rule, train) if checkpoint else {}
    result = Result(vector)
    if checkpoint and Path(checkpoint).exists():
        result.vector, past = checkpoints.load(checkpoint, identity, schedule)
        result.rounds = [Round(**{**r, "left_out": {int(k): v for k, v in r["left_out"].items()}}) for r in past]

    why_not = unsupported(trainer, terraces.local, train is not train_locally, executor)
    choice = Choice(together, why_not, len(schedule), result.rounds[-1].together if result.rounds else None)
    shortened = None if executor else probe.rounds()
    for number in range(len(result.rounds), len(schedule)):
        started = time.perf_counter()
        this_round = Round(number, draw(ids, client_fraction, seed, number), {}, 0.0, 0, 0, 0.0)
        evaluates = evaluate is not None and ((number + 1) % evaluate_every == 0 or number + 1 == len(schedule))
        if shortened is not None:
            examples = schedule[number] * sum(len(by_id[id]) for id in this_round.cohort)
            if shortened.skip(this_round, result.rounds, examples, evaluates):
                result.rounds.append(this_round)
                continue
        settings = terraces.after(result.rounds).for_epochs(schedule[number])
        task = partial(client_task, build, device, train, settings, seed, number)
        inline = choice.inline(trainer, result.vector, by_id, this_round.cohort, settings, seed, number)
        this_round.together = choice.cohort is not None
        arrivals = updates(
            task,
            trainer,
            result.vector,
            by_id,
            this_round,
            executor,
            on_failure,
            client_timeout,
            reuse=getattr(rule, "streams", False),
            inline=inline,
        )
        new = rule(result.vector, arrivals)
        _check_new(new, result.vector, this_round)
        result.vector = new
        if evaluates:
            trainer.vector.copy_(new)
            this_round.evaluation = evaluate(trainer)
        this_round.seconds = time.perf_counter() - started
        result.rounds.append(this_round)
        if checkpoint:
            checkpoints.save(checkpoint, result.vector, identity, schedule, [asdict(r) for r in result.rounds])
        if progress is not None:
            progress(this_round)
    result.training = choice.made
    if len(by_id) > 1:
        probe.sent(result.bytes_up, result.bytes_down)
    return result


def begin(
    build: Callable[[], nn.Module], device: str, seed: int, initial: torch.Tensor | None = None
) -> tuple[Trainer, torch.Tensor]:
    """A trainer, built under ``seed``, and the first state vector (float32 [d]): ``initial`` or the model's own."""
    with drawing():
        torch.manual_seed(seed)
        trainer = Trainer(build, device)
    vector = trainer.vector.detach().cpu().clone()
    if initial is not None:
        trainer.layout.check(initial)
        vector.copy_(initial)
    return trainer, vector


def check(clients: Sequence[Client], schedule: list[int], fraction: float, on_failure: str, every: int) -> None:
    """Raise ValueError where clients or settings of a federation do not fit, naming which. schedule: local epochs."""
    if not clients:
        raise ValueError("clients is empty: a federation needs at least one")
    # A population's clients are in order by how it is made: none of them is asked for here.
    listed = () if isinstance(clients, Population) else clients
    ids = [client.id for client in listed]
    if len(set(ids)) < len(ids):
        twice = sorted({id for id in ids if ids.count(id) > 1})
        raise ValueError(f"client ids {twice} occur more than once: each client needs its own")
    if min(ids, default=0) < 0:
        raise ValueError(f"client id {min(ids)}: want whole numbers from 0 up")
    for client in listed:
        check_examples(client.x, client.y, f"client {client.id}")
    if not schedule or min(schedule) < 1:
        raise ValueError(f"rounds gives the local epochs {schedule}: want at least one round of at least one epoch")
    if not 0 < fraction <= 1:
        raise ValueError(f"client_fraction is {fraction}: C lies above 0 and at most at 1")
    if on_failure not in ("stop", "skip"):
        raise ValueError(f"on_failure is {on_failure!r}: want 'stop' or 'skip'")
    if every < 1:
        raise ValueError(f"evaluate_every is {every}: want a whole number from 1 up")


def _check_new(new: torch.Tensor, old: torch.Tensor, this_round: Round) -> None:
    if new.shape != old.shape or not finite(new):
        raise FederationError(
            f"round {this_round.number}: the rule's result is not a finite vector of {len(old)} values"
        )


def _identity(trainer, vector, clients, terraces, fraction, seed, rule, train) -> dict:
    """What a checkpoint must agree in with the run that goes on from it."""

    def crc(tensor: torch.Tensor) -> int:
        return zlib.crc32(np.ascontiguousarray(tensor.numpy()).view(np.uint8).reshape(-1))

    def name(function) -> str:
        function, extra = (function.func, function.keywords) if isinstance(function, partial) else (function, {})
        return f"{getattr(function, '__qualname__', type(function).__qualname__)}{extra or ''}"

    local = terraces.local.for_epochs(1)
    settings = asdict(replace(terraces, local=local))
    settings["local"]["augment"] = name(local.augment) if local.augment else ""
    return {
        "seed": seed,
        "model": [list(trainer.layout.names), [list(shape) for shape in trainer.layout.shapes]],
        "initial state": crc(vector),
        "clients": clients.identity
        if isinstance(clients, Population)
        else [[client.id, len(client), crc(client.x), crc(client.y)] for client in clients],
        "local training": settings,
        "client_fraction": fraction,
        "rule": name(rule),
        "train": name(train),
    }
