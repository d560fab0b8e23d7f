"""The catalog, the selectors, and the values that parameters may get."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_repository import COST, PARAMETERS, cell, notebook, repository

from fl_utils.runner import catalog, parameters, plan
from fl_utils.runner.catalog import Parameter, Refused


@pytest.fixture
def root(tmp_path: Path) -> Path:
    def tutorial(**more) -> str:
        return notebook(parameters=None, paper="", experiments=[], **more)

    return repository(
        tmp_path,
        {
            "oarf/02_table3b_sentiment.ipynb": notebook(title="Table 3b: sentiment"),
            "oarf/10_figure9_cost.ipynb": notebook(experiments=["O10", "O11"]),
            "decentralized/01_table1_central.ipynb": notebook(paper="decentralized", experiments=["D1"]),
            "tutorials/01_nothing.ipynb": tutorial(),
            "tutorials/solutions/01_nothing.ipynb": tutorial(),
            "index.ipynb": tutorial(),
            "oarf/.ipynb_checkpoints/02_table3b_sentiment-checkpoint.ipynb": notebook(),
        },
    )


def chosen(root: Path, *selectors: str, cwd: Path | None = None) -> list[str]:
    entries = catalog.scan(root / "notebooks")
    return [entry.notebook for entry in catalog.select(entries, selectors, root / "notebooks", cwd or root)]


class TestEntries:
    def test_reads_what_a_notebook_says(self, root):
        entries = {entry.notebook: entry for entry in catalog.scan(root / "notebooks")}
        assert len(entries) == 6  # without the hidden one
        entry = entries["oarf/02_table3b_sentiment.ipynb"]
        assert (entry.paper, entry.experiments, entry.title) == ("oarf", ("O2",), "Table 3b: sentiment")
        assert entry.default == COST and entry.paper_scale == {} and not entry.problem
        assert entry.parameters["rounds"] == Parameter("rounds", "int", 3, "R (section 4.2)")

    @pytest.mark.parametrize(
        "text, problem",
        [
            ('{"cells": [', "Expecting value"),
            ("[1]", "list indices"),
            (json.dumps({"cells": [], "nbformat": 3}), "format 4"),
            (json.dumps({"nbformat": 4}), "no 'cells'"),
            (notebook(default={"minutes": "long"}), "fl_notebooks.default"),
            (notebook(parameters="rounds = 3"), "line 1: want 'name: type = literal'"),
            (notebook(parameters="rounds: int = 3\nrounds: int = 4"), "declared twice"),
            (notebook(parameters="x: int = = 3"), "invalid syntax"),
        ],
    )
    def test_a_broken_notebook_is_listed_with_its_problem_and_refused(self, root, text, problem):
        (root / "notebooks/oarf/03_broken.ipynb").write_text(text)
        entries = catalog.scan(root / "notebooks")
        broken = [entry for entry in entries if entry.problem]
        assert [entry.notebook for entry in broken] == ["oarf/03_broken.ipynb"] and problem in broken[0].problem
        with pytest.raises(Refused, match="03_broken"):
            plan.plan(entries, {}, "embedded", root / "papers", root)

    def test_two_parameters_cells_are_a_problem(self, root):
        path = root / "notebooks/index.ipynb"
        content = json.loads(path.read_text())
        content["cells"] += [cell("a: int = 1", "parameters"), cell("b: int = 1", "parameters")]
        path.write_text(json.dumps(content))
        assert "2 cells are tagged" in catalog.read(path, "index.ipynb").problem

    def test_listing_is_cheap(self, root):
        code = (
            "import sys; from fl_utils.runner.cli import main\n"
            f"main(['--root', {str(root)!r}, 'list'], standalone_mode=False)\n"
            "print(sorted({'torch', 'numpy', 'papermill', 'nbformat', 'distributed', 'dask'} & set(sys.modules)))"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert run.stdout.splitlines()[-1] == "[]" and len(run.stdout.splitlines()) == 8


class TestParametersCell:
    def test_types_defaults_comments(self):
        source = """# all of them
