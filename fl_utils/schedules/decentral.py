"""Decentralised federated averaging by gossip (Lian et al. 2017, "Can decentralized algorithms outperform centralized
algorithms?", D-PSGD; with local epochs in place of its single steps).

There is no server and no common model. Every client has a state of its own; in each round it trains locally, sends the
result to its neighbours in a graph, and averages what it holds with what they send.

The weights of that average are Metropolis-Hastings weights with the clients' examples n as the target: between
neighbours i and j, P_ij = n_j / max(S_i, S_j), where S_i adds up the examples of i and of its neighbours, and P_ii is
what is left of 1. Then n_i P_ij = n_j P_ji, so averaging never moves the example-weighted mean of all states, and what
the clients agree on in the end is FedAvg's mean. Equal numbers of examples give the usual doubly stochastic Metropolis
weights, a complete graph gives FedAvg itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import torch
from torch import nn

from fl_utils import wire
from fl_utils.aggregation import fedavg
from fl_utils.cohorts import Client, FederationError
from fl_utils.federation import Train, begin, check, train_locally
from fl_utils.schedules.trainings import Failed, Trainings
from fl_utils.training import LocalTraining, Trainer

Graph = str | Sequence[tuple[int, int]]


@dataclass
class GossipRound:
    """What one round did. ``bytes_sent``: over all edges, both ways. ``consensus``: how far the clients' states are
    from their mean after it, as the root of the example-weighted mean square. ``left_out``: clients whose training did
    not count, with the reason."""

    number: int
    left_out: dict[int, str]
    train_loss: float
    bytes_sent: int
    consensus: float
    seconds: float
    evaluation: dict | None = None


@dataclass
class GossipResult:
    """Every client's state by id (float32 [d]), their example-weighted mean ``vector``, and every :class:`GossipRound`.

    bytes_by_edge: bytes sent over each edge (lower id, higher id), both ways, all rounds.
    """

    vectors: dict[int, torch.Tensor]
    vector: torch.Tensor
    rounds: list[GossipRound] = field(default_factory=list)
    bytes_by_edge: dict[tuple[int, int], int] = field(default_factory=dict)

    @property
    def bytes_up(self) -> int:
        """Bytes that clients sent."""
        return sum(r.bytes_sent for r in self.rounds)

    @property
    def bytes_down(self) -> int:
        """Bytes that clients received: those that clients sent."""
        return self.bytes_up

    @property
    def evaluations(self) -> list[dict]:
        """What ``evaluate`` returned, in order of the rounds that asked for it."""
        return [r.evaluation for r in self.rounds if r.evaluation is not None]


def neighbourhoods(graph: Graph, ids: Iterable[int]) -> dict[int, list[int]]:
    """Each client's neighbours, in the order of ``ids``.

    graph: "ring" (in the order of ``ids``), "complete", or edges as pairs of client ids, each in one direction or both.
    Raises ValueError for fewer than two clients, an edge that is no pair, names an unknown client or joins a client
    with itself, and where not every client can be reached from every other.
    """
    ids = list(ids)
    if len(ids) < 2:
        raise ValueError(f"gossip among clients {ids}: want at least two")
    if graph == "ring":
        edges = list(zip(ids, [*ids[1:], ids[0]], strict=True))
    elif graph == "complete":
        edges = [(a, b) for i, a in enumerate(ids) for b in ids[i + 1 :]]
    elif isinstance(graph, str):
        raise ValueError(f"graph is {graph!r}: want 'ring', 'complete' or a list of pairs of client ids")
    else:
        edges = [_edge(edge, ids) for edge in graph]
    joined: dict[int, set[int]] = {id: set() for id in ids}
    for a, b in edges:
        joined[a].add(b)
        joined[b].add(a)
    reached, ahead = {ids[0]}, [ids[0]]
    while ahead:
        new = joined[ahead.pop()] - reached
        reached |= new
        ahead += new
    if len(reached) < len(ids):
        apart = sorted(set(ids) - reached)
        raise ValueError(f"graph is not connected: no path leads from client {ids[0]} to clients {apart}")
    return {id: [other for other in ids if other in joined[id]] for id in ids}


def _edge(edge: object, ids: Sequence[int]) -> tuple[int, int]:
    try:
        a, b = edge
    except (TypeError, ValueError):
        raise ValueError(f"graph: the edge {edge!r} is no pair of client ids") from None
    for end in (a, b):
        if end not in ids:
            raise ValueError(f"graph: the edge {edge!r} names client {end!r}, which does not exist: there are {ids}")
    if a == b:
        raise ValueError(f"graph: the edge {edge!r} joins client {a} with itself: each keeps its own share anyway")
    return a, b


def mixing(neighbours: Mapping[int, Sequence[int]], examples: Mapping[int, int]) -> dict[int, dict[int, float]]:
    """The weight P_ij that each client i gives its neighbours j and itself; each row adds up to 1 (module's docstring).

    >>> mixing({0: [1], 1: [0]}, {0: 30, 1: 10})
    {0: {0: 0.75, 1: 0.25}, 1: {0: 0.75, 1: 0.25}}
    """
    around = {id: examples[id] + sum(examples[other] for other in others) for id, others in neighbours.items()}
    rows = {}
    for id, others in neighbours.items():
        row = {other: examples[other] / max(around[id], around[other]) for other in others}
        row[id] = 1 - math.fsum(row.values())
        rows[id] = {other: row[other] for other in neighbours if other in row}
    return rows


def gossip(
    build: Callable[[], nn.Module],
    clients: Sequence[Client],
    graph: Graph = "ring",
    *,
    rounds: int | Sequence[int],
    local: LocalTraining,
    seed: int = 0,
    initial: torch.Tensor | None = None,
    train: Train = train_locally,
    executor: Executor | None = None,
    device: str = "cpu",
    on_failure: str = "stop",
    client_timeout: float | None = None,
    evaluate: Callable[[Trainer], dict] | None = None,
    evaluate_every: int = 1,
    progress: Callable[[GossipRound], None] | None = None,
) -> GossipResult:
    """Train one state per client; in each round every client trains, then averages with its neighbours in ``graph``.

    graph: as :func:`neighbourhoods` takes it. All clients begin from the same state. evaluate: called with a trainer
    that holds the example-weighted mean of all states, which is for watching alone: no client ever has it. Two states
    per client are kept in memory.
    build, rounds, local, initial, train, executor, device, evaluate_every, progress: as in
    :func:`fl_utils.federation.run`. on_failure: a client that raises, drops out, is silent for ``client_timeout``
    seconds or returns values that are not finite stops the run ("stop", FederationError), or neither sends nor
    averages in this round and keeps the state it had, while its neighbours keep its share on themselves ("skip"); a
    round in which nobody is left always stops. No checkpoints are kept.

    Raises ValueError for bad input before anything is trained.
    """
    schedule = [local.local_epochs] * rounds if isinstance(rounds, int) else list(rounds)
    check(clients, schedule, 1.0, on_failure, evaluate_every)
    by_id = {client.id: client for client in clients}
    neighbours = neighbourhoods(graph, by_id)
    examples = {id: len(client) for id, client in by_id.items()}
    weights = mixing(neighbours, examples)
    trainer, vector = begin(build, device, seed, initial)

    result = GossipResult(dict.fromkeys(by_id, vector), vector)
    with Trainings(build, train, device, seed, trainer, executor, client_timeout) as trainings:
        for number, epochs in enumerate(schedule):
            started = time.perf_counter()
            for id, client in by_id.items():
                trainings.start(client, result.vectors[id], local.for_epochs(epochs), number)
            this_round = GossipRound(number, {}, 0.0, 0, 0.0, 0.0)
            trained = _trained(trainings, examples, this_round, on_failure)
            _count(result, this_round, trained, neighbours, examples)
            result.vectors = {id: _average(id, trained, weights[id], result.vectors[id]) for id in by_id}
            result.vector = fedavg(result.vectors.values(), examples.values())
            squares = [n * (result.vectors[id] - result.vector).square().sum().item() for id, n in examples.items()]
            this_round.consensus = math.sqrt(math.fsum(squares) / sum(examples.values()))
            if evaluate is not None and ((number + 1) % evaluate_every == 0 or number + 1 == len(schedule)):
                trainer.vector.copy_(result.vector)
                this_round.evaluation = evaluate(trainer)
            this_round.seconds = time.perf_counter() - started
            result.rounds.append(this_round)
            if progress is not None:
                progress(this_round)
    return result


def _trained(
    trainings: Trainings, examples: Mapping[int, int], this_round: GossipRound, on_failure: str
) -> dict[int, torch.Tensor]:
    """The states of the clients whose training succeeded; fills in who is left out and the loss."""
    trained, losses = {}, 0.0
    for id, count in examples.items():
        try:
            trained[id], loss = trainings.finish(id)
        except Failed as failure:
            if on_failure == "stop":
                raise FederationError(f"round {this_round.number}: client {id} failed: {failure}") from failure
            this_round.left_out[id] = str(failure)
        else:
            losses += loss * count
    if not trained:
        reasons = "; ".join(f"client {id}: {reason}" for id, reason in this_round.left_out.items())
        raise FederationError(f"round {this_round.number}: no client is left ({reasons})")
    this_round.train_loss = losses / sum(examples[id] for id in trained)
    return trained


def _count(result: GossipResult, this_round: GossipRound, trained, neighbours, examples) -> None:
    """Add the bytes of what each client sends its neighbours: its state, with all that the weights are made of."""
    for id, state in trained.items():
        around = examples[id] + sum(examples[other] for other in neighbours[id])
        header = {"kind": "state", "round": this_round.number, "client": id, "num_examples": examples[id]}
        size = wire.size(wire.frame(state, **header, around=around))
        for other in neighbours[id]:
            if other in trained:
                edge = (min(id, other), max(id, other))
                result.bytes_by_edge[edge] = result.bytes_by_edge.get(edge, 0) + size
                this_round.bytes_sent += size


def _average(
    id: int, trained: Mapping[int, torch.Tensor], row: Mapping[int, float], before: torch.Tensor
) -> torch.Tensor:
    """What client ``id`` holds after the exchange; ``before`` where it has nothing to exchange."""
    if id not in trained:
        return before
    absent = math.fsum(weight for other, weight in row.items() if other not in trained)
    mixed = torch.zeros_like(before)
    for other, weight in row.items():
        if other in trained:
            mixed.add_(trained[other], alpha=weight + absent * (other == id))
    return mixed
