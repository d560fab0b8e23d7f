"""What a saved notebook must be: rules that return one line per breach, what is wrong and what would be right.

A rule for experiment notebooks alone returns nothing for tutorials and for the index.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from itertools import pairwise

import yaml
from saved_notebooks import Notebook

from fl_utils import papers
from fl_utils.runner.outcomes import outputs_of, tags_of
from fl_utils.runner.records import RECORD_MIME, parse_record, text

TYPES = {"int": int, "float": float, "str": str, "bool": bool, "list": list}
MAX_BYTES, MAX_CODE_CELLS, MAX_LINES = 1_000_000, 25, 30
NAME = re.compile(r"\d\d_(table|figure|section|chapter|appendix|equation)s?[0-9a-z-]*_[a-z0-9]+([_-][a-z0-9]+)*")
MACHINE_PATH = re.compile(r"(?<![\w.~-])(?:/(?:home|root|tmp|work|Users)(?![\w.-])|[A-Z]:\\Users\\)[^\s\"'<>)]*")
REGISTRY = re.compile(
    r"\b(?:pypi\.org|pythonhosted\.org|npmjs\.(?:org|com)|debian\.org|anaconda\.(?:org|com)|crates\.io)\b"
    r"|--(?:extra-)?index-url\S*"
)

SOURCE = re.compile(r"\b(Figures?|Tables?|Sections?|Chapters?|Appendix|Equations?)\b")

RULES: dict[str, Callable[[Notebook], list[str]]] = {}


def rule(function: Callable[[Notebook], list[str]]) -> Callable[[Notebook], list[str]]:
    RULES[function.__name__] = function
    return function


def is_of(value: object, kind: str) -> bool:
    """Whether ``value`` fits a parameter of type ``kind``; a whole number fits a float, a truth value only bool."""
    if kind == "float":
        return isinstance(value, int | float) and not isinstance(value, bool)
    return kind in TYPES and isinstance(value, TYPES[kind]) and (kind == "bool" or not isinstance(value, bool))


@rule
def is_valid_nbformat(notebook: Notebook) -> list[str]:
    import nbformat

    try:
        nbformat.validate(nbformat.from_dict(notebook.content))
    except nbformat.ValidationError as error:
        return [f"not a valid notebook ({str(error).splitlines()[0]}); want nbformat 4.5, as Jupyter saves it"]
    return []


@rule
def name_says_what_it_reproduces(notebook: Notebook) -> list[str]:
    if notebook.is_experiment and not NAME.fullmatch(notebook.path.stem):
        return [f"file name {notebook.path.name}; want NN_<table|figure|section|...>_<slug>.ipynb, lower case"]
    return []


@rule
def starts_with_a_heading(notebook: Notebook) -> list[str]:
    first = notebook.cells[0] if notebook.cells else {"cell_type": "missing", "source": ""}
    if first["cell_type"] != "markdown" or not text(first["source"]).startswith("# "):
        return [f"cell 1 is a {first['cell_type']} cell; want markdown that begins with '# ' and the title"]
    return []


@rule
def metadata_is_complete(notebook: Notebook) -> list[str]:
    metadata = notebook.content["metadata"].get("fl_notebooks")
    if not isinstance(metadata, dict):
        return ["metadata fl_notebooks is missing; want paper, experiments, default, paper_scale"]
    wrong = [f"metadata fl_notebooks lacks {key}" for key in ("paper", "experiments", "default") if key not in metadata]
    if "paper_scale" not in metadata:
        wrong.append("metadata fl_notebooks lacks paper_scale; want {minutes, memory_mb}, or null where there is none")
    for key in ("default", "paper_scale"):
        cost = metadata.get(key)
        whole = isinstance(cost, dict) and all(is_of(cost.get(k), "float") for k in ("minutes", "memory_mb"))
        if not whole and not (cost is None and (key == "paper_scale" or key not in metadata)):
            wrong.append(f"metadata fl_notebooks {key} is {cost!r}; want numbers for minutes and memory_mb")
    paper, experiments = metadata.get("paper"), metadata.get("experiments")
    if not notebook.is_experiment:
        return wrong + (
            [] if (paper, experiments) == ("", []) else ["not an experiment: want paper '', experiments []"]
        )
    if paper != notebook.folder:
        wrong.append(f"metadata paper is {paper!r}; want {notebook.folder!r}, the folder's name")
    if not isinstance(experiments, list) or not experiments:
        return [*wrong, "metadata names no experiments; want at least one id"]
    return wrong + [f"experiment {id!r} does not exist in papers/{notebook.folder}/" for id in _unknown(notebook)]


def _unknown(notebook: Notebook) -> list[str]:
    """The experiment ids of the notebook that its paper has neither claims nor figures for."""
    unknown = []
    for id in notebook.experiments:
        try:
            known = papers.paper_of(id, notebook.papers) == notebook.folder
            known = known and bool(papers.claims(id, notebook.papers) or papers.published(id, notebook.papers))
        except (ValueError, FileNotFoundError):
            known = False
        if not known:
            unknown.append(id)
    return unknown


@rule
def is_small(notebook: Notebook) -> list[str]:
    size, wrong = notebook.path.stat().st_size, []
    if size >= MAX_BYTES:
        wrong.append(f"the file has {size:,} bytes; want under {MAX_BYTES:,}: fewer or smaller figures")
    if len(notebook.code) > MAX_CODE_CELLS:
        wrong.append(f"{len(notebook.code)} code cells; want at most {MAX_CODE_CELLS}: move code to fl_utils")
    for n, cell in notebook.code:
        if (lines := len(text(cell["source"]).splitlines())) > MAX_LINES:
            wrong.append(f"cell {n} has {lines} lines; want at most {MAX_LINES}: move code to fl_utils")
    return wrong


@rule
def every_cell_was_executed(notebook: Notebook) -> list[str]:
    counts = [(n, cell.get("execution_count")) for n, cell in notebook.code]
    wrong = [f"cell {n} was never executed; run the notebook and save its outputs" for n, count in counts if not count]
    done = [count for _, count in counts if count]
    if any(later <= earlier for earlier, later in pairwise(done)):
        wrong.append("cells were executed out of order; restart the kernel, run all, save")
    return wrong


@rule
def no_errors_no_stderr(notebook: Notebook) -> list[str]:
    wrong = []
    for n, output in notebook.outputs():
        if output["output_type"] == "error":
            wrong.append(f"cell {n} ended in {output.get('ename')}; want a run without errors (show one by try/except)")
        if output.get("name") == "stderr":
            wrong.append(
                f"cell {n} wrote to stderr; want none saved: silence the warning's cause, hide the progress bar"
            )
    return wrong


@rule
def verdicts_have_outputs(notebook: Notebook) -> list[str]:
    checked = notebook.tagged("nbval-check-output")
    wrong = [
        f"cell {n} is tagged nbval-check-output and has no output; nothing would be compared"
        for n, cell in checked
        if not outputs_of(cell)
    ]
    if notebook.is_experiment and not checked:
        wrong.append("no cell is tagged nbval-check-output; want one at least, the one that prints the verdicts")
    return wrong


@rule
def parameters_are_literals(notebook: Notebook) -> list[str]:
    cells = notebook.tagged("parameters")
    if len(cells) > 1 or (notebook.is_experiment and not cells):
        return [f"{len(cells)} code cells are tagged parameters; want exactly one"]
    wrong = []
    for n, cell in cells:
        try:
            statements = ast.parse(text(cell["source"])).body
        except SyntaxError as error:
            return [f"cell {n}, tagged parameters, is not Python: {error.msg} in line {error.lineno}"]
        readable = {parameter.name for parameter in notebook.parameters}
        for node in statements:
            name = getattr(getattr(node, "target", None), "id", None)
            if not isinstance(node, ast.AnnAssign) or name not in readable:
                wrong.append(f"cell {n}: {ast.unparse(node)!r}; want only lines `name: type = literal  # comment`")
    for p in notebook.parameters:
        if p.kind not in TYPES:
            wrong.append(f"parameter {p.name} has type {p.kind}; papermill knows {', '.join(TYPES)}")
        elif not is_of(p.value, p.kind):
            wrong.append(f"parameter {p.name}: {p.kind} has the default {p.value!r}; want one of its type")
        if not p.comment:
            wrong.append(f"parameter {p.name} has no comment; want what it is and where its value comes from")
        if p.name.endswith(("_dir", "_path")) and p.value != "":
            wrong.append(f'parameter {p.name} is {p.value!r}; want "": a path is for the user to give')
        if p.name in ("dataset", "weights") and isinstance(p.value, str):
            for card in filter(None, p.value.split("+")):
                if not (notebook.root / "datasets" / f"{card}.yaml").is_file():
                    wrong.append(f"parameter {p.name} names {card!r}; there is no card datasets/{card}.yaml")
    return wrong


@rule
def scale_file_fits(notebook: Notebook) -> list[str]:
    if not notebook.is_experiment:
        return []
    place = f"papers/{notebook.folder}/scales/{notebook.path.stem}.yaml"
    file = notebook.root / place
    if not file.is_file():
        return [f"{place} is missing; want the paper-scale parameters, each with its source"]
    try:
        scale = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        return [f"{place} is not YAML: {' '.join(str(error).split())}"]
    if not isinstance(scale, dict) or not scale:
        return [f"{place} holds no parameters; want `name: value` lines"]
    kinds, wrong = {parameter.name: parameter.kind for parameter in notebook.parameters}, []
    for name, value in scale.items():
        if name not in kinds:
            wrong.append(f"{place} sets {name}, which is no parameter of the notebook; it has {', '.join(kinds)}")
        elif not is_of(value, kinds[name]):
            wrong.append(f"{place} sets {name} to {value!r}; want the type {kinds[name]}")
    return wrong


@rule
def names_no_machine(notebook: Notebook) -> list[str]:
    wrong = []
    for n, cell in enumerate(notebook.cells, 1):
        for place, written in [("source", text(cell["source"])), *(("output", o) for o in _written(cell))]:
            for kind, pattern in (("a path of one machine", MACHINE_PATH), ("a registry's host", REGISTRY)):
                if match := pattern.search(written):
                    wrong.append(f"the {place} of cell {n} holds {kind}, {match[0]!r}; want none")
    return wrong


def _written(cell: dict) -> list[str]:
    """All that a cell's outputs say in words: streams, tracebacks, every bundle that is not a bitmap."""
    said = []
    for output in outputs_of(cell):
        said += [text(output.get("text")), text(output.get("evalue")), text(output.get("traceback"))]
        for mime, data in output.get("data", {}).items():
            if mime not in ("image/png", "image/jpeg"):
                said.append(text(data) if isinstance(data, str | list) else json.dumps(data, ensure_ascii=False))
    return said


