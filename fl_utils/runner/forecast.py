"""What notebooks would take on this machine, before they are run: minutes, memory, bytes sent, and which data.

A notebook is run as a probe (:mod:`fl_utils.probe`) in a kernel of its own, with the very parameters that are asked
about: it loads its data and builds its models, does a few steps of each kind of training, and counts the rest. What it
shows is thrown away. Where data is not on this machine, made-up files of the official size and layout stand in for it
(:mod:`fl_utils.runner.stand_ins`); where there are none to be made, the notebook's default data does, and the figures
are scaled by the numbers of examples that the cards give, or there are none.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fl_utils import probe
from fl_utils.runner import jobs
from fl_utils.runner.catalog import Entry, Refused, card_names
from fl_utils.runner.plan import Planned, data_sets, need_data

LIMIT = 120.0  # seconds for one probe
HERE, TO_FETCH, TO_BRING = "here", "to be fetched", "to be brought"


@dataclass(frozen=True)
class Data:
    """A data set or weights that a notebook wants: ``bytes`` to be fetched (None where unknown), and the place of the
    real thing, its size and how it must lie in data_dir."""

    name: str
    state: str
    bytes: int | None
    place: str
    size: str
    layout: str


@dataclass(frozen=True)
class Forecast:
    """What one notebook would take.

    cpu_seconds: on one core, None where it cannot be told. memory_mb: at its peak. bytes_sent: between the server and
    its clients, both ways, in federations of several. ``at_least``: the probe did not get to the end, so the figures
    are of the part that it saw. ``rough``: they were scaled. notes: what else is to be known, a sentence each.
    stated: minutes and memory_mb as the notebook's metadata has them.
    """

    notebook: str
    scale: str
    cpu_seconds: float | None
    memory_mb: float | None
    bytes_sent: int | None
    at_least: bool = False
    rough: bool = False
    data: list[Data] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    probe_seconds: float = 0.0
    stated: dict[str, float] = field(default_factory=dict)

    @property
    def minutes(self) -> float | None:
        """On one core."""
        return None if self.cpu_seconds is None else self.cpu_seconds / 60


@dataclass(frozen=True)
class Measured:
    """One run of a notebook: its kernel's CPU seconds and peak memory, with what a probe left out beside them."""

    status: str
    error: str
    cpu_seconds: float
    memory_mb: float
    left_out: dict[str, float]


