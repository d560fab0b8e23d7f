"""A Dask cluster whose workers keep clients' examples and get a round's state once, as one buffer.

The state is a task of the cluster that holds it: workers fetch it from each other, and where all that had it died the
scheduler has it still. A client's examples are kept by a worker's process once it had them. A worker that has not, new
or started again, answers so, and the client is sent anew, with its examples, which are a task like the state. So a
worker that dies costs time and nothing else: its clients train elsewhere, from the same state by the same seed.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
import warnings
import weakref
from collections import Counter, OrderedDict
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from fl_utils.packing import pack, unpack
from fl_utils.shared_pool import versions_of

KEPT = 2 << 30  # bytes of clients' examples that one worker process keeps at most


class DaskCluster(Executor):
    """The cluster of the ``distributed.Client`` given. ``moved`` counts bytes that leave and reach this process."""

    def __init__(self, client):
        self._client = client
        self._plain = client.get_executor(pure=False)
        self._data: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # client -> Examples
        self._name, self._count, self._workers = uuid.uuid4().hex, 0, set()
        self._threads: dict[str, int] = {}  # of each worker, as of the last look at _max_workers
        self._under_way: Counter[str] = Counter()
        self._lock = threading.Lock()
        _here.add(self._name)
        self.moved = {"data": 0, "state": 0, "updates": 0}

    @property
    def _max_workers(self) -> int:
        """Tasks that the cluster runs at once now; one where it has no worker yet, which may still come."""
        with _lost(self._client):
            self._threads = self._client.nthreads()
        return max(1, sum(self._threads.values()))

    def submit(self, task, /, *arguments, **named) -> Future:
        """Run ``task`` on the cluster. Its arguments travel with it."""
        return self._plain.submit(task, *arguments, **named)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the workers forget the examples; what they computed is theirs no longer."""
        from distributed import fire_and_forget

        self._data.clear()
        if self._client.status == "running":
            for worker in self._workers:
                fire_and_forget(self._client.submit(forget, self._name, workers=[worker], pure=False, priority=1))
        self._plain.shutdown(wait)

    def __exit__(self, kind, error, trace) -> None:
        if kind is not None:  # what is under way is of no use to anybody
            self._plain.shutdown(wait=False)
        super().__exit__(kind, error, trace)

    def begin_round(self, task, vector: torch.Tensor) -> Round:
        """Hand ``task`` and ``vector`` (float32 [d]) to the cluster. Raises what pickling ``task`` raises."""
        return Round(self, self.hold("state", (task, vector)))

    def hold(self, kind: str, value):
        """A Dask future of ``value`` packed, in the cluster's memory, and in the scheduler's for a worker that dies."""
        packed = np.frombuffer(b"".join(pack(value)), np.uint8)  # an array: Dask sends bytes by way of a copy or two
        self.moved[kind] += packed.nbytes
        with warnings.catch_warnings(), _lost(self._client):
            warnings.filterwarnings("ignore", "Sending large graph")  # it is what is wanted here
            return self._client.submit(_hold, packed, key=f"fl-utils-{kind}-{uuid.uuid4().hex}")

    def examples(self, client) -> Examples:
        """``client`` on the cluster, put there once, and anew where its tensors were written to."""
        versions = versions_of(client)
        known = self._data.get(client)
        if known is None or known.versions != versions:
            self._count += 1
            known = Examples(versions, f"{self._name}-{self._count}", self.hold("data", client))
            self._data[client] = known
        return known

    def call(self, worker: str, *arguments) -> Future:
        """:func:`train` on ``worker``, or on another one where it is gone."""
        where = {"workers": [worker], "allow_other_workers": True} if worker else {}
        with _lost(self._client):
            return self._plain.submit(train, *arguments, **where)

    def place(self, kept_by: set[str]) -> str:
        """The worker with the least to do, of several one that has the examples; "" where none is known."""
        with self._lock:
            workers = [
                (self._under_way[name] / threads, name not in kept_by, name)
                for name, threads in self._threads.items()
                if threads
            ]
            worker = min(workers)[-1] if workers else ""
            self._under_way[worker] += 1
        return worker

    def leave(self, worker: str) -> None:
        """What was placed at ``worker`` is over."""
        with self._lock:
            self._under_way[worker] -= 1


@dataclass
class Examples:
    """A client's, on a cluster: what its tensors' ``versions`` were, the ``key`` by which workers keep it, the Dask
    future of its ``data``, and addresses of workers that had it (``kept_by``)."""

    versions: tuple[int, ...]
    key: str
    data: object
    kept_by: set[str] = field(default_factory=set)


