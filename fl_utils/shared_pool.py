"""A local pool whose workers read clients' examples and the round's state from shared memory, and write updates there.

What goes through the pool's pipes is a few names per client. A client's examples are put down once for all workers and
rounds, and taken away with the client; the state is put down once a round; an update is made in a buffer of its
worker's, which serves again, while still in that core's cache, once the update was used. Each worker has one model.
Rounds go by way of :mod:`fl_utils.errands`; other calls are the executor's own.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import OrderedDict, deque
from concurrent.futures import CancelledError, ProcessPoolExecutor
from pathlib import Path

import torch
import torch.multiprocessing

from fl_utils import errands
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
        self._free: dict[int, deque] = {}  # length -> buffers for states that nobody uses
        self._slots: dict[str, Slot] = {}
        context = torch.multiprocessing.get_context("spawn")
        self.errands = errands.Errands(context, workers, self.submit)
        super().__init__(
            workers, mp_context=context, initializer=begin, initargs=(self.shelf.folders, self.errands.ends)
        )

    def __exit__(self, kind, error, trace) -> None:
        if kind is not None and not issubclass(kind, Exception):  # Ctrl-C: what is under way is of no use to anybody
            for process in list((self._processes or {}).values()):
                process.kill()
        self.shutdown(cancel_futures=kind is not None)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.errands.close()
        super().shutdown(wait, cancel_futures=cancel_futures)
        if wait:  # otherwise workers are still reading; the folders go when the pool does
            self.shelf.close()

    def begin_round(self, task, vector: torch.Tensor) -> Round:
        """Put down ``task`` and ``vector`` (float32 [d]) for clients to come. Raises what pickling ``task`` raises."""
        while self.errands.listen(0):  # of rounds before: their buffers serve again
            pass
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

    def slot(self, path: str, length: int) -> Slot:
        """The slot (of float32 [length]) that a worker made at ``path``."""
        if path not in self._slots:
            self._slots[path] = Slot(path, floats(path, length + 1))
        return self._slots[path]


def versions_of(client) -> tuple[int, ...]:
    """Numbers that change where a client's tensors are written to in place."""
    return tuple(0 if tensor.is_inference() else tensor._version for tensor in (client.x, client.y))


def _drop(pool: weakref.ref, path: Path) -> None:
    if (own := pool()) is not None:
        own._drop(path)


class Slot:
    """A worker's buffer for updates: ``values`` (float32 [d + 1]) at ``path``, of which the last says if it is taken.

    Its worker takes it, and the owner gives it back: it is never both of them who write.
    """

    def __init__(self, path: str, values: torch.Tensor):
        self.path, self.vector, self._taken = path, values[:-1], values[-1:].numpy()

    @property
    def taken(self) -> bool:
        """Whether an update is in the making or in use here."""
        return bool(self._taken[0])

    @taken.setter
    def taken(self, taken: bool) -> None:
        self._taken[0] = taken


class Round:
    """One state and one task, at the workers; a context manager."""

    def __init__(self, pool: SharedPool, task, vector: torch.Tensor):
        parts = pack(task)
        self.pool, self._open, self._over, self.lock = pool, 0, False, threading.Lock()
        self._task = pool.shelf.put(parts)
        self.state = pool.buffer(len(vector))
        self.state[1].copy_(vector)
        pool.moved["state"] += 4 * len(vector) + sum(len(part) for part in parts)

    def __enter__(self) -> Round:
        return self

    def __exit__(self, *_) -> None:
        self._over = True
        self._task.unlink(missing_ok=True)  # a worker that comes to a client now leaves it alone
        self._settle(0)

    def submit(self, client) -> Update:
        """Let a worker train ``client``."""
        update, data = Update(self, client), self.pool.examples(client)
        self._settle(1)
        try:
            names = map(str, (self._task, self.state[0], data))
            self.pool.errands.send(update.arrive, train, *names, len(self.state[1]), self.pool._taken_away)
        except BaseException:
            update.arrive(None, None)
            update.release()
            raise
        return update

    def _settle(self, change: int) -> None:
        """The state serves again once the round is over and no worker, not even a late one, may still look at it."""
        with self.lock:
            self._open += change
            if self._over and not self._open:
                self.pool.give_back(self.state)