def forecast(planned: Planned, limit: float = LIMIT, stopped: Callable[[], bool] = lambda: False) -> Forecast:
    """Probe one notebook for at most ``limit`` seconds. ``stopped``: asked now and then; once true it ends."""
    data = wanted(planned)
    known = {"notebook": planned.notebook, "scale": planned.scale, "data": data, "stated": planned.cost}
    folder = jobs.scratch()
    try:
        values, notes, ratio = prepare(planned, data, folder / "data")
        if values is None:
            return Forecast(cpu_seconds=None, memory_mb=None, bytes_sent=None, notes=notes, **known)
        found = measure(planned.entry, values, folder, limit, stopped, cut_short=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    at_least = found.status != "ok"
    if found.status == "timeout":
        notes.append(f"the probe was not done after {limit:g} s (--limit): at least what is said here")
    elif at_least:
        notes.append(f"the probe ended early ({found.error}): at least what is said here")
    return Forecast(
        cpu_seconds=round(found.cpu_seconds + ratio * found.left_out["seconds"], 1),
        memory_mb=round(found.memory_mb),
        bytes_sent=found.left_out["bytes_up"] + found.left_out["bytes_down"],
        at_least=at_least,
        rough=ratio != 1,
        notes=notes,
        probe_seconds=round(found.cpu_seconds, 1),
        **known,
    )


def measure(
    entry: Entry,
    values: Mapping[str, Any],
    folder: Path,
    limit: float | None = None,
    stopped: Callable[[], bool] = lambda: False,
    cut_short: bool = False,
) -> Measured:
    """Run ``entry`` with the parameters ``values`` in a kernel of its own, whole or ``cut_short`` as a probe.

    Files that it writes for the runner (checkpoints, models) go below ``folder``.
    """
    from fl_utils.runner import kernel

    checkpoints, accounts = folder / "checkpoints" / Path(entry.notebook).with_suffix(""), folder / "accounts"
    checkpoints.mkdir(parents=True, exist_ok=True)
    accounts.mkdir(exist_ok=True)
    job = jobs.Job(entry.notebook, entry.source, entry.sha256, dict(values), "", str(checkpoints), limit)
    environment = jobs.environment(job, checkpoints)
    environment.pop(probe.FOLDER, None)
    if cut_short:
        environment[probe.FOLDER] = str(accounts)
    deadline = None if limit is None else time.monotonic() + limit
    outcome = kernel.execute(job, environment, deadline, lambda event: None, stopped)
    return Measured(outcome.status, outcome.error, outcome.cpu_seconds, outcome.peak_mb, probe.read(accounts))


def wanted(planned: Planned) -> list[Data]:
    """The data sets and weights that the notebook would read, and where each stands on this machine."""
    from fl_utils.data import cards, fetch

    found = {}
    for folder, names in need_data([planned]).items():
        for name in names:
            about = fetch.status(name)
            try:
                cards.require([name], folder)
                state = TO_FETCH if not folder and about["state"] != "fetched" else HERE
            except (ValueError, OSError):
                state = TO_BRING
            size = about["bytes"] if state == TO_FETCH else None
            found[name] = Data(name, state, size, **about["official"])
    order = data_sets(planned.entry, planned.parameters)
    return [found[name] for name in order]


def prepare(planned: Planned, data: Sequence[Data], folder: Path) -> tuple[dict[str, Any] | None, list[str], float]:
    """The parameters of the probe, notes on how they differ from those asked about, and by what to scale the rest.

    The parameters are None where nothing can stand in for data that is not here.
    """
    from fl_utils.runner import stand_ins

    values, notes, ratio, entry = dict(planned.parameters), [], 1.0, planned.entry
    absent = [one.name for one in data if one.state != HERE]
    weights = [name for name in data_sets(entry, values, ["weights"]) if name in absent]
    if weights:
        values["weights"] = ""
        notes.append(f"probed from random weights: {', '.join(weights)} is not here")
    names = data_sets(entry, values, ["dataset"])
    missing = [name for name in names if name in absent]
    if missing and all(name in stand_ins.MAKERS for name in missing):
        made = [name for name in names if name in stand_ins.MAKERS]
        stand_ins.make(made, folder)
        values["data_dir"] = str(folder)
        notes.append(f"probed with made-up data of the size of {', '.join(missing)}")
    elif missing:
        default = entry.parameters["dataset"].default
        usual = card_names(default)
        here, there = examples(usual), examples(names)
        instead = f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not here"
        if not usual or here is None or there is None:
            return None, [*notes, f"not predicted without the data: {instead}"], ratio
        values = {name: value for name, value in values.items() if name not in ("dataset", "data_dir")}
        ratio = there / here
        notes.append(f"rough: with {', '.join(usual)} in place of {', '.join(names)}, times {ratio:.3g}")
    if values.get("device") == "cuda" and not _has_cuda():
        values["device"] = "cpu"
        notes.append("predicted for the CPU: this machine has no CUDA device")
    return values, notes, ratio


def examples(names: Sequence[str]) -> int | None:
    """How many examples the cards ``names`` have together, or None where one of them does not say."""
    from fl_utils.data import cards

    counts = [_count(value) for name in names for value in cards.load(name).examples.values()]
    known = all(cards.load(name).examples for name in names)
    return None if not known or None in counts else sum(count or 0 for count in counts)


def _count(value: object) -> int | None:
    """A number of examples, or the product of a table's: ``{pens: 60, characters: 2380}``."""
    if isinstance(value, dict):
        product = 1
        for each in map(_count, value.values()):
            if each is None:
                return None
            product *= each
        return product
    return value if isinstance(value, int) else None


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def command(
    chosen: Sequence[Entry],
    pairs: Sequence[tuple[str, str]],
    file: Path | None,
    scale: str,
    limit: float,
    papers_dir: Path,
    cwd: Path,
) -> list[Forecast]:
    """``fl-notebooks plan``: probe one notebook after the other, so that none disturbs another.

    Parameters are taken and refused as ``run`` takes them. Raises KeyboardInterrupt where a signal stops it.
    """
    import click

    from fl_utils.runner import batch, parameters, plan

    if math.isnan(limit):
        raise Refused("--limit nan: want a number of seconds")
    planned, notes = plan.plan(chosen, parameters.given(file, pairs, cwd), scale, papers_dir, cwd)
    for note in notes:
        click.echo(note, err=True)
    found = []
    with batch.interruptible() as stop:
        for number, job in enumerate(planned, 1):
            click.echo(f"probing {job.notebook} ({number} of {len(planned)})", err=True)
            found.append(forecast(job, limit, stop.is_set))
            if stop.is_set():
                raise KeyboardInterrupt
    return found


def as_json(found: Forecast) -> dict[str, Any]:
    """One forecast as ``plan --json`` prints it."""
    return {**{name: value for name, value in vars(found).items() if name != "data"}, "minutes": found.minutes} | {
        "data": [vars(one) for one in found.data]
    }


def table(found: Sequence[Forecast]) -> list[list[str]]:
    """Rows for the terminal, the first of them heads."""
    rows = [["notebook", "scale", "minutes on one core", "memory", "sent", "data"]]
    for one in found:
        mark = ">= " if one.at_least else "about " if one.rough else ""
        rows.append(
            [
                one.notebook,
                one.scale,
                "not predicted" if one.minutes is None else f"{mark}{figure(one.minutes)}",
                "-" if one.memory_mb is None else f"{'>= ' * one.at_least}{one.memory_mb:.0f} MB",
                "-" if one.bytes_sent is None else f"{'>= ' * one.at_least}{size(one.bytes_sent)}",
                ", ".join(_state(each) for each in one.data) or "-",
            ]
        )
    return rows


def details(found: Sequence[Forecast]) -> list[str]:
    """What the table has no room for: a line for each note, and where data is to be had."""
    lines = []
    for one in found:
        notes = list(one.notes)
        if one.cpu_seconds is None and one.stated:
            notes.append(f"it says of itself: {one.stated['minutes']:g} min, {one.stated['memory_mb']:.0f} MB")
        lines += [f"{one.notebook}: {note}" for note in notes]
    for each in {each.name: each for one in found for each in one.data if each.state != HERE}.values():
        amount = f" ({size(each.bytes)}), by run" if each.bytes else ""
        how = f"to be had from {each.place} ({each.size}); with -p data_dir FOLDER, in which lie {each.layout}"
        lines.append(f"{each.name} is {each.state}{amount}; {how}")
    return lines


def figure(minutes: float) -> str:
    """``0.42``, ``12``, ``2,900``: two digits and no false precision."""
    return f"{minutes:.2g}" if minutes < 10 else f"{float(f'{minutes:.2g}'):,.0f}"


def size(number: int) -> str:
    """Bytes with the unit that fits."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number} B"


def _state(data: Data) -> str:
    amount = f", {size(data.bytes)}" if data.bytes else ""
    return data.name if data.state == HERE else f"{data.name} ({data.state}{amount})"
