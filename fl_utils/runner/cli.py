"""The command ``fl-notebooks``: list, plan, run, report, export, book, data.

Exit codes: 0 all ran, 1 some failed (or a check found something), 2 refused before anything ran, 130 stopped by a
signal.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import time
from pathlib import Path
from typing import Any

import click

from fl_utils import paths
from fl_utils.runner import catalog
from fl_utils.runner.catalog import Refused
from fl_utils.runner.cli_data import data, print_table, refusing

STOPPED = 130


class Command(click.Group):
    """A group that turns a refusal into one message and code 2, Ctrl-C into 130, a full disk and the like into 1."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except Refused as error:
            click.echo(f"fl-notebooks: {error}", err=True)
            context.exit(2)
        except KeyboardInterrupt:
            click.echo("fl-notebooks: stopped", err=True)
            context.exit(STOPPED)
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            click.echo(f"fl-notebooks: {error}", err=True)
            context.exit(1)


class Layout:
    """The folders of a repository."""

    def __init__(self, root: Path):
        self.root, self.notebooks, self.papers, self.runs = root, root / "notebooks", root / "papers", root / "runs"

    def entries(self) -> list[catalog.Entry]:
        return catalog.scan(self.notebooks)


@click.group(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--root", type=click.Path(path_type=Path, file_okay=False, exists=True), hidden=True, default=paths.ROOT)
@click.pass_context
def main(context: click.Context, root: Path) -> None:
    """Notebooks of published results: list them, run them in parallel, set what comes out beside the papers."""
    context.obj = Layout(root.resolve())
    if any(context.obj.papers.glob("*/paper.yaml")):  # another repository's notebooks answer to its own papers
        os.environ["FL_NOTEBOOKS_PAPERS"] = str(context.obj.papers)


main.add_command(data)


@main.command("list")
@click.argument("selectors", nargs=-1, metavar="[SELECTOR]...")
@click.option("--json", "as_json", is_flag=True, help="As JSON, with every parameter.")
@click.pass_obj
def list_(layout: Layout, selectors: tuple[str, ...], as_json: bool) -> None:
    """Notebook, paper, experiments, title, minutes and memory (default and paper scale), data sets."""
    chosen = catalog.select(layout.entries(), selectors, layout.notebooks, Path.cwd())
    rows = [_listed(entry, layout.papers) for entry in chosen]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    table = [["notebook", "paper", "experiments", "default", "paper scale", "data sets", "at paper scale", "title"]]
    for row in rows:
        data = [", ".join(row["data_sets"][scale]) or "-" for scale in ("default", "paper")]
        table.append(
            [
                *(row["notebook"], row["paper"] or "-", ", ".join(row["experiments"]) or "-"),
                *(_cost(row["default"]), _cost(row["paper_scale"]), *data, row["title"]),
            ]
        )
    print_table(table)
    for row in rows:
        if row["problem"]:
            click.echo(f"fl-notebooks: {row['notebook']} {row['problem']}", err=True)


@main.command()
@click.argument("selectors", nargs=-1, metavar="[SELECTOR]...")
@click.option("-p", "pairs", nargs=2, multiple=True, metavar="NAME VALUE", help="Set a parameter; the last one counts.")
@click.option("-f", "file", type=click.Path(path_type=Path), help="Set the parameters of a YAML file.")
@click.option("--scale", type=click.Choice(["embedded", "paper"]), help="Sizes: embedded (default) or the paper's.")
@click.option("--jobs", type=click.IntRange(min=1), help="Notebooks at once (default: one per core, as memory allows).")
@click.option("--scheduler", metavar="ADDRESS", help="Run on the Dask cluster with this scheduler, not here.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the batch (default: runs/<UTC time>).")
@click.option("--resume", is_flag=True, help="Finish the batch in --out (default: the latest), keeping what is done.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="S", help="Seconds per notebook.")
@click.option("--save", is_flag=True, help="Write the outputs of successful default runs back to notebooks/.")
@click.pass_context
def run(context, selectors, pairs, file, scale, jobs, scheduler, out, resume, timeout, save) -> None:
    """Run notebooks: all, or those that a SELECTOR means (a paper, an experiment such as O2, a path, a folder, a glob).

    With --resume the batch's own selection, parameters and scale are repeated, where none are given; what was done with
    the same parameters is kept.
    """
    from fl_utils.runner import batch as batches
    from fl_utils.runner import parameters, plan, progress

    layout, cwd = context.obj, Path.cwd()
    if scheduler and jobs:
        raise Refused("--jobs is for this machine; with --scheduler the cluster's workers decide")
    if timeout is not None and math.isnan(timeout):
        raise Refused("--timeout nan: want a number of seconds")
    out = out.resolve() if out else None
    if out and out.is_relative_to(layout.notebooks.resolve()):
        raise Refused(f"--out {out} is in the notebooks folder; executed notebooks there would be taken for new ones")
    user = parameters.given(file, pairs, cwd)
    with contextlib.ExitStack() as stack:
        previous = stack.enter_context(batches.Batch.existing(layout.runs, out)) if resume else None
        if previous:
            about = previous.read()
            selectors = selectors or [job["notebook"] for job in about["jobs"]]
            user, scale = {**about["parameters"], **user}, scale or about["scale"]
        scale = scale or "embedded"
        chosen = catalog.select(layout.entries(), selectors, layout.notebooks, cwd)
        planned, notes = plan.plan(chosen, user, scale, layout.papers, cwd)
        left = [job for job in planned if not (previous and previous.is_done(job))]
        plan.require_data(left)
        for note in notes:
            click.echo(note, err=True)
        plan.fetch_data(left)

        stop = stack.enter_context(batches.interruptible())
        show = progress.open_progress(left)
        workers = jobs or batches.default_workers(left)
        place = batches.cluster(scheduler, show) if scheduler else batches.local(workers, show, stop)
        submit = stack.enter_context(place)
        batch = previous or stack.enter_context(batches.Batch.create(layout.runs, out))
        batch.describe(planned, selectors, user, scale, layout.root)
        trouble = batch.point_latest(layout.runs)
        if trouble:
            click.echo(f"fl-notebooks: {trouble}", err=True)
        started, spent = time.monotonic(), batches.cpu_seconds()
        finish = "finish with: fl-notebooks run --resume"
        finish += "" if batch.is_latest(layout.runs) else f" --out {shlex.quote(str(batch.folder))}"
        try:
            with show:
                results = batches.run(batch, left, submit, show, stop, timeout, layout.notebooks if save else None)
        except OSError as error:  # the disk is full, the folder is gone
            raise OSError(f"{batch.folder} cannot be written ({error.strerror or error}); {finish}") from None
        if stop.is_set() and len(results) < len(left):
            done = len(planned) - len(left) + sum(result.status == "ok" for result in results)
            click.echo(f"stopped: {done} of {len(planned)} notebooks are done; {finish}")
            context.exit(STOPPED)
        seconds = time.monotonic() - started
        busy = None if scheduler else (batches.cpu_seconds() - spent) / (seconds * batches.cores())
        _summary(batch.folder, results, len(planned) - len(left), seconds, busy)
    context.exit(1 if any(result.status != "ok" for result in results) else 0)


@main.command("plan")
@click.argument("selectors", nargs=-1, required=True, metavar="SELECTOR...")
@click.option("-p", "pairs", nargs=2, multiple=True, metavar="NAME VALUE", help="Set a parameter; the last one counts.")
@click.option("-f", "file", type=click.Path(path_type=Path), help="Set the parameters of a YAML file.")
@click.option("--scale", type=click.Choice(["embedded", "paper"]), default="embedded", help="Sizes, as for run.")
@click.option("--limit", type=click.FloatRange(min=1), default=120, show_default=True, help="Seconds for each probe.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, with everything that is known.")
@click.pass_context
def plan_(context, selectors, pairs, file, scale, limit, as_json) -> None:
    """Predict minutes, memory and bytes of notebooks on this machine, and say which data they would need.

    Each is run as a probe: a few steps of each kind of training are done and timed, the others are counted.
    """
    from fl_utils.runner import forecast

    layout, cwd = context.obj, Path.cwd()
    chosen = catalog.select(layout.entries(), selectors, layout.notebooks, cwd)
    with refusing():
        found = forecast.command(chosen, pairs, file, scale, limit, layout.papers, cwd)
    if as_json:
        click.echo(json.dumps([forecast.as_json(one) for one in found], indent=1))
        return
    print_table(forecast.table(found))
    for line in forecast.details(found):
        click.echo(line)


def _summary(folder: Path, results: list, kept: int, seconds: float, busy: float | None) -> None:
    """A few lines for the terminal, and the report."""
    from fl_utils.runner import report
    from fl_utils.runner.progress import duration, outcome_line

    failed = [result for result in results if result.status != "ok"]
    before = f", {kept} done before" if kept else ""
    at_work = "" if busy is None else f", cores at work {busy:.0%} of the time"
    click.echo(f"{len(results) - len(failed)} ran, {len(failed)} failed{before}; {duration(seconds)}{at_work}")
    for result in failed:
        click.echo(f"  {outcome_line(result)}")
    summary = report.write(folder)
    if summary.claims:
        click.echo(f"{summary.holding} of {summary.claims} claims hold")
    for problem in summary.problems:
        click.echo(f"problem: {problem}")
    click.echo(f"report: {folder / 'index.html'}")


@main.command()
@click.argument("directory", type=click.Path(path_type=Path), required=False, metavar="DIR")
@click.option("--readme", is_flag=True, help="Also write the generated sections of README.md.")
@click.pass_obj
def report(layout: Layout, directory: Path | None, readme: bool) -> None:
    """Write results.csv, claims.csv and index.html into the batch DIR (default: the latest)."""
    from fl_utils.runner import picture
    from fl_utils.runner import report as reports

    try:
        if directory is not None or not readme:
            folder = directory or layout.runs / "latest"
            click.echo(reports.write(folder).text)
        if readme:
            changed = reports.update_readme(layout.root / "README.md", layout.notebooks)
            if set(picture.SHOWN) <= {entry.notebook for entry in layout.entries()}:
                picture.write(layout.notebooks, layout.papers / "picture.png")
            click.echo("README.md is written anew" if changed else "README.md is up to date")
    except (reports.ReportError, FileNotFoundError, ValueError) as error:
        raise Refused(str(error)) from None


@main.command()
@click.argument("notebook", metavar="NOTEBOOK")
@click.option("--to", required=True, metavar="RUNTIME", help="coreml, litert, executorch or onnx.")
@click.option("--bits", type=int, default=32, show_default=True, help="Of the weights; what there is, RUNTIME decides.")
@click.option("--mode", default="", help="How widths below 16 are made (default: the runtime's first).")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder (default: runs/exports/NOTEBOOK)."
)
@click.pass_context
def export(context, notebook, to, bits, mode, out) -> None:
    """Write the model of NOTEBOOK as a file that a phone can run, and its contract, a JSON, beside it.

    The model is the one that the notebook's latest successful run left; without one, the notebook is run first.
    """
    from fl_utils.runner import export as exports

    with refusing():
        code = exports.command(context.obj, notebook, to, bits, mode, out, Path.cwd())
    context.exit(code)


@main.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder (default: build/book).")
@click.pass_context
def book(context: click.Context, out: Path | None) -> None:
    """Make a site of all notebooks as they are saved: read offline at OUT/html/index.html; nothing is executed."""
    from fl_utils.book import site

    with refusing():
        built = site.build(context.obj.root, out or context.obj.root / "build" / "book")
    for problem in built.problems:
        click.echo(f"problem: {problem}", err=True)
    click.echo(f"{built.pages} pages: {built.index}")
    context.exit(1 if built.problems else 0)


def _listed(entry: catalog.Entry, papers_dir: Path) -> dict[str, Any]:
    from fl_utils.runner import parameters, plan

    at_paper, problem = [], entry.problem
    if entry.paper and parameters.scale_file(entry, papers_dir).is_file():
        try:
            at_paper = plan.data_sets(entry, parameters.at_paper_scale(entry, papers_dir))
        except Refused as error:
            problem = problem or str(error)
    return {
        "notebook": entry.notebook,
        "paper": entry.paper,
        "experiments": list(entry.experiments),
        "title": entry.title,
        "default": entry.default or None,
        "paper_scale": entry.paper_scale or None,
        "data_sets": {"default": plan.data_sets(entry, {}), "paper": at_paper},
        "parameters": [
            {"name": each.name, "type": each.type, "default": each.default, "comment": each.comment}
            for each in entry.parameters.values()
        ],
        "problem": problem,
    }


def _cost(cost: dict[str, float] | None) -> str:
    return f"{cost['minutes']:g} min {cost['memory_mb']:.0f} MB" if cost else "-"
