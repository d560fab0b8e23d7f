"""Where clients train: in this process, in a local pool, or on a Dask cluster: three ``concurrent.futures.Executor``.

A result never depends on the choice: a client's seed is a function of (seed, round, client), and updates are added up
in the cohort's order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager


def available_cores() -> int:
    """Cores this process may use (its affinity, not the machine's total)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def executor(where: str = "") -> Iterator[Executor | None]:
    """Open the executor that ``where`` names, and close it again.

    ``""``: this process (yields None); ``"pool"`` or ``"pool:4"``: worker processes with one torch thread each (as many
    as cores by default); ``"tcp://host:port"`` (or any other Dask address): a Dask cluster. Raises ValueError on
    anything else.
    """
    if where == "":
        yield None
    elif where == "pool" or where.startswith("pool:"):
        workers = where.removeprefix("pool").removeprefix(":") or str(available_cores())
        if not workers.isdigit() or int(workers) < 1:
            raise ValueError(f"executor {where!r}: want pool:N with a number of worker processes from 1 up")
        import torch.multiprocessing

        with ProcessPoolExecutor(
            int(workers), mp_context=torch.multiprocessing.get_context("spawn"), initializer=_one_thread
        ) as pool:
            yield pool
    elif "://" in where:
        import distributed

        with distributed.Client(where, timeout=30) as client, client.get_executor(pure=False) as cluster:
            yield cluster
    else:
        raise ValueError(
            f"executor {where!r}: want '' (this process), 'pool', 'pool:N' or a Dask address tcp://host:port"
        )


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