a: int = -3  # A
b: float = 1  # a whole number for a float
c: str = "x # y"
d: bool = False
e: list = [
    1.5, 2.0,
]  # several lines"""
        found = catalog.parse_parameters(source)
        assert [each.default for each in found.values()] == [-3, 1.0, "x # y", False, [1.5, 2.0]]
        assert type(found["b"].default) is float
        assert [each.comment for each in found.values()] == ["A", "a whole number for a float", "", "", "several lines"]

    @pytest.mark.parametrize(
        "line, message",
        [
            ("a: dict = {}", "type dict"),
            ("a: str | None = None", r"type str \| None"),
            ("a: int = 2 * n", "not a literal"),
            ("a: int = True", "declared int"),
            ("a: int = 2.0", "declared int"),
            ("a: int", "name: type = literal"),
            ("import os", "name: type = literal"),
        ],
    )
    def test_refuses_other_lines(self, line, message):
        with pytest.raises(ValueError, match=message):
            catalog.parse_parameters(line)


class TestSelectors:
    @pytest.mark.parametrize(
        "selector, names",
        [
            ("oarf", ["oarf/02_table3b_sentiment.ipynb", "oarf/10_figure9_cost.ipynb"]),
            ("O2", ["oarf/02_table3b_sentiment.ipynb"]),
            ("o11", ["oarf/10_figure9_cost.ipynb"]),
            ("oarf/02_table3b_sentiment.ipynb", ["oarf/02_table3b_sentiment.ipynb"]),
            ("notebooks/oarf/02_table3b_sentiment.ipynb", ["oarf/02_table3b_sentiment.ipynb"]),
            ("02_table3b_sentiment", ["oarf/02_table3b_sentiment.ipynb"]),
            ("*/0?_table*", ["decentralized/01_table1_central.ipynb", "oarf/02_table3b_sentiment.ipynb"]),
            ("notebooks/oarf/1*", ["oarf/10_figure9_cost.ipynb"]),
            ("tutorials", ["tutorials/01_nothing.ipynb", "tutorials/solutions/01_nothing.ipynb"]),
            ("tutorials/solutions/", ["tutorials/solutions/01_nothing.ipynb"]),
            ("index.ipynb", ["index.ipynb"]),
        ],
    )
    def test_what_a_selector_means(self, root, selector, names):
        assert chosen(root, selector) == names

    def test_paths_from_the_callers_folder_and_absolute(self, root):
        folder, name = root / "notebooks/oarf", "oarf/02_table3b_sentiment.ipynb"
        assert chosen(root, "02_table3b_sentiment.ipynb", cwd=folder) == [name]
        assert chosen(root, ".", cwd=folder) == [name, "oarf/10_figure9_cost.ipynb"]
        assert chosen(root, str(root / "notebooks" / name)) == [name]

    def test_none_means_all_and_several_are_joined_in_catalog_order(self, root):
        assert len(chosen(root)) == 6
        assert chosen(root, "O2", "D1", "o2") == [
            "decentralized/01_table1_central.ipynb",
            "oarf/02_table3b_sentiment.ipynb",
        ]

    @pytest.mark.parametrize(
        "selector, near",
        [("orf", "oarf"), ("02_table3b_sentimant", "02_table3b_sentiment"), ("O22", "O2"), ("x/y", "")],
    )
    def test_an_unknown_one_is_refused_with_what_exists(self, root, selector, near):
        with pytest.raises(Refused) as refusal:
            chosen(root, "O2", selector)
        message = str(refusal.value)
        assert (f"did you mean {near}" in message) if near else ("did you mean" not in message)
        assert "decentralized, oarf" in message and "O2, O10, O11" in message and "index.ipynb" in message


KINDS = {
    "int": Parameter("rounds", "int", 3, ""),
    "float": Parameter("lr", "float", 0.1, ""),
    "str": Parameter("model", "str", "cnn", ""),
    "bool": Parameter("iid", "bool", True, ""),
    "list": Parameter("sizes", "list", [1, 2], ""),
    "floats": Parameter("rates", "list", [0.5], ""),
}


