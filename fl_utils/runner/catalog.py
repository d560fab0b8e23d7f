"""The notebooks of a folder: what each says about itself, and which of them a selector means.

Reads the files as JSON and the parameters cell as a syntax tree, so that listing needs neither a kernel nor torch.
"""

from __future__ import annotations

import ast
import fnmatch
import hashlib
import io
import json
import re
import tokenize
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

TYPES = {"int": int, "float": float, "str": str, "bool": bool, "list": list}


class Refused(ValueError):
    """A request that cannot be carried out as given; the message names what is wrong and what would be right."""


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell: ``name: type = default  # comment``."""

    name: str
    type: str
    default: Any
    comment: str


@dataclass(frozen=True)
class Entry:
    """One notebook: its path relative to the notebooks folder, and what its file says.

    ``default`` and ``paper_scale``: ``{"minutes": float, "memory_mb": float}``, empty where the file does not say (and
    for ``paper_scale`` where there is none). ``problem``: why it cannot be run, empty if it can. ``source``: its text.
    """

    notebook: str
    paper: str = ""
    experiments: tuple[str, ...] = ()
    title: str = ""
    default: dict[str, float] = field(default_factory=dict)
    paper_scale: dict[str, float] = field(default_factory=dict)
    parameters: dict[str, Parameter] = field(default_factory=dict)
    problem: str = ""
    source: str = field(default="", repr=False)
    sha256: str = ""


def scan(notebooks_dir: Path) -> list[Entry]:
    """Every notebook below ``notebooks_dir``, by path; hidden folders (checkpoints of Jupyter) are left out."""
    paths = sorted(path for path in notebooks_dir.rglob("*.ipynb") if path.is_file())
    names = [path.relative_to(notebooks_dir).as_posix() for path in paths]
    return [
        read(path, name)
        for path, name in zip(paths, names, strict=True)
        if not any(part.startswith(".") for part in name.split("/"))
    ]


def read(path: Path, name: str) -> Entry:
    """Read one notebook; whatever is wrong with the file ends up in ``problem``."""
    try:
        data = path.read_bytes()
        source = data.decode("utf-8")
        content = json.loads(source)
        cells = content["cells"]
        if content["nbformat"] != 4 or not isinstance(cells, list):
            raise ValueError("not a notebook of format 4")
        about = content.get("metadata", {}).get("fl_notebooks", {})
        entry = Entry(
            name,
            paper=str(about.get("paper") or ""),
            experiments=tuple(str(id) for id in about.get("experiments") or ()),
            title=_title(cells),
            default=_cost(about.get("default"), "default"),
            paper_scale=_cost(about.get("paper_scale"), "paper_scale"),
            parameters=_parameters(cells),
            source=source,
            sha256=hashlib.sha256(data).hexdigest(),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        return Entry(name, problem=f"cannot be read as a notebook: {what}")
    return entry


def parse_parameters(source: str) -> dict[str, Parameter]:
    """The parameters that a cell declares, in its order.

    Raises ValueError at a line that is not ``name: type = literal`` with type int, float, str, bool or list.
    """
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise ValueError(f"parameters cell, line {error.lineno}: {error.msg}") from None
    found: dict[str, Parameter] = {}
    comments = _comments(source)
    for statement in statements:
        where = f"parameters cell, line {statement.lineno}"
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value):
            raise ValueError(f"{where}: want 'name: type = literal'")
        name, kind = statement.target.id, ast.unparse(statement.annotation)
        if kind not in TYPES:
            raise ValueError(f"{where}: {name} has type {kind}, want one of {', '.join(TYPES)}")
        try:
            default = ast.literal_eval(statement.value)
        except ValueError:
            raise ValueError(f"{where}: the default of {name} is not a literal") from None
        if kind == "float" and type(default) is int:
            default = float(default)
        if type(default) is not TYPES[kind]:
            raise ValueError(f"{where}: {name} is declared {kind}, its default {default!r} is not")
        if name in found:
            raise ValueError(f"{where}: {name} is declared twice")
        found[name] = Parameter(name, kind, default, comments.get(statement.end_lineno or 0, ""))
    return found


