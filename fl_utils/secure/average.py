"""An average that nobody's vector can be read from: four backends behind one function.

plain      fl_utils.aggregation.fedavg: the server sees every vector
additive   additive shares without authentication, over real processes: what PySyft 0.2 called SPDZ
spdz       authenticated shares with a dealer, over real processes: cheating is noticed, and nothing comes out
crypten    CrypTen's arithmetic shares between processes (semi-honest; its masks are not cryptographic)
"""

from __future__ import annotations

import os
import secrets
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from fl_utils import orders
from fl_utils.aggregation import fedavg
from fl_utils.secure.certificates import make_certificates
from fl_utils.secure.fixed_point import FixedPoint
from fl_utils.secure.spdz import Terms

BACKENDS = ("plain", "additive", "spdz", "crypten")


class AverageFailed(RuntimeError):
    """No average came out. ``reports`` has each party's own account; ``party`` and ``phase`` those that it names."""

    def __init__(self, reports: dict[str, dict]):
        self.reports = reports
        failed = {name: report for name, report in reports.items() if not report.get("ok")}
        first = next((r for r in failed.values() if r.get("party")), next(iter(failed.values()), {}))
        self.party, self.phase = first.get("party", ""), first.get("phase", "")
        super().__init__("; ".join(f"{name} stopped: {report.get('error')}" for name, report in failed.items()))


@dataclass
class Cost:
    """What one average took, per party (the dealer, where there is one, comes last)."""

    bytes_up: list[int] = field(default_factory=list)
    bytes_down: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak_mb: list[float] = field(default_factory=list)


def encrypted_average(
    vectors: Sequence[torch.Tensor],
    num_examples: Sequence[int],
    backend: str = "spdz",
    *,
    fraction_bits: int = 20,
    value_bits: int = 32,
    timeout: float = 30.0,
    tls: bool = False,
    cost: Cost | None = None,
) -> torch.Tensor:
    """The average of ``vectors`` (each float32 [d]), weighted by ``num_examples``; float32 [d].

    backend: one of :data:`BACKENDS`. fraction_bits: precision of the fixed point; the result is off from the plain one
    by at most ``parties * 2 ** -(fraction_bits + 1)``, float32's own rounding aside (CrypTen cuts off at its own 16
    bits: ``parties * 2 ** -16``). value_bits: of the whole number, sign included; more than 32 leave 64 - value_bits
    bits of security and cost 4 more bytes per number. timeout: seconds that a party waits for another. tls: mutual TLS
    between the parties, with certificates made for this average. cost: filled in.

    Starts the parties' processes and ends them again; :class:`Parties` keeps them for many averages. Raises ValueError
    where vectors, counts or their size do not fit (naming the largest weight), AverageFailed where a party stopped.
    """
    parties = Parties(
        len(vectors), backend, fraction_bits=fraction_bits, value_bits=value_bits, timeout=timeout, tls=tls
    )
    parties.check(vectors, num_examples)  # before any process starts
    with parties:
        result = parties.average(vectors, num_examples)
        if cost is not None:
            cost.__dict__.update(parties.cost.__dict__)
        return result


