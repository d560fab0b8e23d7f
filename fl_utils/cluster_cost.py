"""What a round of federated averaging takes on W workers: a model fitted to rounds in which nobody trains.

    seconds = down + max(workers, server, cores) + last
    down    = latency + W' * bytes / bandwidth        the state, once to each worker in use, W' = min(W, n)
    workers = ceil(n / W) * (compute + latency)       n clients in waves
    server  = n * (bytes / bandwidth + serving)       updates come in, and are added up, while workers train
    cores   = n * (compute + handling) / C            where server and workers share the C cores of one machine
    last    = latency + bytes / bandwidth + serving   the last update's way

Clients of one size, workers of one speed, one link at the server that all share; examples are at the workers already.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Cost:
    """What the model needs. Times in seconds, of one client; ``bytes`` of the state, as large as an update.

    compute: a client's training, on a core of its own. aggregate: all else that it takes in one process. serving: the
    server's CPU time for its messages and its update. handling: that, and the workers' CPU time for messages.
    latency: of a message, and of handing a client to a worker. bandwidth: of the server's link, bytes per second.
    cores: that all processes share, where they are on one machine. Raises ValueError on a value out of range.
    """

    compute: float
    aggregate: float
    bytes: int
    serving: float = 0.0
    handling: float = 0.0
    latency: float = 0.0
    bandwidth: float = math.inf
    cores: float = math.inf

    def __post_init__(self) -> None:
        for name in ("bandwidth", "cores"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: want a number above 0")
        for name in ("compute", "aggregate", "bytes", "serving", "handling", "latency"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}: want a finite number from 0 up")

    @property
    def transfer(self) -> float:
        """Seconds that one state takes on the server's link."""
        return self.bytes / self.bandwidth

    def parts(self, workers: int, clients: int) -> dict[str, float]:
        """Seconds of a round of ``clients`` on ``workers``, by part: down, workers, server, cores, last."""
        for name, value in (("workers", workers), ("clients", clients)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}: want a whole number from 1 up")
        return {
            "down": self.latency + min(workers, clients) * self.transfer,
            "workers": math.ceil(clients / workers) * (self.compute + self.latency),
            "server": clients * (self.transfer + self.serving),
            "cores": clients * (self.compute + self.handling) / self.cores,
            "last": self.latency + self.transfer + self.serving,
        }

    def seconds(self, workers: int, clients: int) -> float:
        """Seconds of a round."""
        parts = self.parts(workers, clients)
        return parts["down"] + max(parts["workers"], parts["server"], parts["cores"]) + parts["last"]

    def efficiency(self, workers: int, clients: int) -> float:
        """Of the clients that ``workers`` times one process without an executor would train: the share trained here."""
        return clients * (self.compute + self.aggregate) / (workers * self.seconds(workers, clients))

    def limit(self, workers: int, clients: int) -> str:
        """The part that takes longest: "down", "workers", "server" or "cores"."""
        parts = self.parts(workers, clients)
        return max(("down", "workers", "server", "cores"), key=parts.__getitem__)


@dataclass(frozen=True)
class Measured:
    """One measured round: ``seconds`` for ``clients`` on ``workers``; what is known of its ``cost``."""

    workers: int
    clients: int
    seconds: float
    cost: Cost


def fit(points: Sequence[Measured]) -> tuple[float, float]:
    """Latency and bandwidth for which the model comes closest to ``points``, by relative error, none below 0.

    Their costs' own latency and bandwidth have no part in it. Raises ValueError where there are not two points of
    different kinds.
    """
    from scipy.optimize import least_squares

    if len({(point.workers, point.clients, point.cost.bytes) for point in points}) < 2:
        raise ValueError(
            f"{len(points)} measured rounds do not tell latency from bandwidth: want other numbers of workers"
        )

    def bandwidth(per_gigabyte: float) -> float:
        return 1e9 / per_gigabyte if per_gigabyte > 0 else math.inf

    def off(each) -> list[float]:
        return errors(points, each[0], bandwidth(each[1]))

    # Milliseconds, and seconds per gigabyte: a maximum has corners, so from several sides.
    starts = [(latency, per_gigabyte) for latency in (1e-4, 1e-2) for per_gigabyte in (1e-1, 1e1)]
    found = [
        least_squares(off, start, bounds=(0, math.inf), x_scale=(1e-3, 1.0), xtol=1e-12, ftol=1e-12, gtol=1e-12)
        for start in starts
    ]
    # The search comes close to 0, never to it: where 0 is better, it is meant.
    latency, per_gigabyte = map(float, min(found, key=lambda each: each.cost).x)
    ends = [(0.0, 0.0), (0.0, per_gigabyte), (latency, 0.0), (latency, per_gigabyte)]
    latency, per_gigabyte = min(ends, key=lambda each: sum(error**2 for error in off(each)))
    return latency, bandwidth(per_gigabyte)


def errors(points: Sequence[Measured], latency: float, bandwidth: float) -> list[float]:
    """Of each point, by how much the model with these two is off, relative to what was measured."""
    return [
        replace(point.cost, latency=latency, bandwidth=bandwidth).seconds(point.workers, point.clients) / point.seconds
        - 1
        for point in points
    ]
