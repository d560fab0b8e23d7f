"""Clients' trainings under way, each from a state of its own, in this process or on an executor."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from functools import partial

import torch

from fl_utils.cohorts import Client, ClientDropped, FederationError, _reason, client_task
from fl_utils.training import LocalTraining, Trainer


class Failed(Exception):
    """A client's training gave no usable update; the text is the reason."""


class Trainings:
    """Trainings that were started and not yet asked for, at most one per client. A context manager: leaving cancels.

    On an ``executor`` they run at the same time from the first question on, a window of them handed over at once, those
    started first foremost. Without one, a training runs with ``trainer`` when its result is asked for: the same result.
    """

    def __init__(
        self,
        build: Callable,
        train: Callable,
        device: str,
        seed: int,
        trainer: Trainer,
        executor: Executor | None = None,
        timeout: float | None = None,
    ):
        self._task = partial(client_task, build, device, train)
        self._seed, self._trainer, self._executor, self._timeout = seed, trainer, executor, timeout
        self._waiting: dict[int, Callable] = {}
        self._running: dict[int, Future] = {}

    def __enter__(self) -> Trainings:
        return self

    def __exit__(self, *_) -> None:
        for future in self._running.values():
            future.cancel()

    def start(self, client: Client, vector: torch.Tensor, local: LocalTraining, number: int) -> None:
        """Let ``client`` train from ``vector`` (float32 [d]; never to be written to); ``number`` enters its seed."""
        self._waiting[client.id] = partial(self._task, local, self._seed, number, vector, client)

    def finish(self, id: int) -> tuple[torch.Tensor, float]:
        """The client's new state (float32 [d], on the CPU, a copy) and its loss.

        Raises Failed where it raised, dropped out, was silent or returned values that are not finite, and
        FederationError where a worker process died.
        """
        try:
            new, loss = self._finish_here(id) if self._executor is None else self._finish_there(id)
        except BrokenExecutor as error:
            raise FederationError(
                f"a worker process died while clients {sorted({id, *self._running})} were under way "
                "(out of memory, or killed)"
            ) from error
        except Exception as error:
            raise Failed(_reason(error)) from error
        # The sum is not finite where any value is not (or, harmlessly, where huge ones overflow: then look closer).
        if not (torch.isfinite(new.sum()) or torch.isfinite(new).all()):
            raise Failed("its update holds values that are not finite")
        return new, loss

    def _finish_here(self, id: int) -> tuple[torch.Tensor, float]:
        new, loss = self._waiting.pop(id)(trainer=self._trainer)
        return new.detach().cpu().clone(), loss

    def _finish_there(self, id: int) -> tuple[torch.Tensor, float]:
        if id in self._waiting:
            self._running[id] = self._executor.submit(self._waiting.pop(id))
        future = self._running.pop(id)
        window = 2 * getattr(self._executor, "_max_workers", len(self._waiting))
        while self._waiting and len(self._running) < window:
            earliest = next(iter(self._waiting))
            self._running[earliest] = self._executor.submit(self._waiting.pop(earliest))
        try:
            return future.result(self._timeout)
        except TimeoutError:
            future.cancel()
            raise ClientDropped(f"silent for {self._timeout} s") from None
