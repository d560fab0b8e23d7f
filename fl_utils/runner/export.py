"""``fl-notebooks export``: the model that a notebook's run left (:func:`fl_utils.export.keep`), as a phone's file."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fl_utils.export import export, run_exported, widths
from fl_utils.export.kept import Kept, kept
from fl_utils.runner import batch as batches
from fl_utils.runner import catalog, plan, progress
from fl_utils.runner.catalog import Entry, Refused

if TYPE_CHECKING:
    from fl_utils.runner.cli import Layout

CALL = re.compile(r"\bkeep\(")


def command(layout: Layout, selector: str, to: str, bits: int, mode: str, out: Path | None, cwd: Path) -> int:
    """Export the model of the one notebook that ``selector`` means, and say what was written; the exit code.

    1 where the notebook has to be run and fails. Raises ValueError (Refused is one) before anything runs: on a runtime,
    width or mode that does not exist, and a selector that does not mean one notebook that keeps a model.
    """
    mode = widths.choose(to, bits, mode)
    entry = chosen(layout, selector, cwd)
    stem = entry.notebook.removesuffix(".ipynb")
    found = latest(layout.runs, stem)
    if found is None:
        click.echo(f"{entry.notebook} has left no model yet: running it", err=True)
        failure = run(layout, entry, cwd)
        if failure:
            click.echo(f"fl-notebooks: {failure}", err=True)
            return 1
        found = latest(layout.runs, stem)
        if found is None:
            raise Refused(f"{entry.notebook} ran and left no model: its call of keep was not reached")
    model, examples = found.load()
    contract = export(
        model,
        found.shape,
        found.labels,
        to,
        (out or layout.runs / "exports" / stem).resolve(),
        bits,
        name=f"{Path(stem).name}-{bits}bit",
        version=found.version,
        mode=mode,
        scale=found.scale,
        bias=found.bias,
        calibration=examples if len(examples) else None,
    )
    click.echo(f"the model of {found.path}")
    click.echo(f"{contract.model_path}: {contract.bytes:,} bytes, {bits} bits, {mode}, {contract.runtime_version}")
    click.echo(f"{contract.path}")
    if len(examples):
        click.echo(_compared(model, found, contract.path, examples))
    return 0


def chosen(layout: Layout, selector: str, cwd: Path) -> Entry:
    """The one notebook that ``selector`` means. Raises Refused where it means several, or one that keeps no model."""
    entries = layout.entries()
    means = catalog.select(entries, [selector], layout.notebooks, cwd)
    able = [entry.notebook for entry in entries if keeps(entry)]
    if len(means) > 1:
        able = [entry.notebook for entry in means if keeps(entry)] or able
        raise Refused(f"{selector!r} means {len(means)} notebooks: name one; these leave a model: {', '.join(able)}")
    if means[0].problem:
        raise Refused(f"{means[0].notebook} {means[0].problem}")
    if means[0].notebook not in able:
        raise Refused(f"{means[0].notebook} leaves no model to export; these do: {', '.join(able) or 'none'}")
    return means[0]


def keeps(entry: Entry) -> bool:
    """Whether a code cell of the notebook calls ``keep``."""
    cells = [] if entry.problem else json.loads(entry.source)["cells"]
    return any(CALL.search("".join(cell["source"])) for cell in cells if cell.get("cell_type") == "code")


def latest(runs: Path, stem: str) -> Kept | None:
    """The newest model that a run of the notebook ``stem`` left: a batch in which it succeeded, or a run in Jupyter."""
    ended = [batch for batch in runs.glob("*") if not batch.is_symlink() and _succeeded(batch, stem)]
    left = [path for root in (*ended, runs) if (path := root / "models" / f"{stem}.safetensors").is_file()]
    return kept(max(left, key=lambda path: path.stat().st_mtime_ns)) if left else None


def _succeeded(batch: Path, stem: str) -> bool:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return json.loads((batch / f"{stem}.json").read_text(encoding="utf-8"))["status"] == "ok"
    return False


def run(layout: Layout, entry: Entry, cwd: Path) -> str:
    """Run one notebook at its defaults as a batch of its own; "" or how it failed. Ctrl-C raises KeyboardInterrupt."""
    planned, _ = plan.plan([entry], {}, "embedded", layout.papers, cwd)
    plan.require_data(planned)
    plan.fetch_data(planned)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(batches.interruptible())
        show = progress.open_progress(planned)
        submit = stack.enter_context(batches.local(1, show, stop))
        batch = stack.enter_context(batches.Batch.create(layout.runs, None))
        batch.describe(planned, [entry.notebook], {}, "embedded", layout.root)
        batch.point_latest(layout.runs)
        with show:
            results = batches.run(batch, planned, submit, show, stop)
        if stop.is_set() and not results:
            raise KeyboardInterrupt
    (result,) = results
    return "" if result.status == "ok" else f"{entry.notebook} {result.status}: {result.error}"


def _compared(model, found: Kept, contract: Path, examples) -> str:
    """How often the exported model predicts what torch does, on the kept example images."""
    import numpy as np
    import torch

    scale, bias = (torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1) for values in (found.scale, found.bias))
    pixels = torch.from_numpy(np.ascontiguousarray(examples.transpose(0, 3, 1, 2))).float()
    with torch.inference_mode():
        wanted = model(pixels * scale + bias).argmax(1).numpy()
    same = int((run_exported(contract, examples).argmax(1) == wanted).sum())
    return f"same prediction as torch on {same} of {len(examples)} example images"
