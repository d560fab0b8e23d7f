"""Populations of simulated clients that cost nothing until they are drawn: one data set, and index arrays into it.

A federation asks a population for the clients of a round's cohort, one by one, and for nothing else. So the time and
the memory of a round grow with the cohort; a population of a million is as quick as one of a hundred, and its clients
are drawn as those of a list are: the same ids, the same result to the bit.

    population = Population.of(x, y, partition.iid(len(x), 100, seed=0))       # parts that were made elsewhere
    population = Population.drawn(x, y, clients=1_000_000, per_client=50)      # nothing is stored per client
    federation.run(build, population, client_fraction=1e-5, ...)

A client made here holds nothing between two rounds: training that keeps something at its clients has no place for it.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch

from fl_utils.cohorts import Client
from fl_utils.training import check_examples


class Parts(Protocol):
    """Who holds which examples: the number of clients, and each client's indices (int64 [n], n >= 1) when asked."""

    def __len__(self) -> int: ...

    def __getitem__(self, client: int) -> np.ndarray: ...

    @property
    def highest(self) -> int:
        """No index is above this."""

    @property
    def identity(self) -> list:
        """What a checkpoint tells these parts by (JSON-able, a few values): equal where the parts are."""


class Slices:
    """Parts in one array: client i holds ``indices[offsets[i] : offsets[i + 1]]``.

    indices: whole numbers [total], kept as they are (int32 halves the memory). offsets: whole numbers [clients + 1],
    from 0 up to total. Raises ValueError where there is no client, one without examples, or an index below 0.
    """

    def __init__(self, indices: np.ndarray, offsets: np.ndarray):
        self.indices, self.offsets = np.asarray(indices), np.asarray(offsets)
        for name, array in [("indices", self.indices), ("offsets", self.offsets)]:
            if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
                raise ValueError(f"{name} is {array.dtype} of shape {array.shape}: want one row of whole numbers")
        if len(self.offsets) < 2:
            raise ValueError(f"offsets has {len(self.offsets)} values: want one more than clients, at least 2")
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.indices):
            raise ValueError(
                f"offsets runs from {self.offsets[0]} to {self.offsets[-1]}: "
                f"want 0 to {len(self.indices)}, the number of indices"
            )
        empty = np.flatnonzero(np.diff(self.offsets) < 1)
        if len(empty):
            raise ValueError(f"client {empty[0]} has no examples: every client of a population needs one")
        if self.indices.min() < 0:
            raise ValueError(
                f"client {self.owner(self.indices.argmin())} has the index {self.indices.min()}: want >= 0"
            )

    @classmethod
    def of(cls, parts: Sequence[Sequence[int] | np.ndarray | torch.Tensor]) -> Slices:
        """From one index array per client, as :mod:`fl_utils.data.partition` makes them."""
        if not len(parts):
            raise ValueError("parts is empty: a population needs at least one client")
        arrays = [np.asarray(part) for part in parts]
        for number, part in enumerate(arrays):
            if not part.size:
                raise ValueError(f"client {number} has no examples: every client of a population needs one")
            if part.ndim != 1 or not np.issubdtype(part.dtype, np.integer):
                raise ValueError(f"part {number} is {part.dtype} of shape {part.shape}: want one row of whole numbers")
        small = max(int(part.max()) for part in arrays) <= np.iinfo(np.int32).max
        indices = np.concatenate([part.astype(np.int32 if small else np.int64) for part in arrays])
        return cls(indices, np.cumsum([0, *map(len, arrays)]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, client: int) -> np.ndarray:
        return self.indices[self.offsets[client] : self.offsets[client + 1]].astype(np.int64)

    def owner(self, place: int) -> int:
        """The client whose part holds this place of ``indices``."""
        return int(np.searchsorted(self.offsets, place, side="right")) - 1

    @cached_property
    def highest(self) -> int:
        return int(self.indices.max())

    @cached_property
    def identity(self) -> list:
        """Their check sums: one pass over the array, once."""
        return ["slices", zlib.crc32(self.indices.astype(np.int64)), zlib.crc32(self.offsets.astype(np.int64))]


@dataclass(frozen=True)
class Draws:
    """Parts computed when asked: client i's ``per_client`` examples of ``total`` are a function of (seed, i) alone.

    They are drawn without replacement; two clients may hold the same example, and where clients outnumber the examples
    they must. Raises ValueError where a number is out of range.
    """

    clients: int
    per_client: int
    total: int
    seed: int

    def __post_init__(self) -> None:
        for name, least in [("clients", 1), ("per_client", 1), ("seed", 0)]:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} is {value!r}: want a whole number from {least} up")
        if self.per_client > self.total:
            raise ValueError(f"per_client is {self.per_client}: there are {self.total} examples")

    def __len__(self) -> int:
        return self.clients

    def __getitem__(self, client: int) -> np.ndarray:
        # A spawn key keeps this stream apart from those of the cohorts, which begin with (seed, round).
        random = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(client,)))
        return np.sort(random.choice(self.total, self.per_client, replace=False))

    @property
    def highest(self) -> int:
        return self.total - 1

    @property
    def identity(self) -> list:
        return ["draws", self.clients, self.per_client, self.total, self.seed]


class Population(Sequence[Client]):
    """Clients 0 to K - 1 over one data set: examples ``x`` [N, ...], labels ``y`` [N], and ``parts`` of it.

    ``population[i]`` gathers client i's examples and is done with them: nothing of a client is kept. Everything that
    takes a list of clients takes a population, but only :func:`fl_utils.federation.run` is known not to walk it.
    Raises ValueError where ``x`` and ``y`` differ in length or an index lies beyond them.
    """

    def __init__(self, x: torch.Tensor, y: torch.Tensor, parts: Parts):
        check_examples(x, y)
        if parts.highest >= len(y):
            raise ValueError(f"parts holds the index {parts.highest}: there are {len(y)} examples, 0 to {len(y) - 1}")
        self.x, self.y, self.parts = x, y, parts

    @classmethod
    def of(cls, x: torch.Tensor, y: torch.Tensor, parts: Sequence[Sequence[int] | np.ndarray]) -> Population:
        """One client per index array of ``parts``; an example may belong to several, or to none."""
        return cls(x, y, Slices.of(parts))

    @classmethod
    def drawn(cls, x: torch.Tensor, y: torch.Tensor, *, clients: int, per_client: int, seed: int = 0) -> Population:
        """``clients`` of ``per_client`` examples each, see :class:`Draws`."""
        return cls(x, y, Draws(clients, per_client, len(y), seed))

    @property
    def ids(self) -> range:
        """The clients' ids, without making them."""
        return range(len(self.parts))

    @cached_property
    def identity(self) -> list:
        """What a checkpoint tells the population by (JSON-able, a few values): data and parts, not client by client."""
        return [len(self), *(zlib.crc32(_bytes(tensor)) for tensor in (self.x, self.y)), self.parts.identity]

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, id: int | slice) -> Client | list[Client]:
        """The client with this id (-1: the last one), or a list of several. Raises IndexError beyond the last."""
        if isinstance(id, slice):
            return [self._make(one) for one in self.ids[id]]
        return self._make(self.ids[id])

    def _make(self, id: int) -> Client:
        chosen = torch.from_numpy(self.parts[id])
        return Client(id, self.x[chosen], self.y[chosen])


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.numpy()).view(np.uint8).reshape(-1)