@rule
def papermill_left_nothing(notebook: Notebook) -> list[str]:
    wrong = ["the notebook's metadata holds papermill; strip it"] if "papermill" in notebook.content["metadata"] else []
    for n, cell in enumerate(notebook.cells, 1):
        if "papermill" in cell["metadata"]:
            wrong.append(f"the metadata of cell {n} holds papermill; strip it")
        if left := {"injected-parameters", "papermill-error-cell-tag"} & {*tags_of(cell)}:
            wrong.append(f"cell {n} is papermill's own ({', '.join(left)}); remove it")
    return wrong


@rule
def figures_can_be_read(notebook: Notebook) -> list[str]:
    wrong = []
    for n, output in notebook.outputs():
        if "image/png" not in output.get("data", {}):
            continue
        about = output.get("metadata", {}).get("image/png", {})
        if missing := [key for key in ("caption", "alt") if not text(about.get(key)).strip()]:
            wrong.append(f"the figure of cell {n} has no {', no '.join(missing)}; want plots.show(caption, alt)")
        elif notebook.is_experiment and not SOURCE.search(about["caption"]):
            wrong.append(f"the caption of cell {n} names no table or figure of the paper: {about['caption']!r}")
    return wrong


@rule
def one_record_at_the_end(notebook: Notebook) -> list[str]:
    places = [n for n, output in notebook.outputs() if RECORD_MIME in output.get("data", {})]
    if not places and not notebook.is_experiment:
        return []
    if len(places) != 1:
        return [f"{len(places)} records; want exactly one, in the last code cell"]
    if places[0] != notebook.code[-1][0]:
        return [f"the record is in cell {places[0]}; want it in the last code cell, {notebook.code[-1][0]}"]
    return []


