"""How a federation's clients train in the server's process: by turns, or together (:mod:`fl_utils.together`).

Training together takes about half the time where models are small, and none of it where they are large; not every model
can; and its results differ from training by turns by rounding. So nobody gets it unasked, and who asks for the faster
way has it found by a probe of a few steps in the first round, logged, and kept with the result.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch

from fl_utils.cohorts import Client, _inline
from fl_utils.together import Cohort, groups
from fl_utils.training import LocalTraining, Trainer, client_seed

STEPS, TURNS = 2, 2  # of the probe: steps of each client, clients that train by turns
REPEATS = 3  # of the probe, at least: one disturbed moment decides nothing
ENOUGH = 0.03  # CPU seconds of it, recording not counted, after which it does not repeat itself
GAIN = 0.9  # of the time by turns: together takes less than that, or it is not worth another rounding

log = logging.getLogger("fl_utils.federation")


def unsupported(trainer: Trainer, local: LocalTraining, custom: bool, executor: object | None) -> str:
    """Why clients cannot train together, or "". custom: a client does something else than :meth:`Trainer.train`."""
    reasons = {
        "an executor trains the clients elsewhere": executor is not None,
        "train is a function of its own": custom,
        "augment draws random numbers": local.augment is not None,
        f"the optimizer is {local.optimizer!r}, not 'sgd'": local.optimizer != "sgd",
        "the loss is the model's own": local.loss == "own",
        f"the device is {trainer.device}, not the CPU": trainer.device.type != "cpu",
        "the model has buffers that training changes (batch norm's statistics?)": (
            len(trainer.layout.names) > trainer.layout.trainable
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def measure(
    cohort: Cohort, clients: list[Client], vector: torch.Tensor, local: LocalTraining, seed: int, number: int
) -> tuple[float, float, float]:
    """CPU seconds: a client's step by turns, a client's step together, one recording. Raises CannotRecord.

    ``clients`` (one of :func:`groups`) take a few steps, some of them by turns, all of them together; medians. It costs
    one recording and, of either way, :data:`STEPS` steps a client as warm-up and :data:`REPEATS` times as many or more.
    """
    few = _beginnings(clients, local, STEPS)
    steps = -(-len(few[0]) // (local.batch_size or len(few[0])))

    def spent(work: Callable[[], object]) -> float:
        started = time.process_time()
        work()
        return time.process_time() - started

    together = partial(cohort.train, few, vector, local.for_epochs(1), seed, number)
    by_turns = partial(_by_turns, cohort.trainer, few[:TURNS], vector, local.for_epochs(1), seed, number)
    first, _ = spent(together), by_turns()
    times: list[tuple[float, float]] = []
    while len(times) < REPEATS or sum(map(sum, times)) < ENOUGH:
        times.append((spent(by_turns), spent(together)))
    one, all_at_once = (median(each) for each in zip(*times, strict=True))
    return one / (steps * len(few[:TURNS])), all_at_once / (steps * len(few)), max(0.0, first - all_at_once)


def _beginnings(clients: list[Client], local: LocalTraining, steps: int) -> list[Client]:
    """The clients with examples for a few steps alone."""
    size = steps * (local.batch_size or len(clients[0]))
    return [Client(client.id, client.x[:size], client.y[:size]) for client in clients]


def _by_turns(
    trainer: Trainer, clients: list[Client], vector: torch.Tensor, local: LocalTraining, seed: int, number: int
) -> None:
    """Train ``clients`` one after the other for their time, or their errors; the trainer's state stays what it was."""
    kept = trainer.vector.clone()
    try:
        for client in clients:
            trainer.train(client.x, client.y, local, client_seed(seed, number, client.id), vector)
    finally:
        trainer.vector.copy_(kept)


