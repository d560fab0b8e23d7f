"""Structure of the saved notebooks, README's generated sections, and proof that each rule can fail."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
from saved_notebooks import Notebook

import notebook_rules
from fl_utils.paths import NOTEBOOKS, ROOT
from fl_utils.runner import report
from fl_utils.runner.records import RECORD_MIME

SAVED = sorted(path for path in NOTEBOOKS.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
README = ROOT / "README.md"


def test_there_are_notebooks():
    assert SAVED, "notebooks/ holds no notebook: the structure tests would pass with nothing checked"


@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.relative_to(NOTEBOOKS).as_posix())
def test_saved_notebook_keeps_the_rules(path):
    breaches = notebook_rules.breaches(Notebook(path, ROOT))
    assert not breaches, "\n".join([path.relative_to(ROOT).as_posix(), *breaches])


@pytest.mark.skipif(not README.exists(), reason="no README.md yet")
def test_readme_sections_are_up_to_date():
    stale = "README.md is stale: run `fl-notebooks report --readme`"
    assert report.sections_in(README.read_text(encoding="utf-8")) == report.readme_sections(NOTEBOOKS), stale


# the rules themselves, on a small repository


def code(source: str, count: int, outputs: list | None = None, tags: tuple[str, ...] = ()) -> dict:
    return {
        "cell_type": "code",
        "id": f"c{count}",
        "source": source,
        "execution_count": count,
        "metadata": {"tags": list(tags)} if tags else {},
        "outputs": outputs or [],
    }


def stream(text: str, name: str = "stdout") -> dict:
    return {"output_type": "stream", "name": name, "text": text}


def record() -> dict:
    value = {"experiment": "O2", "metric": "accuracy/fedavg", "value": 78.1, "unit": "%", "published": "86.0"}
    return {
        **{"version": 1, "paper": "oarf", "experiments": ["O2"], "scale": "embedded", "overrides": "", "seed": 0},
        "values": [value | {"gap": -7.9, "where": "Table 3b", "spread": None, "seeds": 1}],
        "claims": [{"id": "O2.1", "statement": "FedAvg wins.", "holds": True, "evidence": "78.1 > 70.2"}],
        **{"bytes_up": 1, "bytes_down": 2, "seconds": 3.5, "peak_mb": 400.0, "commit": "abc1234"},
        **{"versions": {"python": "3.11.7"}, "hardware": "2 cores"},
    }


PARAMETERS = """scale: str = "embedded"  # embedded or paper
seed: int = 0  # assumed
lr: float = 0.01  # section 4.1
dataset: str = "imdb"  # section 3
data_dir: str = ""  # folder of the full data
hidden: list = [
    256,
    256,
]  # two layers (section 3)"""


def picture(caption: str, alt: str) -> dict:
    about = {"image/png": {"caption": caption, "alt": alt}}
    return {"output_type": "display_data", "metadata": about, "data": {"image/png": "iVBORw0KGgo="}}


def good() -> dict:
    recorded = {
        "output_type": "display_data",
        "metadata": {},
        "data": {RECORD_MIME: record(), "text/plain": "recorded"},
    }
    cells = [
        {
            "cell_type": "markdown",
            "id": "m0",
            "metadata": {},
            "source": "# Sentiment\n\nTable 3b. See https://a.org/work/x",
        },
        code(PARAMETERS, 1, tags=("parameters",)),
        code("print('trained')", 2, [stream("trained\n")]),
        code("experiment.verdicts()", 3, [stream("O2.1 holds\n")], tags=("nbval-check-output",)),
        code("plots.show('Table 3b: bars', 'Four bars.')", 4, [picture("Table 3b: bars", "Four bars.")]),
        code("experiment.record()", 5, [recorded]),
    ]
    costs = {"minutes": 0.8, "memory_mb": 700}
    own = {"paper": "oarf", "experiments": ["O2"], "default": costs, "paper_scale": {"minutes": 240, "memory_mb": 9000}}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {"fl_notebooks": own}, "cells": cells}


