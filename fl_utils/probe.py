"""Work cut short, to learn what the whole of it would cost: the machinery behind ``fl-notebooks plan``.

Where the environment names a folder in ``FL_NOTEBOOKS_PROBE``, loops over minibatches do only the first few steps of
each kind of work (a model, a shape of batch, settings). The CPU seconds of these are measured, the other steps are left
out, and what they would have taken is added to an account, which every process keeps as a file in that folder. So a
notebook runs to its end in little time, and the seconds it took and those on the account are what it would take.

Results of such a run are worth nothing and are never recorded. Without the variable all of this is one look at the
environment per loop.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    import torch

FOLDER = "FL_NOTEBOOKS_PROBE"
ENOUGH = 0.6  # CPU seconds of measured steps of one kind ...
LONG = 3.0  # ... or one step, where it takes as long as this
FEW = 2  # measured steps at least
SHORT, MORE, LOOPS = 0.05, 2, 30  # of steps shorter than this, so many more in each of the next so many loops
SIZES = 4  # sizes of smaller batches that are measured before others are read off between them
UNHURRIED = 1.0  # CPU seconds of a federation's rounds before whole rounds are left out
ROUNDS = 3  # of them at least
NO_PART = ("learning_rate", "local_epochs", "batch_size")  # settings that a step's cost does not depend on
WIDTH = 400  # bytes of an account's file


@dataclass
class Work:
    """The measured steps of one kind, by examples in the batch. The first of each size is left out of ``seconds``, and
    of the others the last third counts: caches and memory take a while to warm up."""

    seconds: dict[int, list[float]] = field(default_factory=dict)
    loops: int = 0  # in which the cost was known from the start

    def add(self, size: int, seconds: float) -> None:
        """One more step."""
        if size in self.seconds:
            self.seconds[size].append(seconds)
        else:
            self.seconds[size] = []

    def step(self, size: int, main: bool = True) -> float | None:
        """Seconds of a step on ``size`` examples, or None while more are to be measured.

        main: most steps of this loop have this size. Others (the last batch of an epoch) need fewer measurements, and
        none of their own where smaller and larger ones are known: then theirs lies between.
        """
        own = self.seconds.get(size, [])
        if own and ((len(own) >= FEW and (sum(own) >= ENOUGH or not main)) or sum(own) >= LONG):
            return _later(own)
        known = sorted((other, _later(each)) for other, each in self.seconds.items() if len(each) >= FEW)
        below = [entry for entry in known if entry[0] < size]
        above = [entry for entry in known if entry[0] > size]
        if len(known) < SIZES or not below or not above:
            return None
        (low, least), (high, most) = below[-1], above[0]
        return least + (most - least) * (size - low) / (high - low)


def _later(seconds: list[float]) -> float:
    late = seconds[-max(1, len(seconds) // 3) :]
    return sum(late) / len(late)


class Account:
    """What one process left out: CPU ``seconds``, and the bytes that its federations sent.

    The file ``<process id>.json`` in ``folder`` holds these three at any time: the process may be killed.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.process_time):
        self.folder, self.clock, self.pid = folder, clock, os.getpid()
        self.seconds, self.bytes_up, self.bytes_down = 0.0, 0, 0
        self.works: dict[tuple, Work] = {}
        self.patterns: dict[tuple, torch.Tensor] = {}  # outputs of a batch of each kind, to be repeated
        self._file = os.open(folder / f"{self.pid}.json", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)

    def now(self) -> float:
        """The CPU time at which an unshortened run would be here."""
        return self.clock() + self.seconds

    def left_out(self, seconds: float) -> None:
        """Add work that is not done."""
        self.seconds += seconds
        self.keep()

    def keep(self) -> None:
        """Bring the file up to date."""
        text = json.dumps({"seconds": self.seconds, "bytes_up": self.bytes_up, "bytes_down": self.bytes_down})
        os.pwrite(self._file, text.ljust(WIDTH).encode() + b"\n", 0)

    def few(self, batches: Iterable, examples: int, size: int, kind: tuple) -> Iterator:
        """The first few of ``batches``, which cut ``examples`` into batches of ``size`` and a smaller last one."""
        work = self.works.setdefault(kind, Work())
        whole, last = divmod(examples, size)
        iterator = iter(batches)
        for count, number in ((whole, size), (int(last > 0), last)):
            main = number == size or not whole
            more = 0
            if main and (work.step(number) or SHORT) < SHORT and work.loops < LOOPS:
                more, work.loops = MORE, work.loops + 1  # steps often get faster in a process' first seconds
            for done in range(count):
                known = work.step(number, main)
                if known is not None and done >= more:
                    self.left_out((count - done) * known)
                    break
                batch = next(iterator)
                started = self.now()
                yield batch if main else _first(batch, number)
                work.add(number, self.now() - started)


def _first(batch, number: int):
    """The first examples of a batch, which may be a tuple of tensors."""
    return tuple(part[:number] for part in batch) if isinstance(batch, tuple) else batch[:number]


_account: Account | None = None


