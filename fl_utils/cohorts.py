"""One round's clients: who is drawn, where each trains, whose update arrives and whose does not."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor
from dataclasses import dataclass

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
    """What one round did. ``left_out`` names clients whose update did not count, with the reason."""

    number: int
    cohort: list[int]
    left_out: dict[int, str]
    train_loss: float
    bytes_down: int
    bytes_up: int
    seconds: float
    evaluation: dict | None = None


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
) -> Iterator[tuple[torch.Tensor, int]]:
    """The round's updates (vector float32 [d], examples) in the cohort's order; fills in ``this_round`` on the way.

    With ``reuse``, in one process, every update is the same buffer: the caller has done with one before it asks for
    the next. Raises FederationError where a client fails and ``on_failure`` is "stop", or where nobody is left.
    """
    # A client's frame differs from another's in its header alone: the payload is the same buffer.
    down = [wire.size(wire.frame(vector, kind="state", round=this_round.number, client=id)) for id in this_round.cohort]
    losses, taken = 0.0, 0
    if executor is None:
        arrivals = _inline(task, trainer, vector, by_id, this_round.cohort)
    else:
        arrivals = _submitted(task, vector, by_id, this_round.cohort, executor, timeout)
    for sent, (id, outcome) in zip(down, arrivals, strict=True):
        this_round.bytes_down += sent
        count = len(by_id[id])
        if not isinstance(outcome, Exception):
            new, loss = outcome
            header = {"kind": "update", "round": this_round.number, "client": id, "num_examples": count}
            this_round.bytes_up += wire.size(wire.frame(new, **header))
            # The sum is not finite where any value is not (or, harmlessly, where huge ones overflow: then look closer).
            if torch.isfinite(new.sum()) or torch.isfinite(new).all():
                losses, taken = losses + loss * count, taken + count
                yield (new if reuse or executor is not None else new.clone()), count
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


def _inline(task, trainer, vector, by_id, ids) -> Iterator[tuple[int, tuple[torch.Tensor, float] | Exception]]:
    """Clients one after the other in this process. The vector handed out is the trainer's own: use it, then go on."""
    for id in ids:
        try:
            outcome = task(vector, by_id[id], trainer)
        except Exception as error:
            outcome = error
        yield id, outcome


def _submitted(
    task, vector, by_id, ids, executor, timeout
) -> Iterator[tuple[int, tuple[torch.Tensor, float] | Exception]]:
    """Clients on an executor: a window of them under way, taken in the cohort's order."""
    window = 2 * getattr(executor, "_max_workers", len(ids))
    pending, waiting = {}, iter(ids)
    try:
        for id in ids:
            try:
                while len(pending) < window and (upcoming := next(waiting, None)) is not None:
                    pending[upcoming] = executor.submit(task, vector, by_id[upcoming])
                outcome = pending.pop(id).result(timeout)
            except BrokenExecutor as error:
                raise FederationError(
                    f"a worker process died while clients {sorted([id, *pending])} were under way "
                    "(out of memory, or killed); the checkpoint, where one was asked for, holds the rounds before"
                ) from error
            except TimeoutError:
                outcome = ClientDropped(f"silent for {timeout} s")
            except Exception as error:
                outcome = error
            yield id, outcome
    finally:
        for future in pending.values():
            future.cancel()


_trainers: dict[tuple, Trainer] = {}  # of a worker process: the last model it was given
_turn = threading.Lock()  # threads of one process train in turn: they have one model, and torch one random generator


def client_task(build, device, train, local, seed, number, vector, client, trainer=None) -> tuple[torch.Tensor, float]:
    """One client's part of one round: its new state (float32 [d]) and its loss.

    With ``trainer`` (in the server's process) the state returned is the trainer's own vector. In a worker process the
    model is kept from task to task, and the state is a copy.
    """
    client_own_seed = client_seed(seed, number, client.id)
    if trainer is not None:
        trainer.vector.copy_(vector)
        return trainer.vector, float(train(trainer, client, local, client_own_seed))
    import cloudpickle

    with _turn:
        key = (zlib.crc32(cloudpickle.dumps(build)), device)
        if key not in _trainers:
            _trainers.clear()
            _trainers[key] = Trainer(build, device)
        trainer = _trainers[key]
        trainer.vector.copy_(vector)
        loss = float(train(trainer, client, local, client_own_seed))
        return trainer.vector.detach().cpu().clone(), loss


def _reason(error: Exception) -> str:
    if isinstance(error, ClientDropped):
        return f"dropped out ({error})" if str(error) else "dropped out"
    return str(error) if isinstance(error, FederationError) else f"{type(error).__name__}: {error}"