class TestConvert:
    @pytest.mark.parametrize(
        "kind, value, result",
        [
            ("int", "-5", -5),
            ("int", 5, 5),
            ("float", "1e-3", 0.001),
            ("float", "2", 2.0),
            ("float", 2, 2.0),
            ("float", "inf", float("inf")),
            ("str", "3", "3"),
            ("bool", "true", True),
            ("bool", "False", False),
            ("bool", False, False),
            ("list", "[3, 4]", [3, 4]),
            ("list", [], []),
            ("floats", "[1, 2.5]", [1.0, 2.5]),
        ],
    )
    def test_to_the_declared_type(self, kind, value, result):
        converted = parameters.convert(KINDS[kind], value, Path())
        assert converted == result and type(converted) is type(result)
        if kind == "floats":
            assert [type(element) for element in converted] == [float, float]

    @pytest.mark.parametrize(
        "kind, value",
        [
            *[("int", value) for value in ("1.5", "", "three", 1.5, True, None, [1])],
            *[("float", value) for value in ("fast", "nan", True, None)],
            *[("str", value) for value in (3, True, None, ["a"])],
            *[("bool", value) for value in ("yes", "1", 1, None)],
            *[("list", value) for value in ("3", "[1, a]", "{a: 1}", "[1", 3, [1.5], [None], [True])],
            ("floats", "[.nan]"),
        ],
    )
    def test_refuses_the_wrong_type_by_name(self, kind, value):
        with pytest.raises(Refused, match=KINDS[kind].name):
            parameters.convert(KINDS[kind], value, Path())

    def test_scale_is_one_of_two(self):
        scale = Parameter("scale", "str", "embedded", "")
        assert parameters.convert(scale, "paper", Path()) == "paper"
        with pytest.raises(Refused, match="did you mean paper"):
            parameters.convert(scale, "papre", Path())

    def test_a_path_becomes_absolute_and_must_exist(self, tmp_path):
        data_dir = Parameter("data_dir", "str", "", "")
        (tmp_path / "here").mkdir()
        assert parameters.convert(data_dir, "here", tmp_path) == str(tmp_path / "here")
        assert parameters.convert(data_dir, "", tmp_path) == ""
        with pytest.raises(Refused, match=r"data_dir: .*/there does not exist"):
            parameters.convert(data_dir, "there", tmp_path)

    @pytest.mark.parametrize("path", ["~no-such-user/x", "a\0b", "a" * 300])
    def test_what_can_be_no_path_is_refused(self, tmp_path, path):
        with pytest.raises(Refused, match=r"parameter data_dir: .* is no path"):
            parameters.given(None, [("data_dir", path)], tmp_path)