class Round:
    """One state and one task, at the cluster; a context manager."""

    def __init__(self, cluster: DaskCluster, state):
        self._cluster, self._state = cluster, state

    def __enter__(self) -> Round:
        return self

    def __exit__(self, *_) -> None:
        self._state = None  # the cluster lets go of it once the last task that needs it is over

    def submit(self, client) -> Future:
        """Let a worker train ``client``: the future of its vector (float32 [d]) and its loss."""
        examples = self._cluster.examples(client)
        worker = self._cluster.place(examples.kept_by)
        reply = Future()
        reply.add_done_callback(lambda _: self._cluster.leave(worker))
        call = partial(self._cluster.call, worker, self._state, examples.key)
        self._ask(reply, call, examples, with_data=worker not in examples.kept_by)
        return reply

    def _ask(self, reply: Future, call, examples: Examples, with_data: bool) -> None:
        inner = call(examples.data if with_data else None)
        reply.add_done_callback(lambda _: inner.cancel() if reply.cancelled() else None)
        inner.add_done_callback(lambda _: self._answer(reply, inner, call, examples))

    def _answer(self, reply: Future, inner: Future, call, examples: Examples) -> None:
        if reply.cancelled():
            return
        try:
            new, loss, worker = inner.result()
            self._cluster._workers.add(worker)
            if new is None:
                examples.kept_by.discard(worker)
                self._ask(reply, call, examples, with_data=True)
                return
            examples.kept_by.add(worker)
            self._cluster.moved["updates"] += new.nbytes
            outcome = partial(reply.set_result, (torch.from_numpy(new if new.flags.writeable else new.copy()), loss))
        except CancelledError:
            outcome = partial(reply.set_exception, BrokenExecutor("the Dask scheduler is gone"))
        except Exception as error:
            if _misread(error):
                self._ask(reply, call, examples, with_data=True)
                return
            outcome = partial(reply.set_exception, error)
        if reply.set_running_or_notify_cancel():
            outcome()


def _misread(error: Exception) -> bool:
    """Whether Dask's executor took a result for an error, as it does where the worker dies between its two looks."""
    return isinstance(error, AttributeError) and "with_traceback" in str(error)


@contextlib.contextmanager
def _lost(client):
    """What Dask raises where its scheduler is gone, as a BrokenExecutor."""
    try:
        yield
    except Exception as error:
        if client.status == "running" and not isinstance(error, OSError):
            raise
        raise BrokenExecutor(f"the Dask scheduler does not answer ({type(error).__name__}: {error})") from error


# --- in a worker

_clients: OrderedDict[str, tuple[object, int]] = OrderedDict()  # those last trained last
_state: tuple[np.ndarray | None, tuple] = None, ()  # the last one, as it came and unpacked
_lock = threading.Lock()
_here: set[str] = set()  # names of the clusters whose server is this very process


def _hold(packed: np.ndarray) -> np.ndarray:
    return packed


def train(state: np.ndarray, key: str, data: np.ndarray | None) -> tuple[np.ndarray | None, float, str]:
    """One client's part of one round: new state, loss, this worker's address; no state where the examples lack.

    With one torch thread, for another number rounds otherwise; but a server's own process it leaves alone. The state is
    a numpy array: Dask sends its memory as it lies, and a tensor as torch.save writes it, with a checksum.
    """
    global _state
    from distributed import get_worker

    worker = get_worker().address
    client = _kept(key, data)
    if client is None:
        return None, 0.0, worker
    if key.partition("-")[0] not in _here and torch.get_num_threads() != 1:
        torch.set_num_threads(1)
    with _lock:
        if _state[0] is not state:
            _state = state, unpack(memoryview(bytearray(state)))
        task, vector = _state[1]
    new, loss = task(vector, client)
    return new.numpy(), loss, worker


def _kept(key: str, data: np.ndarray | None):
    with _lock:
        if key not in _clients and data is not None:
            _clients[key] = unpack(memoryview(bytearray(data))), len(data)
            while len(_clients) > 1 and sum(size for _, size in _clients.values()) > KEPT:
                _clients.popitem(last=False)
        if key not in _clients:
            return None
        _clients.move_to_end(key)
        return _clients[key][0]


def forget(name: str) -> None:
    """Let go of the examples of one :class:`DaskCluster`, and of the last state."""
    global _state
    with _lock:
        _state = None, ()
        for key in [key for key in _clients if key.startswith(name)]:
            del _clients[key]