@rule
def record_is_of_the_default(notebook: Notebook) -> list[str]:
    if not (notebook.is_experiment and notebook.record):
        return []
    record, wrong = notebook.record, parse_record(notebook.record)[1]
    if record.get("scale") != "embedded" or record.get("overrides"):
        wrong.append(f"saved from scale {record.get('scale')} {record.get('overrides')}; want the embedded default")
    if record.get("experiments") != notebook.experiments or record.get("paper") != notebook.folder:
        found = f"{record.get('paper')} {record.get('experiments')}"
        wrong.append(f"the record is of {found}; want {notebook.folder} {notebook.experiments}, as the metadata says")
    return wrong


@rule
def claims_are_decided(notebook: Notebook) -> list[str]:
    if not (notebook.is_experiment and notebook.record) or _unknown(notebook):
        return []
    known = {id: claim for e in notebook.experiments for id, claim in papers.claims(e, notebook.papers).items()}
    decided = {claim.get("id"): claim for claim in notebook.record.get("claims", []) if isinstance(claim, dict)}
    place = f"papers/{notebook.folder}/claims.yaml"
    missing = [id for id in known if id not in decided]
    open_ones = [id for id in known if id in decided and decided[id].get("holds") is None and not known[id].needs]
    wrong = [f"claim {id} of {place} is not decided in the record" for id in [*missing, *open_ones]]
    wrong += [f"claim {id} of the record is not in {place} for these experiments" for id in decided if id not in known]
    for id in known.keys() & decided.keys():
        if decided[id].get("statement") != known[id].statement:
            wrong.append(f"claim {id} says {decided[id].get('statement')!r}; {place} says {known[id].statement!r}")
    return wrong