class TestPlan:
    def plan(self, root, *selectors, user=None, scale="embedded"):
        entries = catalog.select(catalog.scan(root / "notebooks"), selectors, root / "notebooks", root)
        return plan.plan(entries, user or {}, scale, root / "papers", root)

    def write_scale(self, root, text):
        path = root / "papers/oarf/scales/02_table3b_sentiment.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def test_precedence_defaults_scale_file_file_command_line(self, root, tmp_path):
        more = "\nbatch: int = 1\nscale: str = 'embedded'\nsame: int = 7"
        (root / "notebooks/oarf/02_table3b_sentiment.ipynb").write_text(
            notebook(parameters="rounds: int = 3\nlr: float = 0.1" + more)
        )
        self.write_scale(root, "rounds: 100\nlr: 0.01\nbatch: 64\n")
        file = tmp_path / "mine.yaml"
        file.write_text("lr: 5e-1\nbatch: 32\nsame: 7\n")
        user = parameters.given(file, [("batch", "16")], root)
        (job,), notes = self.plan(root, "O2", user=user, scale="paper")
        assert job.parameters == {"rounds": 100, "lr": 0.5, "batch": 16, "scale": "paper"} and not notes
        assert job.changed == {"lr": 0.5, "batch": 16} and parameters.in_words(job.changed) == "lr=0.5 batch=16"
        assert parameters.in_words({"data_dir": "/somebody/s/folder", "lr": 0.5}) == "lr=0.5"

    def test_the_label_of_a_scale_comes_with_its_sizes_alone(self, root):
        (root / "notebooks/oarf/02_table3b_sentiment.ipynb").write_text(
            notebook(parameters=PARAMETERS + "\nscale: str = 'embedded'")
        )
        with pytest.raises(Refused, match="choose it with --scale paper"):
            self.plan(root, "O2", user={"scale": "paper"})
        assert self.plan(root, "O2", user={"scale": "embedded"})[0][0].parameters == {}

    def test_one_line_for_a_notebook_that_lacks_a_parameter(self, root):
        jobs, notes = self.plan(root, "O2", "tutorials/01_nothing.ipynb", user={"rounds": "5"})
        assert {job.notebook: job.parameters for job in jobs}["tutorials/01_nothing.ipynb"] == {}
        assert notes == ["parameter rounds is not known to tutorials/01_nothing.ipynb, and is not set there"]

    @pytest.mark.parametrize(
        "user, message",
        [
            ({"ronds": "5"}, "unknown parameter 'ronds'; did you mean rounds.*these exist: rounds, lr"),
            ({"zzz": "5"}, "unknown parameter 'zzz'; these exist: rounds, lr"),
            ({"rounds": "x"}, "oarf/02_table3b_sentiment.ipynb: parameter rounds: 'x' is not a whole number"),
        ],
    )
    def test_refusals(self, root, user, message):
        with pytest.raises(Refused, match=message):
            self.plan(root, "O2", user=user)

    def test_paper_scale_wants_a_fitting_file_for_experiments_and_leaves_the_rest_out(self, root):
        with pytest.raises(Refused, match=r"scales/02_table3b_sentiment.yaml does not exist"):
            self.plan(root, "O2", scale="paper")
        with pytest.raises(Refused, match="nothing to run"):
            self.plan(root, "tutorials", scale="paper")
        self.write_scale(root, "ronds: 100")
        with pytest.raises(Refused, match="no parameter 'ronds'; did you mean rounds"):
            self.plan(root, "O2", scale="paper")
        self.write_scale(root, "rounds: many")
        with pytest.raises(Refused, match=r"02_table3b_sentiment.yaml: parameter rounds: 'many'"):
            self.plan(root, "O2", scale="paper")
        self.write_scale(root, "rounds: 100")
        jobs, notes = self.plan(root, "O2", "index.ipynb", scale="paper")
        assert [job.notebook for job in jobs] == ["oarf/02_table3b_sentiment.ipynb"]
        assert notes == ["left out, since they have no paper scale: index.ipynb"]

    @pytest.mark.parametrize("text", ["- 1", "a: [", "3: 4", "text"])
    def test_a_parameter_file_must_be_a_mapping(self, tmp_path, text):
        (tmp_path / "p.yaml").write_text(text)
        with pytest.raises(Refused, match=r"p\.yaml"):
            parameters.given(tmp_path / "p.yaml", [], tmp_path)
        with pytest.raises(Refused, match="No such file"):
            parameters.given(tmp_path / "q.yaml", [], tmp_path)

    def test_the_longest_start_first(self, root):
        long = notebook(default={"minutes": 9, "memory_mb": 1})
        (root / "notebooks/oarf/10_figure9_cost.ipynb").write_text(long)
        assert self.plan(root, "oarf")[0][0].notebook == "oarf/10_figure9_cost.ipynb"

    def test_data_sets_by_folder(self, root):
        declared = 'dataset: str = "imdb + amazon"\nweights: str = ""\ndata_dir: str = ""'
        (root / "notebooks/oarf/02_table3b_sentiment.ipynb").write_text(notebook(parameters=declared))
        jobs, _ = self.plan(root, "O2", user={"weights": "imagenet", "data_dir": "."})
        assert plan.need_data(jobs) == {str(root): ["imdb", "amazon"], "": ["imagenet"]}

    def test_what_is_drawn_here_is_not_looked_for_in_the_users_folder(self, root):
        declared = 'dataset: str = "hanzi+imdb"\ndata_dir: str = ""'
        (root / "notebooks/oarf/02_table3b_sentiment.ipynb").write_text(notebook(parameters=declared))
        jobs, _ = self.plan(root, "O2", user={"data_dir": "."})
        assert plan.need_data(jobs) == {"": ["hanzi"], str(root): ["imdb"]}
        for made_here in ("hanzi", ""):
            jobs, _ = self.plan(root, "O2", user={"data_dir": ".", "dataset": made_here})
            with pytest.raises(Refused, match="data_dir is given, but nothing would be read from it"):
                plan.require_data(jobs)