def select(entries: Sequence[Entry], selectors: Iterable[str], notebooks_dir: Path, cwd: Path) -> list[Entry]:
    """The entries that any of ``selectors`` means, in catalog order; all of them where there is no selector.

    A selector is a paper, an experiment id, a notebook (its path from the notebooks folder, from ``cwd`` or absolute;
    with or without ``.ipynb``; or its bare name), a folder, or a glob over such paths. Raises Refused for one that
    means nothing, naming what exists, close matches first.
    """
    wanted = list(selectors)
    if not wanted:
        return list(entries)
    chosen: set[str] = set()
    for selector in wanted:
        found = [entry.notebook for entry in entries if _means(selector, entry, notebooks_dir, cwd)]
        if not found:
            raise Refused(_unknown_selector(selector, entries))
        chosen.update(found)
    return [entry for entry in entries if entry.notebook in chosen]


def card_names(text: str) -> list[str]:
    """The cards that a parameter such as ``dataset`` names: ``"imdb + amazon"`` is two, ``""`` none."""
    return [part.strip() for part in text.split("+") if part.strip()]


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """``; did you mean a, b?`` for names near to ``wrong``, empty where none is near."""
    folded: dict[str, str] = {}
    for name in known:
        folded.setdefault(name.lower(), name)
    close = [folded[name] for name in get_close_matches(wrong.lower(), list(folded), 3, 0.6)]
    return f"; did you mean {', '.join(close)}?" if close else ""


def _means(selector: str, entry: Entry, notebooks_dir: Path, cwd: Path) -> bool:
    if not selector:  # and not the notebooks of no paper
        return False
    name, stem = entry.notebook, entry.notebook.removesuffix(".ipynb")
    if selector == entry.paper or selector.upper() in {id.upper() for id in entry.experiments}:
        return True
    if selector in (stem.rsplit("/", 1)[-1], name.rsplit("/", 1)[-1]):
        return True
    absolute = (notebooks_dir / name).resolve()
    candidates = {selector.rstrip("/").removeprefix("./")} - {"", "."}
    for base in (cwd, notebooks_dir.parent):
        path = (base / selector).resolve()
        if path.is_relative_to(notebooks_dir.resolve()):
            candidates.add(path.relative_to(notebooks_dir.resolve()).as_posix())
    return any(
        candidate in (name, stem, ".")
        or name.startswith(candidate + "/")
        or fnmatch.fnmatchcase(name, candidate)
        or str(absolute) == candidate
        for candidate in candidates
    )


def _unknown_selector(selector: str, entries: Sequence[Entry]) -> str:
    papers = sorted({entry.paper for entry in entries if entry.paper})
    ids = [id for entry in entries for id in entry.experiments]
    ids.sort(key=lambda id: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", id)])
    names = [entry.notebook for entry in entries]
    stems = [name.rsplit("/", 1)[-1].removesuffix(".ipynb") for name in names]
    lines = [f"no notebook is meant by {selector!r}" + did_you_mean(selector, [*papers, *ids, *names, *stems])]
    lines += [f"  papers: {', '.join(papers)}"] * bool(papers)
    lines += [f"  experiments: {', '.join(dict.fromkeys(ids))}"] * bool(ids)
    lines += [f"  notebooks: {', '.join(names)}" if names else "  there are no notebooks"]
    return "\n".join(lines)


def _source(cell: dict) -> str:
    source = cell.get("source", "")
    return source if isinstance(source, str) else "".join(source)


def _title(cells: list[dict]) -> str:
    """The first heading of the markdown cells, without its marks."""
    for cell in cells:
        if cell.get("cell_type") == "markdown":
            for line in _source(cell).splitlines():
                if re.match(r"#{1,6}\s+\S", line):
                    return line.lstrip("#").strip().rstrip("#").strip()
    return ""


def _cost(value: Any, name: str) -> dict[str, float]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(
        key in value and type(value[key]) in (int, float) and value[key] >= 0 for key in ("minutes", "memory_mb")
    ):
        raise ValueError(f"metadata fl_notebooks.{name} is {value!r}, want minutes and memory_mb as numbers")
    return {"minutes": value["minutes"], "memory_mb": value["memory_mb"]}


def _parameters(cells: list[dict]) -> dict[str, Parameter]:
    tagged = [cell for cell in cells if "parameters" in cell.get("metadata", {}).get("tags", [])]
    if len(tagged) > 1:
        raise ValueError(f"{len(tagged)} cells are tagged 'parameters', want one")
    return parse_parameters(_source(tagged[0])) if tagged else {}


def _comments(source: str) -> dict[int, str]:
    """Line number -> comment text, without the mark."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
