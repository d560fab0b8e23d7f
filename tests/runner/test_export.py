"""``fl-notebooks export``: which notebook's model it takes, when it runs the notebook, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_repository import notebook, repository

from fl_utils.export import load_contract, run_exported
from fl_utils.runner.cli import main

KEEPS = """
import torch
from fl_utils.export import keep
from fl_utils.models.vision import SmallCNN
torch.manual_seed(rounds)
examples = torch.randint(0, 256, (8, 1, 28, 28), dtype=torch.uint8)
arguments = {"classes": 3, "width": 4, "hidden": 8}
keep("oarf/01_keeps", "vision.SmallCNN", arguments, SmallCNN(**arguments), (1, 1, 28, 28), "abc", 1.0, 0.0, examples)
"""


def call(root: Path, *arguments: object):
    return CliRunner().invoke(main, ["--root", str(root), "export", *map(str, arguments)])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    notebooks = {
        "oarf/01_keeps.ipynb": notebook(KEEPS),
        "oarf/02_none.ipynb": notebook("print('bookkeep(', rounds)", experiments=["O3"]),
        "oarf/03_fails.ipynb": notebook("def keep(x): 1 / 0\nkeep(3)", experiments=["O4"]),
        "oarf/04_elsewhere.ipynb": notebook("if rounds < 0:\n    keep(3)", experiments=["O5"]),
    }
    return repository(tmp_path, notebooks)


def test_a_notebook_is_run_once_and_its_model_exported(root):
    result = call(root, "O2", "--to", "onnx", "--out", root / "phone")
    assert result.exit_code == 0, result.output
    assert "01_keeps.ipynb has left no model yet: running it" in result.stderr
    assert result.stdout.splitlines()[-1] == "same prediction as torch on 8 of 8 example images"
    first = load_contract(root / "phone" / "01_keeps-32bit.onnx.contract.json")
    assert first.labels == ("a", "b", "c") and first.input.scale == (1.0,) and first.input.colours == "GRAY"
    again = call(root, "oarf/01_keeps", "--to", "onnx", "--bits", "8", "--mode", "static")
    assert again.exit_code == 0 and "running" not in again.stderr
    narrow = load_contract(root / "runs/exports/oarf/01_keeps/01_keeps-8bit.onnx.contract.json")
    assert narrow.bits == 8 and narrow.mode == "static" and narrow.version == first.version
    assert narrow.bytes < first.bytes and run_exported(narrow, np.zeros((2, 28, 28, 1), np.uint8)).shape == (2, 3)
    (ended,) = {path.resolve() for path in (root / "runs").glob("*/oarf/01_keeps.json")}
    ended.unlink()  # a batch in which it did not end well leaves nothing to export
    assert "running it" in call(root, "O2", "--to", "onnx").stderr


def test_a_notebook_that_fails(root):
    result = call(root, "O4", "--to", "onnx")
    assert result.exit_code == 1 and "03_fails.ipynb failed: ZeroDivisionError" in result.stderr
    assert not (root / "runs/exports").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["O9", "--to", "onnx"], "no notebook is meant by 'O9'"),
        (["O3", "--to", "onnx"], "02_none.ipynb leaves no model to export; these do: oarf/01_keeps.ipynb"),
        (["oarf", "--to", "onnx"], "means 4 notebooks: name one; these leave a model: oarf/01_keeps.ipynb"),
        (["O2", "--to", "tvm"], "runtime 'tvm': want one of coreml, litert, executorch, onnx"),
        (["O2", "--to", "onnx", "--bits", "4"], "onnx has no weights of 4 bits: it has 32, 16, 8"),
        (["O2", "--to", "onnx", "--mode", "linear"], "onnx has no mode 'linear' at 32 bits: it has float"),
        (["O2"], "Missing option '--to'"),
    ],
)
def test_refused_before_anything_runs(root, arguments, message):
    result = call(root, *arguments)
    assert result.exit_code == 2 and message in result.output, result.output
    assert not (root / "runs").exists()


def test_a_notebook_that_does_not_come_to_keep(root):
    result = call(root, "O5", "--to", "onnx")
    assert result.exit_code == 2 and "its call of keep was not reached" in result.stderr
