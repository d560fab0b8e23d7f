"""Asynchronous federated averaging, weighted by staleness (Xie, Koyejo and Gupta 2019, "Asynchronous federated
optimization", algorithm 1).

    Every client trains without pause: it takes the server's state, trains, sends its own back, takes the next.
    With each update that arrives the server moves: w <- (1 - a) w + a w_new, a = alpha * (staleness + 1) ** -exponent,
    where staleness is how many updates the server has taken since it sent out the state this one began from.

Who arrives when is decided in virtual time, from each client's seconds per training. So a result is a function of the
seed, the data and those seconds, and not of the executor or the machine.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from fl_utils import wire
from fl_utils.aggregation import polyak
from fl_utils.cohorts import Client, FederationError
from fl_utils.federation import Train, begin, check, train_locally
from fl_utils.schedules.trainings import Failed, Trainings
from fl_utils.training import LocalTraining, Trainer


@dataclass
class Update:
    """One arrival at the server, at virtual ``time``. ``weight``: its share a of the new state, 0 where ``left_out``
    says why it did not count. ``bytes_down``: of the state that it began from."""

    number: int
    client: int
    time: float
    staleness: int
    weight: float
    train_loss: float
    bytes_down: int
    bytes_up: int
    seconds: float
    left_out: str = ""
    evaluation: dict | None = None


@dataclass
class AsynchronousResult:
    """The state ``vector`` (float32 [d]) after the last update, and every :class:`Update`.

    unanswered: bytes of states sent to clients that were still training when the run ended.
    """

    vector: torch.Tensor
    updates: list[Update] = field(default_factory=list)
    unanswered: int = 0

    @property
    def bytes_down(self) -> int:
        """Bytes from the server to its clients, those of states whose training came too late included."""
        return sum(update.bytes_down for update in self.updates) + self.unanswered

    @property
    def bytes_up(self) -> int:
        """Bytes from the clients to the server."""
        return sum(update.bytes_up for update in self.updates)

    @property
    def evaluations(self) -> list[dict]:
        """What ``evaluate`` returned, in order of the updates that asked for it."""
        return [update.evaluation for update in self.updates if update.evaluation is not None]


def staleness_weight(alpha: float, staleness: int, exponent: float) -> float:
    """The share of an update: ``alpha * (staleness + 1) ** -exponent`` (Xie et al. 2019, section 5.2, polynomial).

    >>> staleness_weight(0.6, 3, 0.5)
    0.3
    """
    return alpha * (staleness + 1) ** -exponent


def client_seconds(clients: Sequence[Client], seed: int, spread: float = 0.25) -> dict[int, float]:
    """Seconds that each client needs for one training, such that 1 is what an average one needs.

    In proportion to its examples, times a factor of its own: lognormal, with the standard deviation ``spread`` of its
    logarithm, drawn by (seed, client id).
    """
    mean = sum(map(len, clients)) / len(clients)
    factor = {c.id: math.exp(spread * np.random.default_rng([seed, c.id]).standard_normal()) for c in clients}
    return {client.id: len(client) / mean * factor[client.id] for client in clients}


def timetable(seconds: Mapping[int, float], updates: int) -> list[tuple[float, int]]:
    """The first ``updates`` arrivals (virtual time, client) where each client trains without pause from time 0.

    Of several that arrive at the same time, the first of ``seconds`` comes first.
    """
    coming = [(duration, order, id, 1) for order, (id, duration) in enumerate(seconds.items())]
    heapq.heapify(coming)
    arrivals = []
    while len(arrivals) < updates:
        now, order, id, count = coming[0]
        arrivals.append((now, id))
        heapq.heapreplace(coming, ((count + 1) * seconds[id], order, id, count + 1))
    return arrivals


def asynchronous(
    build: Callable[[], nn.Module],
    clients: Sequence[Client],
    *,
    updates: int,
    local: LocalTraining,
    alpha: float = 0.6,
    staleness_exponent: float = 0.5,
    durations: Mapping[int, float] | None = None,
    seed: int = 0,
    initial: torch.Tensor | None = None,
    train: Train = train_locally,
    executor: Executor | None = None,
    device: str = "cpu",
    on_failure: str = "stop",
    client_timeout: float | None = None,
    evaluate: Callable[[Trainer], dict] | None = None,
    evaluate_every: int = 1,
    progress: Callable[[Update], None] | None = None,
) -> AsynchronousResult:
    """Train one model over ``clients``, each update taken as it comes, until ``updates`` of them have arrived.

    alpha: the share of an update that is not stale, in (0, 1]. staleness_exponent: how fast it falls, from 0 up; 0
    weighs all alike. durations: {client id: seconds per training}, positive, in any unit; :func:`client_seconds` by
    default. A client's n-th training has the seed of (``seed``, n, its id). As in the paper the number of examples
    does not enter the weight: a client with few of them is quicker, and so heard more often. (The paper's proximal
    term in the clients' loss is left out: they train as everywhere here.)
    executor: clients under way at the same virtual time really train at the same time; up to one state per client is
    kept. build, initial, train, device, evaluate, progress: as in :func:`fl_utils.federation.run`, per update where
    that says round. on_failure: a client that raises, drops out, is silent for ``client_timeout`` seconds or returns
    values that are not finite stops the run ("stop", FederationError), or its update is left out and it begins anew
    from the present state ("skip"); as many failures in a row as there are clients always stop it.
    No checkpoints are kept.

    Raises ValueError for bad input before anything is trained.
    """
    check(clients, [local.local_epochs], 1.0, on_failure, evaluate_every)
    _check_own(updates, alpha, staleness_exponent)
    seconds = client_seconds(clients, seed) if durations is None else _checked(durations, clients)
    by_id = {client.id: client for client in clients}
    trainer, vector = begin(build, device, seed, initial)

    result = AsynchronousResult(vector)
    arrivals = timetable({id: seconds[id] for id in by_id}, updates)
    left = {id: sum(who == id for _, who in arrivals) for id in by_id}  # arrivals to come
    begun, version = dict.fromkeys(by_id, 0), 0
    sent, taken_at, failures = {}, {}, 0

    with Trainings(build, train, device, seed, trainer, executor, client_timeout) as trainings:

        def send(id: int) -> None:
            """The present state goes to client ``id``; where its training would come too late, it is not run."""
            sent[id] = wire.size(wire.frame(result.vector, kind="state", version=version, client=id))
            taken_at[id] = version
            if left[id]:
                trainings.start(by_id[id], result.vector, local, begun[id])
                begun[id] += 1

        for id in by_id:
            send(id)
        started = time.perf_counter()
        for number, (now, id) in enumerate(arrivals):
            staleness, loss, up, reason = version - taken_at[id], math.nan, 0, ""
            weight = staleness_weight(alpha, staleness, staleness_exponent)
            try:
                new, loss = trainings.finish(id)
            except Failed as failure:
                if on_failure == "stop":
                    raise FederationError(f"update {number}: client {id} failed: {failure}") from failure
                weight, reason, failures = 0.0, str(failure), failures + 1
                if failures == len(by_id):
                    raise FederationError(
                        f"update {number}: {failures} failures in a row, the last of client {id}: {failure}"
                    ) from failure
            else:
                header = {"kind": "update", "version": taken_at[id], "client": id, "num_examples": len(by_id[id])}
                up = wire.size(wire.frame(new, **header))
                result.vector = polyak(result.vector, new, 1 - weight)
                version, failures = version + 1, 0
            update = Update(number, id, now, staleness, weight, loss, sent.pop(id), up, 0.0, reason)
            left[id] -= 1
            send(id)
            if evaluate is not None and ((number + 1) % evaluate_every == 0 or number + 1 == updates):
                trainer.vector.copy_(result.vector)
                update.evaluation = evaluate(trainer)
            update.seconds, started = time.perf_counter() - started, time.perf_counter()
            result.updates.append(update)
            if progress is not None:
                progress(update)
    result.unanswered = sum(sent.values())
    return result


def _check_own(updates: int, alpha: float, exponent: float) -> None:
    if not isinstance(updates, int) or updates < 1:
        raise ValueError(f"updates is {updates!r}: want a whole number from 1 up")
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha is {alpha}: the share of a fresh update lies above 0 and at most at 1")
    if not 0 <= exponent < math.inf:
        raise ValueError(f"staleness_exponent is {exponent}: want a finite number from 0 up")


def _checked(durations: Mapping[int, float], clients: Sequence[Client]) -> Mapping[int, float]:
    ids = {client.id for client in clients}
    if not isinstance(durations, Mapping):
        raise ValueError(f"durations is a {type(durations).__name__}: want {{client id: seconds}}")
    if set(durations) != ids:
        raise ValueError(
            f"durations: clients {sorted(ids - set(durations))} have none, {sorted(set(durations) - ids)} are unknown: "
            "want one for each client"
        )
    for id, seconds in durations.items():
        if not 0 < seconds < math.inf:
            raise ValueError(f"durations: client {id} has {seconds}: want a positive, finite number of seconds")
    return durations
