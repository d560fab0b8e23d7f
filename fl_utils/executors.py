"""Where clients train: in this process, in a local pool, or on a Dask cluster: three ``concurrent.futures.Executor``.

A result never depends on the choice: a client's seed is a function of (seed, round, client), and updates are added up
in the cohort's order. The two that are opened here keep the clients' examples at the workers and hand the state over
once a round; any other executor gets both with every client. Workers have one torch thread each: "to the bit" holds
against a process that has one too (``OMP_NUM_THREADS=1``, as notebooks run): sums of several threads round otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Executor
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
        from fl_utils.shared_pool import SharedPool

        with SharedPool(int(workers)) as pool:
            yield pool
    elif "://" in where:
        import distributed

        from fl_utils.dask_cluster import DaskCluster

        # Updates come from the workers themselves; where those cannot be reached from here, through the scheduler.
        server = distributed.Client(where, timeout=30, direct_to_workers=True)
        with server as client, DaskCluster(client) as cluster:
            yield cluster
    else:
        raise ValueError(
            f"executor {where!r}: want '' (this process), 'pool', 'pool:N' or a Dask address tcp://host:port"
        )
