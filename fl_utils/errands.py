"""What an executor's worker processes are asked to do, and their answers, through two pipes and no thread.

    1. A call of the executor's own keeps each worker at :func:`serve`, until nothing has come for a while.
    2. The owner writes errands into one pipe; the first worker that is free takes the next one.
    3. Answers come back through the other pipe. The owner reads them where it waits for one.
    4. Where workers leave the owner no core of its own, it goes on, on the core that the answer comes from.

A call of ``ProcessPoolExecutor`` passes through three threads and two queues of the owner's, which take their time from
the cores that the workers train on. The executor still starts the workers, ends them, and sees when one dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future
from itertools import count

from fl_utils.executors import available_cores

IDLE = 0.25  # seconds without an errand after which a worker is the executor's again
LOOK = 0.1  # seconds without an answer after which the owner looks after its workers
LONGEST = 8192  # bytes of an error: written at once, so that a worker that is killed leaves a whole one or none


class Errands:
    """The owner's side. ``begin`` with ``ends`` is how a worker begins; ``call`` hands a function to the executor."""

    def __init__(self, context, workers: int, call: Callable[[Callable[[], None]], Future]):
        coming, self._out = context.Pipe(duplex=False)
        self._answers, answers = context.Pipe(duplex=False)
        self.ends = coming, context.Lock(), answers, context.Lock()
        self._call, self._workers, self._at_work = call, workers, []
        self._open: dict[int, Callable] = {}
        self._shares_cores = available_cores() <= workers
        self._numbers, self._reading, self._writing = count(), threading.Lock(), threading.Lock()

    def send(self, arrived: Callable[[object, BaseException | None], None], function: Callable, *arguments) -> None:
        """Let a worker call ``function``, which it imports; ``arrived`` gets what that returns, or what it raises.

        Raises BrokenExecutor where a worker died, and what pickling raises.
        """
        with self._writing:
            self._see_to_workers()
            number = next(self._numbers)
            self._open[number] = arrived
            try:
                self._out.send((number, function, arguments))
            except BaseException:
                del self._open[number]
                raise

    def listen(self, seconds: float) -> bool:
        """Pass on one answer, whosever it is, if one comes within ``seconds`` or a moment. Raises BrokenExecutor."""
        with self._reading:
            heard = self._answers.poll(min(seconds, LOOK))
            if heard:
                number, answer, error, core = pickle.loads(self._answers.recv_bytes())
        if heard:
            if self._shares_cores:
                _go_to(core)
            self._open.pop(number)(answer, error)
        elif self._open:
            with self._writing:
                self._see_to_workers()
        return heard

    def close(self) -> None:
        """No errand will come: workers are the executor's once they are done with those that have."""
        self._out.close()

    def _see_to_workers(self) -> None:
        for each in self._at_work:
            if each.done() and (error := each.exception()) is not None:
                if isinstance(error, BrokenExecutor):
                    raise error
                raise BrokenExecutor(f"a worker lost an errand: {type(error).__name__}: {error}") from error
        self._at_work = [each for each in self._at_work if not each.done()]
        for _ in range(self._workers - len(self._at_work)):
            self._at_work.append(self._call(serve))


def _go_to(core: int | None) -> None:
    """Have this thread go on, on ``core``, if it may run there; it is as free as before to leave it again.

    Left alone, the system wakes the owner on one core only, and a round lasts until the worker there is done as well.
    """
    if core != _core() and core in (allowed := os.sched_getaffinity(0)):
        with contextlib.suppress(OSError):  # not allowed to choose: then it stays where it is
            os.sched_setaffinity(0, {core})
            os.sched_setaffinity(0, allowed)


def _core() -> int | None:
    """The core that this thread is on, where the system tells."""
    return _sched_getcpu() if _sched_getcpu else None


_sched_getcpu = getattr(ctypes.CDLL(None), "sched_getcpu", None) if hasattr(os, "sched_setaffinity") else None


# --- in a worker

_ends: tuple = ()


def begin(ends: tuple) -> None:
    """How a worker begins: with the owner's ``ends``."""
    global _ends
    _ends = ends


def serve() -> None:
    """Run errands until none has come for a while."""
    coming, taking, answers, answering = _ends
    while taking.acquire(timeout=IDLE):
        try:
            if not coming.poll(IDLE):
                return
            number, function, arguments = coming.recv()
        except EOFError:  # the owner is gone
            return
        finally:
            taking.release()
        answer = _answer(number, function, arguments)
        with answering:
            answers.send_bytes(answer)


def _answer(number: int, function: Callable, arguments: tuple) -> bytes:
    try:
        return pickle.dumps((number, function(*arguments), None, _core()))
    except BaseException as error:  # the owner's to handle, as an executor has it
        error.add_note(f"In a worker process: {traceback.format_exc()}")
        try:
            packed = pickle.dumps((number, None, error, _core()))
            pickle.loads(packed)  # some go in and never come out
        except Exception:
            packed = b""
        if not 0 < len(packed) <= LONGEST:
            text = traceback.format_exception_only(error)[0].strip()
            packed = pickle.dumps((number, None, RuntimeError(text[: LONGEST // 8]), _core()))
        return packed
