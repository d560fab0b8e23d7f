"""Chapter 5's cells: what a verdict stands for, and that a probe says no, or not here, where it has to."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from fl_utils import frameworks
from fl_utils.frameworks import (
    NO,
    NOT_INSTALLED,
    PARTLY,
    YES,
    Trial,
    mindspore,
    pysyft,
    pytorch_mobile,
    training,
    trial,
)
from fl_utils.frameworks.trial import CNN, MOBILENET, attempt, first_line


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return Trial(tmp_path_factory.mktemp("trial"), images=4, batch=4, steps=2)


def test_a_trial_is_drawn_from_its_seed_alone(small, tmp_path):
    again, other = Trial(tmp_path, images=4, batch=4), Trial(tmp_path, seed=1, images=4, batch=4)
    for name in (CNN, MOBILENET):
        assert np.array_equal(small.answers[name], again.answers[name])
        assert not np.allclose(small.answers[name], other.answers[name])


def test_outputs_are_compared_within_the_tolerance(small):
    right = dict(small.answers)
    assert small.inferred_cell(right).verdict == YES
    wrong = right | {MOBILENET: right[MOBILENET] * 1.01}
    cell = small.inferred_cell(wrong)
    assert cell.verdict == NO
    assert "MobileNetV2 off by 1e-02" in cell.evidence


def test_a_path_is_plain_sgd(small):
    before, after, _ = small.path(CNN)
    network = small.networks[CNN]
    images = small.inputs(CNN)[:4]
    loss = torch.nn.functional.cross_entropy(network(images), small.labels)
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    for (name, value), gradient in zip(before.items(), gradients, strict=True):
        assert torch.allclose(after[name], value - 0.05 * gradient, atol=1e-7)
    assert small.drifted(2e-4, 10).verdict == NO


def test_a_width_counts_where_the_file_is_short_and_runs(small):
    found = {32: (1000, 1.0), 16: (500, 1.0), 8: (990, 1.0), 4: (130, None), 2: (70, 0.2)}
    cell = small.widths_cell(found, "3 bits: refused")
    assert (cell.verdict, cell.bits, cell.error) == (PARTLY, (16, 2), "3 bits: refused")
    assert "not counted: 8 bits 990 B, 4 bits 130 B" in cell.evidence
    assert small.widths_cell(found | {8: (260, 0.99)}).verdict == YES
    assert small.widths_cell({32: (1000, 1.0), 8: (260, 0.5)}).verdict == NO
    assert small.widths_cell({}, "refused").error == "refused"


def test_a_refusal_is_quoted_and_a_mistake_of_ours_is_not_hidden():
    def refuse():
        raise RuntimeError("\n\nno kernel in /tmp/some/where/model.ptl at 0x7f0012345678\nmore")

    cell = attempt(refuse)
    assert (cell.verdict, cell.error) == (NO, "no kernel in model.ptl at 0x...")
    assert len(first_line("x" * 500)) == trial.LONGEST
    with pytest.raises(TypeError):
        attempt(lambda: len(3))


def test_a_missing_package_is_not_installed_here():
    def lacks(name):
        def probe():
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        return probe

    assert attempt(lacks("litert_torch.backend"), "litert_torch").verdict == NOT_INSTALLED
    with pytest.raises(ModuleNotFoundError):
        attempt(lacks("another"), "litert_torch")


def test_pytorch_mobile_trains_a_whole_mobilenet(small):
    cell = pytorch_mobile.cell("training_mobilenet", small)
    assert cell.verdict == YES, cell
    assert "261,630 weights" in cell.evidence  # its 261,630 include batch norm's statistics


def test_a_step_with_another_rate_is_noticed(small, monkeypatch):
    """The comparison can fail: the file trains with one rate, torch with another."""
    states = small.path(CNN)
    monkeypatch.setattr(small, "learning_rate", 0.2)
    monkeypatch.setattr(small, "path", lambda name: states)
    assert pytorch_mobile.train(small, CNN).verdict == NO


def test_pytorch_mobile_quantizes_to_8_bits_and_not_to_4(small):
    cell = pytorch_mobile.cell("quantization", small)
    assert (cell.verdict, cell.bits) == (YES, (16, 8))
    assert "not counted: 4 bits" in cell.evidence


def test_core_ml_has_no_trainable_batch_norm(small):
    cell = training.cell("core_ml", "training_mobilenet", small)
    assert cell.verdict == NO
    assert cell.evidence.endswith("convolution, depthwise convolution, linear")
    assert cell.error.startswith("batch norm: ")


def test_onnx_runtime_infers(small):
    assert frameworks.decide("onnx_runtime", "inference", small).verdict == YES


def test_pysyft_speaks_of_no_quantization(small):
    assert pysyft.cell("quantization", small).verdict == NO


def test_without_its_environment_mindspore_is_not_installed_here(small, tmp_path):
    for column in frameworks.COLUMNS:
        assert mindspore.cell(column, small, tmp_path).verdict == NOT_INSTALLED


def test_a_script_that_fails_is_quoted(small, tmp_path):
    """An environment without MindSpore Lite: its Python has no packages at all."""
    python = tmp_path / ".venv-mindspore" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.base_prefix}/bin/python3" -S "$@"\n')
    python.chmod(0o755)
    cell = mindspore.cell("inference", small, tmp_path)
    assert cell.verdict == NO
    assert cell.error.startswith("MindSpore Lite failed with exit code 1")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": 30}, "size is 30: want at least 32"),
        ({"steps": 0}, "steps is 0: want a whole number from 1 up"),
        ({"drift": 0}, "drift is 0: want a finite number above 0"),
    ],
)
def test_wrong_numbers_are_refused(tmp_path, change, said):
    with pytest.raises(ValueError, match=said):
        Trial(tmp_path, **change)


def test_an_unknown_cell_is_named(small):
    with pytest.raises(ValueError, match="framework is 'caffe': want one of hiai"):
        frameworks.decide("caffe", "inference", small)
    with pytest.raises(ValueError, match="column is 'speed': want one of inference"):
        frameworks.decide("core_ml", "speed", small)
