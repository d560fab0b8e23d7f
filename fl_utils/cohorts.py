"""One round's clients: who is drawn, where each trains, whose update arrives and whose does not."""

from __future__ import annotations

import contextlib
import math
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from fl_utils import wire
from fl_utils.training import Trainer, client_seed


class FederationError(RuntimeError):
    """A round that could not be finished; the text names the round, the client and the reason."""


class ClientDropped(Exception):
    """Raised inside a client's training to say that this client left the round."""


@dataclass(frozen=True, eq=False)
class Client:
    """One data owner: ``id`` (any whole number from 0 up), examples ``x`` [N, ...] and labels ``y`` [N]."""

    id: int
    x: torch.Tensor
    y: torch.Tensor

    def __len__(self) -> int:
        return len(self.y)


@dataclass
class Round:
    """What one round did. ``left_out`` names clients whose update did not count, with the reason;
    ``together``: they trained as one batch (:mod:`fl_utils.together`)."""

    number: int
    cohort: list[int]
    left_out: dict[int, str]
    train_loss: float
    bytes_down: int
    bytes_up: int
    seconds: float
    evaluation: dict | None = None
    together: bool = False


def draw(ids: Sequence[int], client_fraction: float, seed: int, round_number: int) -> list[int]:
    """The clients of one round: max(1, round(C * K)) of ``ids``, without replacement, in the order of ``ids``."""
    size = max(1, round(client_fraction * len(ids)))
    if size == len(ids):
        return list(ids)
    drawn = np.random.default_rng([seed, round_number]).choice(len(ids), size, replace=False)
    return [ids[i] for i in sorted(drawn)]


def updates(
    task: Callable,
    trainer: Trainer,
    vector: torch.Tensor,
    by_id: dict[int, Client],
    this_round: Round,
    executor: Executor | None,
    on_failure: str,
    timeout: float | None,
    reuse: bool,
    inline: Callable | None = None,
) -> Iterator[tuple[torch.Tensor, int]]:
    """The round's updates (vector float32 [d], examples) in the cohort's order; fills in ``this_round`` on the way.

    With ``reuse`` an update may be a buffer that serves again: the caller has done with one before it asks for the
    next. inline: trains the clients where there is no executor; by default, one after the other.
    Raises FederationError where a client fails and ``on_failure`` is "stop", or where nobody is left.
    """
    losses, taken = 0.0, 0
    if executor is None:
        arrivals = (inline or _inline)(task, trainer, vector, by_id, this_round.cohort)
    else:
        arrivals = _submitted(task, vector, by_id, this_round.cohort, executor, timeout)
    own = executor is not None and not getattr(executor, "lends", False)  # vectors that nothing will overwrite
    with contextlib.closing(arrivals):
        for id, count, outcome in arrivals:
            this_round.bytes_down += wire.size(wire.frame(vector, kind="state", round=this_round.number, client=id))
            if not isinstance(outcome, Exception):
                new, loss = outcome
                header = {"kind": "update", "round": this_round.number, "client": id, "num_examples": count}
                this_round.bytes_up += wire.size(wire.frame(new, **header))
                if finite(new):
                    losses, taken = losses + loss * count, taken + count
                    yield (new if reuse or own else new.clone()), count
                    continue
                outcome = FederationError("its update holds values that are not finite")
            reason = _reason(outcome)
            if on_failure == "stop":
                raise FederationError(f"round {this_round.number}: client {id} failed: {reason}") from outcome
            this_round.left_out[id] = reason
    if not taken:
        reasons = "; ".join(f"client {id}: {reason}" for id, reason in this_round.left_out.items())
        raise FederationError(f"round {this_round.number}: no client of the cohort is left ({reasons})")
    this_round.train_loss = losses / taken


def finite(vector: torch.Tensor) -> bool:
    """Whether all values of ``vector`` (float32 [d]) are finite."""
    # The sum is not finite where a value is not, nor, harmlessly, where huge ones overflow: look closer.
    return math.isfinite(vector.sum()) or bool(torch.isfinite(vector).all())


Outcome = tuple[torch.Tensor, float] | Exception


def _inline(task, trainer, vector, by_id, ids) -> Iterator[tuple[int, int, Outcome]]:
    """Clients one after the other in this process. The vector handed out is the trainer's own: use it, then go on."""
    for id in ids:
        client = by_id[id]
        try:
            outcome = task(vector, client, trainer)
        except Exception as error:
            outcome = error
        yield id, len(client), outcome