def repository(root: Path, content: dict, name: str = "oarf/02_table3b_sentiment.ipynb") -> Notebook:
    """A repository with one paper, one card and one notebook."""
    files = {
        "papers/oarf/published.csv": (
            "experiment,metric,value,unit,where,note\nO2,accuracy/fedavg,86.0,%,Table 3b,\nO3,bytes,55.3,MB,Figure 2,\n"
        ),
        "papers/oarf/claims.yaml": (
            "- {id: O2.1, experiment: O2, statement: FedAvg wins., source: section 4.1, beyond_paper: false}\n"
            "- {id: O3.1, experiment: O3, statement: Accuracy falls., source: section 4.2, beyond_paper: false}\n"
        ),
        "papers/oarf/scales/02_table3b_sentiment.yaml": "lr: 1  # section 4.1\nscale: paper  # all of it\n",
        "datasets/imdb.yaml": "title: IMDB\n",
        f"notebooks/{name}": json.dumps(content, indent=1),
    }
    for place, written in files.items():
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_text(written, encoding="utf-8")
    return Notebook(root / "notebooks" / name, root)


def test_a_good_notebook_breaks_no_rule(tmp_path):
    assert notebook_rules.breaches(repository(tmp_path, good())) == []


def test_a_claim_that_needs_what_no_package_has_may_stay_open_but_not_go_missing(tmp_path):
    content = good()
    recorded(content)["claims"][0].update(holds=None)
    notebook = repository(tmp_path, content)
    claims = tmp_path / "papers/oarf/claims.yaml"
    claims.write_text(claims.read_text().replace("beyond_paper: false}", "beyond_paper: false, needs: a phone}", 1))
    assert notebook_rules.breaches(notebook) == []
    recorded(content)["claims"].clear()
    notebook.path.write_text(json.dumps(content))
    assert any("O2.1" in told for told in notebook_rules.breaches(Notebook(notebook.path, tmp_path)))


def test_a_tutorial_needs_neither_record_nor_scale(tmp_path):
    content = good()
    content["metadata"]["fl_notebooks"] |= {"paper": "", "experiments": [], "paper_scale": None}
    content["cells"] = content["cells"][:3]
    assert notebook_rules.breaches(repository(tmp_path, content, "tutorials/01_first.ipynb")) == []


def own(content: dict) -> dict:
    return content["metadata"]["fl_notebooks"]


def recorded(content: dict) -> dict:
    return content["cells"][-1]["outputs"][0]["data"][RECORD_MIME]


def figure_of(content: dict) -> dict:
    return content["cells"][4]["outputs"][0]["metadata"]["image/png"]


def parameter(line: str):
    return lambda content: content["cells"][1].update(source=f"{PARAMETERS}\n{line}")


def output(kind: dict):
    return lambda content: content["cells"][2]["outputs"].append(kind)


def cell_tags(position: int, *tags: str):
    return lambda content: content["cells"][position]["metadata"].update(tags=list(tags))


