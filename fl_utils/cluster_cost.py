"""What a round of federated averaging takes on W workers: a model with five numbers, fitted to measured rounds.

    seconds = down + max(workers, server) + last
    down    = W' * bytes / bandwidth                          the state, once to each worker in use, W' = min(W, n)
    workers = ceil(n / W) * (compute + latency)               n clients in waves
    server  = n * (bytes / bandwidth + aggregate)             updates come in, and are added up, while workers train
    last    = bytes / bandwidth + aggregate                   but for the last

Clients of one size, workers of one speed, one link at the server that all share; examples are at the workers already.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Cost:
    """What the model needs. Times in seconds, of one client; ``bytes`` of the state, as large as an update.

    compute: a client's training, on a core of its own. aggregate: the server's time for an update. latency: of handing
    a client to a worker. bandwidth: of the server's link, bytes per second. Raises ValueError on a value out of range.
    """

    compute: float
    aggregate: float
    bytes: int
    latency: float = 0.0
    bandwidth: float = math.inf

    def __post_init__(self) -> None:
        for name in ("compute", "bandwidth"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: want a number above 0")
        for name in ("aggregate", "bytes", "latency"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}: want a finite number from 0 up")

    @property
    def transfer(self) -> float:
        """Seconds that one state takes on the server's link."""
        return self.bytes / self.bandwidth

    def parts(self, workers: int, clients: int) -> dict[str, float]:
        """Seconds of a round of ``clients`` on ``workers``, by part: down, workers, server, last."""
        for name, value in (("workers", workers), ("clients", clients)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}: want a whole number from 1 up")
        return {
            "down": min(workers, clients) * self.transfer,
            "workers": math.ceil(clients / workers) * (self.compute + self.latency),
            "server": clients * (self.transfer + self.aggregate),
            "last": self.transfer + self.aggregate,
        }

    def seconds(self, workers: int, clients: int) -> float:
        """Seconds of a round."""
        parts = self.parts(workers, clients)
        return parts["down"] + max(parts["workers"], parts["server"]) + parts["last"]

    def efficiency(self, workers: int, clients: int) -> float:
        """Of the clients that ``workers`` times one process without an executor would train: the share trained here."""
        return clients * (self.compute + self.aggregate) / (workers * self.seconds(workers, clients))

    def limit(self, workers: int, clients: int) -> str:
        """The part that takes longest: "down", "workers" or "server"."""
        parts = self.parts(workers, clients)
        return max(("down", "workers", "server"), key=parts.__getitem__)


@dataclass(frozen=True)
class Measured:
    """One measured round: ``seconds`` for ``clients`` on ``workers``; what is known of its ``cost``."""

    workers: int
    clients: int
    seconds: float
    cost: Cost


def fit(points: Sequence[Measured]) -> tuple[float, float]:
    """Latency and bandwidth for which the model comes closest to ``points``, by relative error, none below 0.

    Their costs' own latency and bandwidth have no part in it. Compute has to be what a round waits for, as it is on
    few workers. Raises ValueError where there are not two points of different kinds.
    """
    import numpy as np
    from scipy.optimize import nnls

    rows, rest = [], []
    for point in points:
        plain = replace(point.cost, latency=0.0, bandwidth=math.inf)
        waves = math.ceil(point.clients / point.workers)
        states = min(point.workers, point.clients) + 1
        rows.append([waves / point.seconds, states * plain.bytes / 1e9 / point.seconds])
        rest.append(1 - plain.seconds(point.workers, point.clients) / point.seconds)
    if np.linalg.matrix_rank(np.array(rows)) < 2:
        raise ValueError(
            f"{len(points)} measured rounds do not tell latency from bandwidth: want other numbers of workers"
        )
    (latency, per_gigabyte), _ = nnls(np.array(rows), np.array(rest))
    return float(latency), math.inf if per_gigabyte == 0 else 1e9 / float(per_gigabyte)


def errors(points: Sequence[Measured], latency: float, bandwidth: float) -> list[float]:
    """Of each point, by how much the model with these two is off, relative to what was measured."""
    return [
        replace(point.cost, latency=latency, bandwidth=bandwidth).seconds(point.workers, point.clients) / point.seconds
        - 1
        for point in points
    ]