@rule
def published_figures_agree(notebook: Notebook) -> list[str]:
    if not (notebook.is_experiment and notebook.record) or _unknown(notebook):
        return []
    place, wrong = f"papers/{notebook.folder}/published.csv", []
    known = {(id, m): p for id in notebook.experiments for m, p in papers.published(id, notebook.papers).items()}
    for value in notebook.record.get("values", []):
        if not isinstance(value, dict):
            continue
        row = known.get((value.get("experiment"), value.get("metric")))
        wanted = (row.value, row.unit, row.where) if row else (None, value.get("unit"), value.get("where"))
        found = (value.get("published"), value.get("unit"), value.get("where"))
        if found != wanted:
            name = f"{value.get('experiment')} {value.get('metric')}"
            wrong.append(f"{name}: the record has published, unit, where = {found}; {place} has {wanted}")
    return wrong


def breaches(notebook: Notebook) -> list[str]:
    """Every breach of every rule, each line beginning with the rule's name."""
    try:
        cells = notebook.content["cells"]
    except (ValueError, KeyError, TypeError) as error:
        return [f"not a notebook ({error!r}); want JSON with a list of cells"]
    if not all({"cell_type", "source", "metadata"} <= cell.keys() for cell in cells):
        return ["not a notebook: a cell lacks cell_type, source or metadata"]
    return [f"{name}: {line}" for name, check in RULES.items() for line in check(notebook)]
