"""What a batch will do, decided and checked before anything runs: which notebooks, with which values, on which data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_utils.runner import parameters
from fl_utils.runner.catalog import Entry, Refused, card_names


@dataclass(frozen=True)
class Planned:
    """One notebook of a batch: ``parameters`` are set in it; ``changed`` are those the user chose among them."""

    entry: Entry
    parameters: dict[str, Any]
    changed: dict[str, Any]
    scale: str = "embedded"

    @property
    def notebook(self) -> str:
        return self.entry.notebook

    @property
    def cost(self) -> dict[str, float]:
        """``minutes`` and ``memory_mb`` as the notebook states them for this scale; empty where it does not."""
        return self.entry.paper_scale if self.scale == "paper" else self.entry.default


def plan(
    entries: Sequence[Entry], user: Mapping[str, Any], scale: str, papers_dir: Path, cwd: Path
) -> tuple[list[Planned], list[str]]:
    """The jobs for ``entries``, the longest first, and what the user should know about them, a line each.

    Notebooks of no experiment (tutorials, the index) are left out at paper scale. Raises Refused for a notebook that
    cannot be read, an experiment without a paper scale, and a parameter that is unknown to all or does not fit.
    """
    broken = [f"{entry.notebook} {entry.problem}" for entry in entries if entry.problem]
    if broken:
        raise Refused("\n".join(broken))
    chosen, notes = list(entries), []
    if scale == "paper":
        chosen = [entry for entry in entries if entry.experiments]
        left_out = [entry.notebook for entry in entries if not entry.experiments]
        if left_out:
            notes.append(f"left out, since they have no paper scale: {', '.join(left_out)}")
    if not chosen:
        raise Refused(
            "nothing to run: the notebooks selected have no paper scale" if entries else "there are no notebooks"
        )
    notes += parameters.check_names(list(user), chosen)
    jobs = []
    for entry in chosen:
        scaled = parameters.at_paper_scale(entry, papers_dir) if scale == "paper" else {}
        values, changed = parameters.resolve(entry, scaled, user, cwd)
        if "scale" in user and "scale" in entry.parameters:
            said = values.get("scale", entry.parameters["scale"].default)
            if said != scale:  # it would label the sizes of one scale with the name of the other
                raise Refused(f"parameter scale: the scale of this run is {scale}; choose it with --scale {said}")
        jobs.append(Planned(entry, values, changed, scale))
    return sorted(jobs, key=lambda job: (-job.cost.get("minutes", 0), job.notebook)), notes


def data_sets(entry: Entry, values: Mapping[str, Any], parameters: Sequence[str] = ("dataset", "weights")) -> list[str]:
    """The cards that ``entry`` names in its parameters ``dataset`` and ``weights``, with ``values`` set."""
    names: list[str] = []
    for name in parameters:
        if name in entry.parameters:
            text = values.get(name, entry.parameters[name].default)
            names += card_names(str(text))
    return list(dict.fromkeys(names))


def need_data(jobs: Sequence[Planned]) -> dict[str, list[str]]:
    """``data_dir`` -> the cards that jobs want from there; ``""`` is the user's cache.

    A data set has to be in the folder that was given, but for those that are drawn here; weights may be there, and are
    fetched where they are not.
    """
    from fl_utils.data import cards

    needs: dict[str, list[str]] = {}
    for job in jobs:
        given = ""
        if "data_dir" in job.entry.parameters:
            given = job.parameters.get("data_dir", job.entry.parameters["data_dir"].default)
        names = data_sets(job.entry, job.parameters, ["dataset"])
        places = {name: given if _of_users(name) else "" for name in names}
        for name in data_sets(job.entry, job.parameters, ["weights"]):
            try:
                places.setdefault(name, given if given and cards.locate(name, given) else "")
            except (ValueError, OSError):
                places.setdefault(name, "")
        for name, folder in places.items():
            wanted = needs.setdefault(folder, [])
            wanted += [name] * (name not in wanted)
    return needs


def _of_users(name: str) -> bool:
    """Whether a user could have the data set ``name`` on disk; unknown names are somebody else's to refuse."""
    from fl_utils.data import cards

    try:
        return bool(cards.load(name).layouts)
    except ValueError:
        return True


def require_data(jobs: Sequence[Planned]) -> None:
    """Raise Refused if some job's data is neither in the folder given nor to be had from a package."""
    from fl_utils.data import cards

    problems = []
    for job in jobs:
        names = data_sets(job.entry, job.parameters, ["dataset"])
        if job.parameters.get("data_dir") and not any(map(_of_users, names)):
            held = f"{', '.join(names)} is made here" if names else "no data set is named"
            problems.append(
                f"{job.notebook}: data_dir is given, but nothing would be read from it ({held}): say which data set "
                "it holds with -p dataset NAME"
            )
    for folder, names in need_data(jobs).items():
        for name in names:
            try:
                cards.require([name], folder)
            except (ValueError, OSError) as error:
                users = ", ".join(job.notebook for job in jobs if name in data_sets(job.entry, job.parameters))
                problems.append(f"{error}\n(wanted by {users})")
    if problems:
        raise Refused("\n".join(dict.fromkeys(problems)))


def fetch_data(jobs: Sequence[Planned]) -> None:
    """Bring what the jobs want, and the user did not give, into the user's cache; once, before kernels start.

    Raises Refused where no source delivers.
    """
    from fl_utils.data import fetch

    for name in need_data(jobs).get("", []):
        try:
            fetch.fetch(name)
        except (ValueError, OSError) as error:
            raise Refused(str(error)) from None
