"""This project's federation, clients one after the other or together.

Commands are read in another thread: in any but the main one the C library gives freed memory back to the system at
every step, and a contender would be measured by its page faults.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.rivals.job import BATCH, RATE, Task, serve


class Over(Exception):
    """Raised in a run that is given up."""


class Ours:
    """One ``federation.run`` over all blocks, which rests after each.

    together: as the run takes it. main: where work for the main thread is put.
    """

    def __init__(self, task: Task, together: str, main: queue.SimpleQueue[Callable[[], None] | None]):
        from fl_utils import federation
        from fl_utils.training import LocalTraining

        self.left, rounds, cohort = task.cohorts.shape
        clients = [federation.Client(id, x, y) for id, (x, y) in enumerate(zip(task.x, task.y, strict=True))]
        self.go, self.rests, self.error = threading.Semaphore(0), threading.Semaphore(0), None
        self.over, self.note = False, ""
        log = logging.getLogger("fl_utils.federation")
        log.setLevel(logging.INFO)
        log.addFilter(self._told)
        work = partial(
            federation.run, task.build, clients, rounds=self.left * rounds, local=LocalTraining(1, BATCH, RATE),
            client_fraction=cohort / len(clients), initial=task.initial, together=together,
            evaluate=self._rest, evaluate_every=rounds,
        )  # fmt: skip
        main.put(partial(self._work, work))

    def _told(self, record: logging.LogRecord) -> bool:
        """Keep what the run says of how its clients train."""
        self.note = record.getMessage()
        return record.levelno > logging.INFO

    def _work(self, work: Callable[[], object]) -> None:
        self.go.acquire()
        try:
            work()
        except Over:
            pass
        except Exception as error:
            self.error = error
            self.rests.release()

    def _rest(self, trainer) -> dict:
        self.state = trainer.vector[: trainer.layout.num_parameters].clone()
        self.left -= 1
        self.rests.release()
        if self.left:
            self.go.acquire()
        if self.over:
            raise Over
        return {}

    def run(self, block: int) -> None:
        """The next block of rounds."""
        self.go.release()
        self.rests.acquire()
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """Give up the blocks that are left."""
        self.over = True
        logging.getLogger("fl_utils.federation").removeFilter(self._told)
        self.go.release()

    def vector(self) -> torch.Tensor:
        """The trainable parameters, float32 [d']."""
        return self.state


def main() -> None:
    """Serve, and do the work in this thread."""
    work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def commands() -> None:
        try:
            serve(partial(Ours, together=sys.argv[1], main=work), "torch")
        finally:
            work.put(None)

    threading.Thread(target=commands, daemon=True).start()
    while (piece := work.get()) is not None:
        piece()


if __name__ == "__main__":
    main()