class Update:
    """The update to come from one client. What its worker may look at is kept as long as it may."""

    def __init__(self, round: Round, client):
        # A client that nobody else holds (of a Population) has its examples here until the worker is done.
        self._round, self._client, self._slot, self._arrived, self._released = round, client, None, False, False

    def arrive(self, answer: tuple[str, float] | None, error: BaseException | None) -> None:
        """The worker is done."""
        self._error, self._client = error, None
        if answer is not None:
            path, self._loss = answer
            try:
                self._slot = self._round.pool.slot(path, len(self._round.state[1]))
            except Exception as unreadable:
                self._error = unreadable
        self._round._settle(-1)
        with self._round.lock:
            self._arrived, done = True, self._released
        if done:
            self._give_back()

    def result(self, timeout: float | None = None) -> tuple[torch.Tensor, float]:
        """The vector (float32 [d], good until :meth:`release`) and the loss. Raises as ``Future.result`` does."""
        pool, until = self._round.pool, time.monotonic() + (float("inf") if timeout is None else timeout)
        while not self._arrived:
            if (left := until - time.monotonic()) < 0:
                raise TimeoutError
            pool.errands.listen(left)
        if self._error is not None:
            raise self._error
        pool.moved["updates"] += 4 * len(self._slot.vector)
        return self._slot.vector, self._loss

    def cancel(self) -> None:
        """It is not wanted any more: once its round is over, no worker begins with it."""

    def release(self) -> None:
        """Its vector was used. A worker that is late with it still has the buffer to itself, until it is done."""
        with self._round.lock:
            done, self._released = self._arrived and not self._released, True
        if done:
            self._give_back()

    def _give_back(self) -> None:
        if self._slot is not None:
            self._slot.taken = False


# --- in a worker


def begin(folders: list[Path], ends: tuple) -> None:
    """How a worker of the pool begins."""
    global _shelf
    begin_worker(folders)
    errands.begin(ends)
    _shelf = Shelf(folders)


_shelf: Shelf
_task: tuple[str, object] = ("", None)
_clients: OrderedDict[str, object] = OrderedDict()
_states: dict[str, torch.Tensor] = {}
_slots: dict[int, list[Slot]] = {}  # length -> this worker's own
_taken_away = 0


def train(task: str, state: str, data: str, length: int, taken_away: int) -> tuple[str, float]:
    """One client's part of one round: the path of the slot that its new state is in, and the loss."""
    global _task, _taken_away
    if taken_away != _taken_away:  # let go of what the owner took away, so that its memory is free
        for path in [path for path in _clients if not Path(path).exists()]:
            del _clients[path]
        _taken_away = taken_away
    if not Path(task).exists():
        raise CancelledError
    if _task[0] != task:
        _task = task, unpack(contents(task))
    if data not in _clients:
        _clients[data] = unpack(contents(data))
        while len(_clients) > MAPPED:
            _clients.popitem(last=False)
    _clients.move_to_end(data)
    if state not in _states:
        _states[state] = floats(state, length)
    slot = _take(length)
    try:
        _, loss = _task[1](_states[state], _clients[data], out=slot.vector)
    except BaseException:
        slot.taken = False
        raise
    return slot.path, loss


def _take(length: int) -> Slot:
    """The first slot for float32 [length] that is free: so they are few, and each serves again soon."""
    slots = _slots.setdefault(length, [])
    slot = next((slot for slot in slots if not slot.taken), None)
    if slot is None:
        path, values = _shelf.vector(length + 1)
        slots.append(slot := Slot(str(path), values))
    slot.taken = True
    return slot