ERROR = {"output_type": "error", "ename": "ValueError", "evalue": "bad", "traceback": []}
HTML = {"output_type": "display_data", "metadata": {}, "data": {"text/html": "<b>/tmp/ipykernel_1/2.py</b>"}}
HOST = "files." + "pythonhosted" + ".org"
BROKEN = [
    ("is_valid_nbformat", "not a valid notebook", lambda c: c["cells"][2].update(outputs=[{"output_type": "odd"}])),
    ("starts_with_a_heading", "want markdown that begins", lambda c: c["cells"][0].update(source="Sentiment")),
    ("starts_with_a_heading", "cell 1 is a code cell", lambda c: c["cells"].pop(0)),
    ("metadata_is_complete", "fl_notebooks is missing", lambda c: c["metadata"].clear()),
    ("metadata_is_complete", "lacks default", lambda c: own(c).pop("default")),
    ("metadata_is_complete", "lacks paper_scale", lambda c: own(c).pop("paper_scale")),
    ("metadata_is_complete", "want numbers for minutes", lambda c: own(c).update(default={"minutes": "short"})),
    ("metadata_is_complete", "want 'oarf'", lambda c: own(c).update(paper="faces")),
    ("metadata_is_complete", "names no experiments", lambda c: own(c).update(experiments=[])),
    ("metadata_is_complete", "'O99' does not exist", lambda c: own(c).update(experiments=["O2", "O99"])),
    ("metadata_is_complete", "'D1' does not exist", lambda c: own(c).update(experiments=["O2", "D1"])),
    ("is_small", "want under 1,000,000", lambda c: c["cells"][0].update(source="# " + "x" * 1_000_000)),
    ("is_small", "30 code cells", lambda c: c["cells"].extend(code("1", n) for n in range(6, 31))),
    ("is_small", "cell 3 has 31 lines", lambda c: c["cells"][2].update(source="x = 1\n" * 31)),
    ("every_cell_was_executed", "cell 3 was never", lambda c: c["cells"][2].update(execution_count=None)),
    ("every_cell_was_executed", "out of order", lambda c: c["cells"][2].update(execution_count=9)),
    ("no_errors_no_stderr", "ended in ValueError", output(ERROR)),
    ("no_errors_no_stderr", "wrote to stderr", output(stream("warning", "stderr"))),
    ("verdicts_have_outputs", "has no output", lambda c: c["cells"][3].update(outputs=[])),
    ("verdicts_have_outputs", "no cell is tagged", cell_tags(3, "other")),
    ("parameters_are_literals", "0 code cells are tagged", cell_tags(1, "other")),
    ("parameters_are_literals", "2 code cells are tagged", cell_tags(2, "parameters")),
    ("parameters_are_literals", "is not Python", parameter("x: int = ")),
    ("parameters_are_literals", "want only lines", parameter("x = 1  # no type")),
    ("parameters_are_literals", "want only lines", parameter("x: float = 1 / 3  # computed")),
    ("parameters_are_literals", "papermill knows", parameter("x: str | None = None  # union")),
    ("parameters_are_literals", "want one of its type", parameter("x: int = 0.5  # half")),
    ("parameters_are_literals", "want one of its type", parameter("x: int = True  # truth")),
    ("parameters_are_literals", "has no comment", parameter("x: int = 1")),
    ("parameters_are_literals", "is for the user to give", parameter('out_dir: str = "here"  # where')),
    ("parameters_are_literals", "no card datasets/nowhere.yaml", parameter('weights: str = "imdb+nowhere"  # cards')),
    ("names_no_machine", "a path of one machine", lambda c: c["cells"][2].update(source='open("/root/x")')),
    ("names_no_machine", "a path of one machine", output(HTML)),
    ("names_no_machine", "a path of one machine", output(stream("saved to /work"))),
    ("names_no_machine", "a registry's host", output(stream(f"from https://{HOST}/x"))),
    ("papermill_left_nothing", "the notebook's metadata", lambda c: c["metadata"].update(papermill={})),
    ("papermill_left_nothing", "metadata of cell 3", lambda c: c["cells"][2]["metadata"].update(papermill={})),
    ("papermill_left_nothing", "papermill's own", cell_tags(2, "injected-parameters")),
    ("figures_can_be_read", "cell 5 has no alt", lambda c: figure_of(c).pop("alt")),
    ("figures_can_be_read", "no caption, no alt", lambda c: c["cells"][4]["outputs"][0].update(metadata={})),
    ("figures_can_be_read", "names no table or figure", lambda c: figure_of(c).update(caption="Four bars")),
    ("one_record_at_the_end", "0 records", lambda c: c["cells"].pop()),
    ("one_record_at_the_end", "2 records", lambda c: c["cells"][-1]["outputs"].extend(c["cells"][-1]["outputs"][:])),
    ("one_record_at_the_end", "want it in the last", lambda c: c["cells"].append(code("print(1)", 6, [stream("1")]))),
    ("record_is_of_the_default", "version 2", lambda c: recorded(c).update(version=2)),
    ("record_is_of_the_default", "unknown keys mood", lambda c: recorded(c).update(mood="good")),
    ("record_is_of_the_default", "want the embedded default", lambda c: recorded(c).update(overrides="rounds=1")),
    ("record_is_of_the_default", "as the metadata says", lambda c: recorded(c).update(experiments=["O3"])),
    ("claims_are_decided", "O2.1 .* is not decided", lambda c: recorded(c).update(claims=[])),
    ("claims_are_decided", "O2.1 .* is not decided", lambda c: recorded(c)["claims"][0].update(holds=None)),
    ("claims_are_decided", "O3.1 of the record is not in", lambda c: recorded(c)["claims"][0].update(id="O3.1")),
    ("claims_are_decided", "O2.1 says", lambda c: recorded(c)["claims"][0].update(statement="FedAvg loses.")),
    ("published_figures_agree", "accuracy/fedavg", lambda c: recorded(c)["values"][0].update(published="86.1")),
    ("published_figures_agree", "accuracy/fedavg", lambda c: recorded(c)["values"][0].update(published=None)),
    ("published_figures_agree", "accuracy/mine", lambda c: recorded(c)["values"][0].update(metric="accuracy/mine")),
]