class Parties:
    """Processes of ``count`` parties (and a dealer) that stay for many averages; a context manager.

    As a ``rule`` for :func:`fl_utils.federation.run`: ``parties.rule``. ``cost`` is that of the last average.
    """

    def __init__(
        self,
        count: int,
        backend: str = "spdz",
        *,
        fraction_bits: int = 20,
        value_bits: int = 32,
        timeout: float = 30.0,
        tls: bool = False,
        chunk: int = 1 << 18,
    ):
        if backend not in BACKENDS:
            raise ValueError(f"backend is {backend!r}: want one of {', '.join(BACKENDS)}")
        if count < 2 and backend != "plain":
            raise ValueError(f"{count} vectors: an encrypted average needs at least 2 parties")
        if not timeout > 0:
            raise ValueError(f"timeout is {timeout}: want a number of seconds above 0")
        self.count, self.backend, self.timeout, self.chunk = count, backend, timeout, chunk
        self.tls = tls
        self.bits = {
            "fraction_bits": fraction_bits,
            "value_bits": value_bits,
            "security_bits": min(32, 64 - value_bits),
        }
        self.cost = Cost()
        self.interference: Callable[[int, dict], None] = lambda id, job: None  # for tests: changes a party's orders
        self._folder: tempfile.TemporaryDirectory | None = None
        self._processes: list[subprocess.Popen] = []
        if backend == "additive" and value_bits != 32:
            raise ValueError(f"value_bits is {value_bits}: the backend 'additive' has 32")
        if backend in ("additive", "spdz"):
            Terms((1,) * count, 1, **self.bits)  # impossible bits are refused before any process starts

    def __enter__(self) -> Parties:
        if self.backend in ("additive", "spdz"):
            room = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
            self._folder = tempfile.TemporaryDirectory(prefix="fl-average-", dir=room)
            if self.tls:
                make_certificates(Path(self._folder.name), self._names)
            self._start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()
        if self._folder is not None:
            self._folder.cleanup()

    @property
    def _names(self) -> list[str]:
        return [*(f"party {i}" for i in range(self.count)), *(["dealer"] if self.backend == "spdz" else [])]

    def check(
        self, vectors: Sequence[torch.Tensor], num_examples: Sequence[int]
    ) -> tuple[list[torch.Tensor], list[int]]:
        """Vectors and counts as lists. Raises ValueError, naming the party, where one does not fit :meth:`average`."""
        vectors, counts = list(vectors), list(num_examples)
        if not vectors or len(vectors) != self.count or len(counts) != self.count:
            raise ValueError(f"{len(vectors)} vectors and {len(counts)} counts for {self.count} parties")
        if any(v.dtype != torch.float32 or v.ndim != 1 or len(v) != len(vectors[0]) for v in vectors):
            raise ValueError(
                f"vectors are {[(str(v.dtype), tuple(v.shape)) for v in vectors]}: want float32 [d], all alike"
            )
        for count in counts:
            if not 1 <= count < float("inf") or count != int(count):
                raise ValueError(f"num_examples holds {count}: each party's count must be a positive whole number")
        bits = (62, 16) if self.backend == "crypten" else (self.bits["value_bits"], self.bits["fraction_bits"])
        for id, vector in enumerate(vectors):
            weight = 0.0 if self.backend == "plain" else counts[id] / sum(counts)  # plain floats have no bound
            try:
                FixedPoint(*bits).check(vector.numpy(), weight, self.count)
            except ValueError as error:
                raise ValueError(f"vector of party {id}: {error}") from None
        return vectors, [int(count) for count in counts]

    def average(
        self, vectors: Sequence[torch.Tensor], num_examples: Sequence[int], out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """One average (float32 [d], into ``out`` where given) of as many vectors as there are parties.

        See :func:`encrypted_average`. ``out`` may be one of the vectors, but for the backend "plain".
        """
        vectors, counts = self.check(vectors, num_examples)
        if self.backend == "plain":
            return fedavg(vectors, counts, out)
        if self.backend == "crypten":
            from fl_utils.secure import crypten_average

            self.cost = Cost()
            found = crypten_average.average(vectors, counts, self.timeout, self.cost)
            return found if out is None else out.copy_(found)
        terms = Terms(tuple(counts), len(vectors[0]), chunk=self.chunk, protocol=self.backend, **self.bits)
        return self._averaged(terms, vectors, out)

    def rule(self, old: torch.Tensor, updates: Iterable[tuple[torch.Tensor, int]]) -> torch.Tensor:
        """A rule for :func:`fl_utils.federation.run`: FedAvg under encryption."""
        vectors, counts = zip(*updates, strict=True)
        return self.average([vector.cpu() for vector in vectors], counts).to(old.device)

    def _averaged(self, terms: Terms, vectors: Sequence[torch.Tensor], out: torch.Tensor | None) -> torch.Tensor:
        folder, names = Path(self._folder.name), self._names
        if not self._processes or any(process.poll() is not None for process in self._processes):
            self._stop()
            self._start()
        addresses = {}
        for id in range(self.count):
            self._say(id, {"do": "listen"})
            addresses[id] = self._hear(id)["address"]
        secret = secrets.token_hex(32)
        for id in range(len(names)):
            job = {"do": "average", "id": id, "addresses": addresses, "secret": secret, "timeout": self.timeout}
            job |= {"terms": asdict(terms), "tls": None, "vector": ""}
            if self.tls:
                job["tls"] = {
                    "authority": str(folder / "authority.pem"),
                    "certificate": str(folder / f"{names[id]}.pem"),
                    "key": str(folder / f"{names[id]}.key"),
                }
            if id < self.count:
                job["vector"] = str(folder / f"{id}.f32")
                vectors[id].numpy().astype("<f4", copy=False).tofile(job["vector"])
            self.interference(id, job)
            self._say(id, job)
        reports = {name: self._hear(id) for id, name in enumerate(names)}
        if not all(report["ok"] for report in reports.values()):
            self._stop()  # everybody starts anew
            raise AverageFailed(reports)
        self.cost = Cost(**{key: [report[key] for report in reports.values()] for key in Cost().__dict__})
        return self._collected([folder / f"{id}.f32" for id in range(self.count)], terms, out)

    def _collected(self, files: Sequence[Path], terms: Terms, out: torch.Tensor | None) -> torch.Tensor:
        """What the parties ended with, read piece by piece: all must have the same."""
        out = torch.empty(terms.length) if out is None else out
        with ExitStack() as stack:
            opened = [stack.enter_context(file.open("rb")) for file in files]
            for part in terms.chunks():
                length = part.stop - part.start
                first, *others = (np.fromfile(file, "<f4", length) for file in opened)
                for id, other in enumerate(others, 1):
                    if not np.array_equal(first, other):
                        about = {"ok": False, "error": "its average differs from party 0's"}
                        raise AverageFailed({f"party {id}": about})
                out.numpy()[part] = first
        return out

    def _start(self) -> None:
        self._processes = [orders.start("fl_utils.secure.party") for _ in self._names]

    def _stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()
        self._processes = []

    def _say(self, id: int, job: dict) -> None:
        orders.say(self._processes[id], job)

    def _hear(self, id: int) -> dict:
        report = orders.hear(self._processes[id])
        return report if self._processes[id].returncode is None else report | {"party": self._names[id], "phase": ""}
