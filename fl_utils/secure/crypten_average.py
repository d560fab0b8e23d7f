"""The same average by CrypTen 0.4 (Knott et al. 2021): arithmetic shares over Z_2^64 between processes, semi-honest.

CrypTen's masks come from torch's generator, which is not cryptographic: a protocol to compare with, not one to trust
secrets to. A vector goes through in chunks, for one whole one would take several times its memory. The parties get
their vectors as files, each its own, and return theirs the same way: large results do not fit through CrypTen's queues.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

CHUNK = 1 << 20


def average(vectors: Sequence[torch.Tensor], num_examples: Sequence[int], timeout: float, cost=None) -> torch.Tensor:
    """The weighted average of ``vectors`` (float32 [d]); 16 fractional bits, CrypTen's default. Fills in ``cost``.

    Raises RuntimeError where a party failed or said nothing for ``timeout`` seconds beyond what the arithmetic takes.
    """
    room = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fl-crypten-", dir=room) as name:
        folder = Path(name)
        for id, vector in enumerate(vectors):
            vector.numpy().astype("<f4", copy=False).tofile(folder / f"{id}.in")
        about = {"counts": list(num_examples), "length": len(vectors[0])}
        (folder / "job.json").write_text(json.dumps(about))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-m", "fl_utils.secure.crypten_average", name]
        patience = 60 + timeout + len(vectors) * len(vectors[0]) / 1e6
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=patience)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"CrypTen's parties said nothing for {patience:.0f} s") from None
        reports = [folder / f"{id}.json" for id in range(len(vectors))]
        if done.returncode or not all(report.exists() for report in reports):
            said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            raise RuntimeError(f"a party of CrypTen failed: {said[-1] if said else 'it said nothing'}")
        results = [np.fromfile(folder / f"{id}.out", dtype="<f4") for id in range(len(vectors))]
        if any(not np.array_equal(results[0], other) for other in results[1:]):
            raise RuntimeError("CrypTen's parties ended with different averages")
        if cost is not None:
            for report in map(json.loads, (report.read_text() for report in reports)):
                for key, value in report.items():
                    getattr(cost, key).append(value)
        return torch.from_numpy(results[0])


def _party(name: str) -> None:
    """One of CrypTen's processes."""
    import time

    import crypten
    import crypten.communicator as communicator

    from fl_utils.experiment import peak_mb

    folder = Path(name)
    job = json.loads((folder / "job.json").read_text())
    torch.set_num_threads(1)
    link = communicator.get()
    id, parties, total = link.get_rank(), link.get_world_size(), sum(job["counts"])
    mine = torch.from_numpy(np.fromfile(folder / f"{id}.in", dtype="<f4")) * (job["counts"][id] / total)
    out = np.memmap(folder / f"{id}.out", dtype="<f4", mode="w+", shape=(job["length"],))
    link.reset_communication_stats()
    started, used = time.perf_counter(), time.process_time()
    for at in range(0, job["length"], CHUNK):
        part = mine[at : at + CHUNK]
        shared = None
        for source in range(parties):
            given = part if source == id else torch.zeros_like(part)
            one = crypten.cryptensor(given, src=source, broadcast_size=False)
            shared = one if shared is None else shared + one
        out[at : at + len(part)] = shared.get_plain_text().numpy()
    seconds, used = time.perf_counter() - started, time.process_time() - used
    out.flush()
    bytes_up = link.get_communication_stats()["bytes"]
    about = {"bytes_up": bytes_up, "bytes_down": bytes_up, "seconds": seconds, "cpu_seconds": used}
    (folder / f"{id}.json").write_text(json.dumps(about | {"peak_mb": peak_mb()}))


def _main(name: str) -> None:
    import crypten.mpc
    from crypten.config import cfg

    cfg.communicator.verbose = True
    parties = len(json.loads((Path(name) / "job.json").read_text())["counts"])
    crypten.mpc.run_multiprocess(world_size=parties)(_party)(name)


if __name__ == "__main__":
    from fl_utils.secure import crypten_average

    crypten_average._main(sys.argv[1])