@pytest.mark.parametrize(
    ("rule", "message", "break_it"), BROKEN, ids=[f"{rule}-{message[:24]}" for rule, message, _ in BROKEN]
)
def test_a_broken_notebook_breaks_its_rule(tmp_path, rule, message, break_it):
    content = copy.deepcopy(good())
    break_it(content)
    found = notebook_rules.breaches(repository(tmp_path, content))
    assert any(re.search(f"^{rule}: .*{message}", line, re.DOTALL) for line in found), found


SCALES = [
    ("", "holds no parameters"),
    ("lr: [1", "is not YAML"),
    ("rate: 1", "sets rate, which is no parameter"),
    ("lr: fast", "sets lr to 'fast'; want the type float"),
    ("seed: 0.5", "sets seed to 0.5; want the type int"),
    (None, "is missing"),
]


@pytest.mark.parametrize(("written", "message"), SCALES)
def test_a_scale_file_that_does_not_fit_is_named(tmp_path, written, message):
    notebook = repository(tmp_path, good())
    scale = tmp_path / "papers/oarf/scales/02_table3b_sentiment.yaml"
    scale.unlink() if written is None else scale.write_text(written)
    (line,) = notebook_rules.breaches(notebook)
    assert line.startswith("scale_file_fits: papers/oarf/scales/02_table3b_sentiment.yaml") and message in line


@pytest.mark.parametrize("stem", ["2_table3b_sentiment", "02_sentiment", "02_table3b", "02_Table3b_Sentiment"])
def test_a_name_that_says_nothing_is_named(tmp_path, stem):
    found = notebook_rules.breaches(repository(tmp_path, good(), f"oarf/{stem}.ipynb"))
    assert any(line.startswith("name_says_what_it_reproduces: ") for line in found), found


def test_every_rule_is_seen_to_fail():
    shown = {rule for rule, _, _ in BROKEN} | {"scale_file_fits", "name_says_what_it_reproduces"}
    assert shown == set(notebook_rules.RULES)


@pytest.mark.parametrize("written", ["", "{", "[]", '{"cells": [{}], "metadata": {}}'])
def test_a_file_that_is_no_notebook_is_named(tmp_path, written):
    notebook = repository(tmp_path, good())
    notebook.path.write_text(written)
    (line,) = notebook_rules.breaches(notebook)
    assert line.startswith("not a notebook")
