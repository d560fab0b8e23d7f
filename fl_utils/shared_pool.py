"""A local pool whose workers read clients' examples and the round's state from shared memory, and write updates there.

What goes through the pool's pipes is a few names per client. A client's examples are put down once for all workers and
rounds, and taken away with the client; the state is put down once a round; an update comes back in a buffer that serves
again once it was used. Each worker has one model.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict, deque
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import torch
import torch.multiprocessing

from fl_utils.packing import pack, unpack
from fl_utils.shelf import Shelf, begin_worker, contents, floats

MAPPED = 4096  # clients whose examples a worker keeps in view


class SharedPool(ProcessPoolExecutor):
    """``workers`` processes with one torch thread each. ``moved`` counts bytes: of data, of states, of updates."""

    lends = True  # an update's vector is good until the next one is asked for

    def __init__(self, workers: int):
        self.shelf = Shelf()
        self.moved = {"data": 0, "state": 0, "updates": 0}
        self._data: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # client -> (versions, path)
        self._taken_away = 0
        self._free: dict[int, deque] = {}  # length -> buffers that nobody uses
        super().__init__(
            workers,
            mp_context=torch.multiprocessing.get_context("spawn"),
            initializer=begin_worker,
            initargs=(self.shelf.folders,),
        )

    def __exit__(self, kind, error, trace) -> None:
        if kind is not None and not issubclass(kind, Exception):  # Ctrl-C: what is under way is of no use to anybody
            for process in list((self._processes or {}).values()):
                process.kill()
        self.shutdown(cancel_futures=kind is not None)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait, cancel_futures=cancel_futures)
        if wait:  # otherwise workers are still reading; the folders go when the pool does
            self.shelf.close()

    def begin_round(self, task, vector: torch.Tensor) -> Round:
        """Put down ``task`` and ``vector`` (float32 [d]) for clients to come. Raises what pickling ``task`` raises."""
        return Round(self, task, vector)

    def examples(self, client) -> Path:
        """Where ``client`` lies for the workers. It is put down once, and anew where its tensors were written to."""
        versions = versions_of(client)
        known = self._data.get(client)
        if known is not None and known[0] == versions:
            return known[1]
        parts = pack(client)
        path = self.shelf.put(parts)
        self.moved["data"] += sum(len(part) for part in parts)
        self._data[client] = versions, path
        if known is not None:
            self._drop(known[1])
        weakref.finalize(client, _drop, weakref.ref(self), path).atexit = False
        return path

    def _drop(self, path: Path) -> None:
        self._taken_away += 1
        path.unlink(missing_ok=True)

    def buffer(self, length: int) -> tuple[Path, torch.Tensor]:
        """A shared vector (float32 [length]) that nobody else uses until it is given back."""
        try:
            return self._free.setdefault(length, deque()).pop()
        except IndexError:
            return self.shelf.vector(length)

    def give_back(self, buffer: tuple[Path, torch.Tensor]) -> None:
        """``buffer`` may serve again."""
        self._free[len(buffer[1])].append(buffer)


def versions_of(client) -> tuple[int, ...]:
    """Numbers that change where a client's tensors are written to in place."""
    return tuple(0 if tensor.is_inference() else tensor._version for tensor in (client.x, client.y))


def _drop(pool: weakref.ref, path: Path) -> None:
    if (own := pool()) is not None:
        own._drop(path)


class Round:
    """One state and one task, at the workers; a context manager."""

    def __init__(self, pool: SharedPool, task, vector: torch.Tensor):
        parts = pack(task)
        self._pool, self._length, self._open, self._over = pool, len(vector), 0, False
        self._lock = threading.Lock()
        self._task = pool.shelf.put(parts)
        self._state = pool.buffer(self._length)
        self._state[1].copy_(vector)
        pool.moved["state"] += 4 * self._length + sum(len(part) for part in parts)

    def __enter__(self) -> Round:
        return self

    def __exit__(self, *_) -> None:
        self._over = True
        self._task.unlink(missing_ok=True)
        self._settle(0)

    def submit(self, client) -> Update:
        """Let a worker train ``client``."""
        data, slot = self._pool.examples(client), self._pool.buffer(self._length)
        names = (self._task, self._state[0], self._length, data, slot[0], self._pool._taken_away)
        try:
            future = self._pool.submit(train, *names)
        except BaseException:
            self._pool.give_back(slot)
            raise
        self._settle(1)
        # A client that nobody else holds (of a Population) has its examples here until the worker is done.
        future.add_done_callback(lambda _, client=client: self._settle(-1))
        return Update(self._pool, future, slot)

    def _settle(self, change: int) -> None:
        """The state serves again once the round is over and no worker, not even a late one, may still look at it."""
        with self._lock:
            self._open += change
            if self._over and not self._open and self._state is not None:
                self._pool.give_back(self._state)
                self._state = None


class Update:
    """The update to come from one client."""

    def __init__(self, pool: SharedPool, future: Future, slot: tuple[Path, torch.Tensor]):
        self._pool, self._future, self._slot, self._released = pool, future, slot, False

    def result(self, timeout: float | None = None) -> tuple[torch.Tensor, float]:
        """The vector (float32 [d], good until :meth:`release`) and the loss. Raises as ``Future.result`` does."""
        loss = self._future.result(timeout)
        self._pool.moved["updates"] += 4 * len(self._slot[1])
        return self._slot[1], loss

    def cancel(self) -> None:
        """It is not wanted any more."""
        self._future.cancel()

    def release(self) -> None:
        """Its vector was used. A worker that is late with it still has the buffer to itself, until it is done."""
        if not self._released:
            self._released = True
            self._future.add_done_callback(lambda _: self._pool.give_back(self._slot))


# --- in a worker

_task: tuple[Path | None, object] = (None, None)
_clients: OrderedDict[Path, object] = OrderedDict()
_vectors: dict[Path, torch.Tensor] = {}
_taken_away = 0


def train(task: Path, state: Path, length: int, data: Path, slot: Path, taken_away: int) -> float:
    """One client's part of one round: its new state goes into ``slot``; the loss."""
    global _task, _taken_away
    if taken_away != _taken_away:  # let go of what the owner took away, so that its memory is free
        for path in [path for path in _clients if not path.exists()]:
            del _clients[path]
        _taken_away = taken_away
    if _task[0] != task:
        _task = task, unpack(contents(task))
    if data not in _clients:
        _clients[data] = unpack(contents(data))
        while len(_clients) > MAPPED:
            _clients.popitem(last=False)
    _clients.move_to_end(data)
    for path in (state, slot):
        if path not in _vectors:
            _vectors[path] = floats(path, length)
    _, loss = _task[1](_vectors[state], _clients[data], out=_vectors[slot])
    return loss
