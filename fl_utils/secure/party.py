"""One party as a process: ``python -m fl_utils.secure.party``, told what to do in JSON lines on its standard input.

    {"do": "listen"}                      -> {"address": [host, port]}, a fresh one for each average
    {"do": "average", ...}                -> {"ok": true, "bytes_up": ..., "seconds": ..., ...} or {"ok": false, ...}

An ``average`` names its own id, everybody's addresses, the session's secret (hex), the terms, the time-out, the TLS
files, and the file (raw little-endian float32) that holds its vector and receives the average. Id n, without a
vector, is the dealer. The process imports no torch, and ends with its standard input.
"""

from __future__ import annotations

import time

import numpy as np

from fl_utils import links, orders
from fl_utils.experiment import peak_mb
from fl_utils.secure import additive, spdz


def average(job: dict, listener) -> dict:
    """Take part in one average, as ``job`` says; what to answer."""
    job = {**job, "terms": {**job["terms"], "num_examples": tuple(job["terms"]["num_examples"])}}
    terms, id = spdz.Terms(**job["terms"]), job["id"]
    dealer = id == terms.parties
    addresses = {int(peer): tuple(address) for peer, address in job["addresses"].items()}
    names = spdz.names(terms.parties)[: None if terms.protocol == "spdz" else terms.parties]
    tls = links.Tls(**job["tls"]) if job["tls"] else None
    vector = out = None
    if not dealer:
        vector = out = np.memmap(job["vector"], dtype="<f4", mode="r+", shape=(terms.length,))  # read, then overwritten
        terms.check(vector, id)
    mesh = links.connect(id, names, addresses, listener, bytes.fromhex(job["secret"]), job["timeout"], tls)
    started, used = time.perf_counter(), time.process_time()
    phase = "connect"

    def at(now: str, chunk: int) -> None:
        nonlocal phase
        phase = now
        if job.get("die_at") == [now, chunk]:  # for the tests: a party killed at any step
            import os
            import signal

            os.kill(os.getpid(), signal.SIGKILL)

    try:
        if dealer:
            spdz.deal(mesh, terms)
        elif terms.protocol == "spdz":
            spdz.party(mesh, terms.parties, terms, vector, out, at)
        else:
            additive.party(mesh, terms, vector, out, at)
    except links.LinkError as error:
        mesh.abort(error)
        raise
    except BaseException as error:
        mesh.abort(links.LinkError(names[id], phase, f"{type(error).__name__}: {error}"))
        raise
    mesh.close()
    if out is not None:
        out.flush()
    return {
        "ok": True,
        "bytes_up": mesh.bytes_up,
        "bytes_down": mesh.bytes_down,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - used,
        "peak_mb": peak_mb(),
    }


def main() -> None:
    """Answer line by line until the input ends."""
    orders.serve(average, lambda error: f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
