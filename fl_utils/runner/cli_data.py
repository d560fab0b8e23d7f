"""``fl-notebooks data``: the data sets of this collection, and where each stands on this machine."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import click

from fl_utils.runner import catalog
from fl_utils.runner.catalog import Refused


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """A data card that cannot be read is a refusal."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise Refused(str(error)) from None


def print_table(rows: list[list[str]]) -> None:
    """Print columns, as wide as they need; the first row is their heads."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=True)]
        click.echo("  ".join([*cells, row[-1]]).rstrip())


@click.group()
def data() -> None:
    """The data sets: where each stands on this machine."""


@data.command("list")
@click.option("--json", "as_json", is_flag=True, help="As JSON, with every file.")
def data_list(as_json: bool) -> None:
    """Each card: whether its files are here, their size, and where the real thing is to be had."""
    from fl_utils.data import cards, fetch

    with refusing():
        rows = [fetch.status(name) for name in cards.names()]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    table = [["data set", "state", "MB", "title", "official place"]]
    for row in rows:
        size = "-" if row["bytes"] is None else f"{row['bytes'] / 1e6:.1f}"
        table.append([row["name"], row["state"], size, row["title"], row["official"]["place"]])
    print_table(table)


@data.command("fetch")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.pass_context
def data_fetch(context: click.Context, names: tuple[str, ...]) -> None:
    """Bring data sets into this user's cache, verified."""
    from fl_utils.data import cards, fetch

    known, failed = cards.names(), False
    for name in names:
        if name not in known:
            near = catalog.did_you_mean(name, known) or ";"
            raise Refused(f"unknown data set {name!r}{near} these exist: {', '.join(known)}")
    for name in names:
        try:
            for path in fetch.fetch(name).values():
                click.echo(path)
        except (OSError, ValueError) as error:
            click.echo(f"fl-notebooks: {error}", err=True)
            failed = True
    context.exit(1 if failed else 0)


@data.command("check")
@click.pass_context
def data_check(context: click.Context) -> None:
    """Compute the sha256 of every cached file anew; exit code 1 if one is not what its card says."""
    from fl_utils.data import fetch

    with refusing():
        problems = fetch.check()
    for problem in problems:
        click.echo(problem)
    if not problems:
        click.echo("every file in the cache is what its card says")
    context.exit(1 if problems else 0)