def account() -> Account | None:
    """This process' account, or None where nothing is to be cut short."""
    global _account
    folder = os.environ.get(FOLDER)
    if not folder:
        return None
    if _account is None or _account.folder != Path(folder):
        _account = Account(Path(folder))
    elif _account.pid != os.getpid():  # a forked process: it knows what steps cost, and has left out nothing yet
        works, _account = _account.works, Account(Path(folder))
        _account.works = works
    return _account


def read(folder: Path) -> dict[str, float]:
    """``seconds``, ``bytes_up`` and ``bytes_down`` of all accounts in ``folder``, added up."""
    total = {"seconds": 0.0, "bytes_up": 0, "bytes_down": 0}
    for path in folder.glob("*.json"):
        text = path.read_text(encoding="utf-8").strip()
        for name, value in (json.loads(text) if text else {}).items():
            total[name] += value
    return total


def few(batches: Iterable, examples: int, size: int, *about) -> Iterable:
    """``batches`` of ``size`` of the ``examples`` (the last may be smaller), or under a probe the first few of them.

    about: what a step's cost depends on: the model, tensors (but for their first dimension), settings.
    """
    kept = account()
    return batches if kept is None else kept.few(batches, examples, size, tuple(map(_kind, about)))


def first(batches: Iterable, count: int, done: int = 6) -> Iterator:
    """``batches``, of which there are ``count``, or under a probe the first so many of them, whatever they take.

    For parties that work in step with each other: all of them leave out the same.
    """
    kept, taken = account(), []
    for number, batch in enumerate(batches):
        if kept is not None and number == done:
            kept.left_out((count - done) * sum(taken[1:]) / len(taken[1:]))
            return
        started = kept.now() if kept else 0.0
        yield batch
        taken.append(kept.now() - started if kept else 0.0)


def outputs(function: Callable, parts: Sequence[torch.Tensor], *about) -> list[torch.Tensor]:
    """``function`` of each part, tensors [n, ...] of a split; under a probe of the first few, and one of these for all.

    about: as for :func:`few`.
    """
    kept = account()
    if kept is None:
        return [function(part) for part in parts]
    kind = ("outputs", *map(_kind, about), _kind(parts[0]))
    for part in kept.few(parts, sum(map(len, parts)), len(parts[0]), kind):
        found = function(part)
        if len(found) > len(kept.patterns.get(kind, ())):
            kept.patterns[kind] = found
    if len(kept.patterns.get(kind, ())) < len(parts[0]):
        kept.patterns[kind] = function(parts[0])
    return [kept.patterns[kind][: len(part)] for part in parts]


def sent(bytes_up: int, bytes_down: int) -> None:
    """Under a probe: a federation of several clients sent so many bytes, left out or not."""
    kept = account()
    if kept is not None:
        kept.bytes_up, kept.bytes_down = kept.bytes_up + bytes_up, kept.bytes_down + bytes_down
        kept.keep()


def rounds() -> Rounds | None:
    """Under a probe: what decides which rounds of a federation are left out."""
    kept = account()
    return None if kept is None else Rounds(kept)


_printed: WeakKeyDictionary = WeakKeyDictionary()


def _kind(part) -> object:
    import torch

    if isinstance(part, torch.nn.Module):
        if part not in _printed:
            _printed[part] = str(part)
        return _printed[part], part.training
    if isinstance(part, torch.Tensor):
        return tuple(part.shape[1:]), str(part.dtype), str(part.device)
    if is_dataclass(part):
        return tuple(_kind(getattr(part, each.name)) for each in fields(part) if each.name not in NO_PART)
    if isinstance(part, partial):
        return _kind(part.func), str(part.args), str(part.keywords)
    return getattr(part, "__qualname__", None) or repr(part)


class Rounds:
    """The rounds of one federation under a probe. After some, whole rounds are left out: there may be thousands.

    What one would take is in proportion to the examples that its clients train on.
    """

    def __init__(self, kept: Account):
        self._account, self._began = kept, kept.clock()
        self._known: dict[bool, list[tuple[float, float]]] = {}  # evaluated or not -> seconds and examples of rounds
        self._open: tuple[bool, float, float] | None = None

    def skip(self, this_round: Any, past: Sequence[Any], examples: float, evaluated: bool) -> bool:
        """Whether ``this_round``, about to begin, is left out; if so it is filled in after the last one like it.

        this_round, past: of :class:`fl_utils.cohorts.Round`. examples: of its cohort, times local epochs.
        """
        now = self._account.now()
        if self._open is not None and len(past) > 1:  # the first has warm-up in it
            kind, started, amount = self._open
            self._known.setdefault(kind, []).append((now - started, amount))
        known = self._known.get(evaluated, [])
        if len(known) < ROUNDS or self._account.clock() - self._began < UNHURRIED:
            self._open = (evaluated, now, examples)
            return False
        self._open = None
        seconds, amount = map(sum, zip(*known, strict=True))
        self._account.left_out(seconds / amount * examples)
        like = next(each for each in reversed(past) if (each.evaluation is not None) == evaluated)
        share = len(this_round.cohort) / len(like.cohort)
        this_round.bytes_down, this_round.bytes_up = round(like.bytes_down * share), round(like.bytes_up * share)
        this_round.train_loss, this_round.evaluation = like.train_loss, like.evaluation
        return True