@dataclass
class Choice:
    """Whether a federation's clients train together: asked for by ``wanted``, decided in its first round.

    why_not: :func:`unsupported`. rounds: how many there will be. already: what the rounds before a resume did.
    Raises ValueError where ``wanted`` is none of "never", "auto" and "always", cannot be had, or differs from what the
    rounds before did.
    """

    wanted: str
    why_not: str
    rounds: int
    already: bool | None = None

    def __post_init__(self) -> None:
        if self.wanted not in ("never", "auto", "always"):
            raise ValueError(f"together is {self.wanted!r}: want 'never', 'auto' or 'always'")
        if self.wanted == "always" and self.why_not:
            raise ValueError(f"together is 'always', but {self.why_not}")
        if self.already is not None and self.wanted == ("never" if self.already else "always"):
            did = "together" if self.already else "by turns"
            raise ValueError(f"together is {self.wanted!r}, but the checkpoint's rounds trained {did}: remove it")
        self.cohort: Cohort | None = None
        self.made: dict = {"how": "sequential", "why": "not asked otherwise"} if self.wanted == "never" else {}

    def inline(self, trainer, vector, by_id, ids, local: LocalTraining, seed: int, number: int) -> Callable:
        """What trains a round's clients in this process. Raises ValueError where they cannot together, but must."""
        if not self.made:
            self.made = self._decide(trainer, vector, by_id, ids, local, seed, number)
            log.info("clients train %(how)s: %(why)s", self.made)
        return _inline if self.cohort is None else partial(self._arrivals, local, seed, number)

    def _decide(self, trainer, vector, by_id, ids, local, seed, number) -> dict:
        if self.why_not or (self.wanted == "auto" and self.already is False):
            return {"how": "sequential", "why": self.why_not or "the rounds before were"}
        cohort = Cohort(trainer, local)
        first = next(groups((by_id[id] for id in ids), cohort.most))
        where = vector, local.for_epochs(1), seed, number
        if self.wanted == "always":
            self._insist(cohort, _beginnings(first, local, 1), *where)
            self.cohort = cohort
            return {"how": "together", "why": "asked for"}
        if self.already:
            self.cohort = cohort
            return {"how": "together", "why": "the rounds before were"}
        sizes = [len(by_id[id]) for id in ids]
        if local.batch_size == 0 and len(set(sizes)) > 1:
            return {"how": "sequential", "why": "batches of all examples have as many shapes as clients have sizes"}
        try:
            by_turns, together, recording = measure(cohort, first, *where)
        except Exception as error:
            return {"how": "sequential", "why": str(error)}
        size = local.batch_size or sizes[0]
        steps = self.rounds * local.local_epochs * sum(-(-count // size) for count in sizes)
        together += recording * len({0, *(count % size for count in sizes)}) / steps
        if together < GAIN * by_turns:
            self.cohort = cohort
        return {
            "how": "together" if self.cohort else "sequential",
            "why": f"{together:.2g} s of CPU a client's step together, {by_turns:.2g} by turns",
            "sequential_s": by_turns,
            "together_s": together,
        }

    @staticmethod
    def _insist(cohort: Cohort, few: list[Client], *where) -> None:
        """Raise ValueError where the model cannot train ``few`` together; a client that cannot train is named later."""
        try:
            cohort.train(few, *where)
        except Exception as error:
            try:
                _by_turns(cohort.trainer, few, *where)
            except Exception:
                return
            raise ValueError(f"together is 'always', but {error}") from error

    def _arrivals(self, local, seed, number, task, trainer, vector, by_id, ids) -> Iterator[tuple]:
        """Clients of a round, in order: (id, examples, (state, loss)). Where a group fails, its clients train by turns,
        so that the one at fault is named and the others count."""
        for clients in groups((by_id[id] for id in ids), self.cohort.most):
            try:
                outcomes = self.cohort.train(clients, vector, local, seed, number)
            except Exception as error:
                own = {client.id: client for client in clients}
                log.warning("round %d: clients %s train by turns: %s", number, list(own), error)
                yield from _inline(task, trainer, vector, own, list(own))
                continue
            for client, outcome in zip(clients, outcomes, strict=True):
                yield client.id, len(client), outcome