class _Everything:
    """A round on an executor that keeps nothing: the state and the examples travel with each client."""

    def __init__(self, executor: Executor, task: Callable, vector: torch.Tensor):
        self._submit = partial(executor.submit, task, vector)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        pass

    def submit(self, client: Client):
        return self._submit(client)


def _submitted(task, vector, by_id, ids, executor, timeout) -> Iterator[tuple[int, int, Outcome]]:
    """Clients on an executor: a window of them under way, taken in the cohort's order. Use a vector, then go on."""
    pending, waiting = {}, iter(ids)
    try:
        window = 2 * getattr(executor, "_max_workers", len(ids))
        begun = executor.begin_round(task, vector) if hasattr(executor, "begin_round") else None
    except BrokenExecutor as error:
        raise FederationError(str(error)) from error
    except Exception as error:  # a task that cannot travel: no client can be sent
        yield from ((id, len(by_id[id]), error) for id in ids)
        return
    with begun or _Everything(executor, task, vector) as this_round:
        try:
            for id in ids:
                update = None
                try:
                    while len(pending) < window and (upcoming := next(waiting, None)) is not None:
                        upcoming = by_id[upcoming]
                        pending[upcoming.id] = upcoming, _submit(this_round, upcoming)
                    client, update = pending.pop(id)  # held until its update is there: so long its examples are kept
                    outcome = update.result(timeout)
                except (BrokenExecutor, CancelledError) as error:
                    raise FederationError(
                        f"a worker process died while clients {sorted([id, *pending])} were under way "
                        "(out of memory, or killed); the checkpoint, where one was asked for, holds the rounds before"
                    ) from error
                except TimeoutError:
                    outcome = ClientDropped(f"silent for {timeout} s")
                except Exception as error:
                    outcome = error
                try:
                    yield id, len(client), outcome
                finally:
                    _release(update)
        finally:
            for _, update in pending.values():
                update.cancel()
                _release(update)


def _submit(this_round, client: Client):
    try:
        return this_round.submit(client)
    except (BrokenExecutor, CancelledError):
        raise
    except Exception as error:  # this client cannot be sent: the others can
        failed = Future()
        failed.set_exception(error)
        return failed


def _release(update) -> None:
    """Say that an update was used, to those who hand out their buffers again."""
    if hasattr(update, "release"):
        update.release()


_trainers: dict[tuple, Trainer] = {}  # of a worker process: the last model it was given
_built: list = [None, 0]  # the last ``build``, and a checksum of it
_turn = threading.Lock()  # threads of one process train in turn: they have one model, and torch one random generator


def client_task(
    build, device, train, local, seed, number, vector, client, trainer=None, out=None
) -> tuple[torch.Tensor, float]:
    """One client's part of one round: its new state (float32 [d]) and its loss.

    With ``trainer`` (in the server's process) the state returned is the trainer's own vector. In a worker process the
    model is kept from task to task, and the state is a copy, or ``out`` (float32 [d]), where the model then trains.
    """
    client_own_seed = client_seed(seed, number, client.id)
    if trainer is not None:
        return trainer.vector, _train(train, trainer, client, local, client_own_seed, vector)
    import cloudpickle

    with _turn:
        if out is None or build is not _built[0]:  # a pool's worker unpickles one object a round
            _built[:] = build, zlib.crc32(cloudpickle.dumps(build))
        key = _built[1], device
        if key not in _trainers:
            _trainers.clear()
            _trainers[key] = Trainer(build, device)
        trainer = _trainers[key]
        if out is not None and trainer.device.type == "cpu":
            trainer.move(out)
        loss = _train(train, trainer, client, local, client_own_seed, vector)
        if out is None:
            return trainer.vector.cpu().clone(), loss
        return (out if trainer.vector is out else out.copy_(trainer.vector)), loss


def _train(train: Callable, trainer: Trainer, client: Client, local, seed: int, start: torch.Tensor) -> float:
    if getattr(train, "starts", False):
        return float(train(trainer, client, local, seed, start))
    trainer.vector.copy_(start)
    return float(train(trainer, client, local, seed))


def _reason(error: Exception) -> str:
    if isinstance(error, ClientDropped):
        return f"dropped out ({error})" if str(error) else "dropped out"
    return str(error) if isinstance(error, FederationError) else f"{type(error).__name__}: {error}"
