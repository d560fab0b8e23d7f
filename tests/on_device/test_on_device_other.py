"""Runtimes with an environment of their own: absent, they are said to be; present, they train as torch does."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from fl_utils import flat
from fl_utils.cohorts import Client
from fl_utils.models.mobile import small_cnn_600k
from fl_utils.on_device import order, other
from fl_utils.training import LocalTraining, Trainer


def job(network, digits, **changes):
    parameters = [parameter.detach().numpy() for parameter in network.parameters()]
    x, y = digits[0].numpy(), digits[1].numpy()
    given = {"epochs": 2, "batch_size": 32, "learning_rate": 0.1, "seed": 5, "check_steps": 20}
    data = {"parameters": parameters, "x": x[:300], "y": y[:300], "test_x": x[300:], "test_y": y[300:]}
    return data | given | changes


@pytest.mark.parametrize("runtime", other.OTHERS)
def test_without_its_environment_a_runtime_is_not_installed_here(runtime, network, digits, tmp_path):
    found = other.train(runtime, **job(network, digits), root=tmp_path)
    assert (found.why, found.vector) == (other.NOT_INSTALLED, None)


@pytest.mark.parametrize("runtime", other.OTHERS)
def test_with_its_environment_a_runtime_trains_as_torch_does(runtime, network, digits):
    if other.OTHERS[runtime].python() is None:
        pytest.skip(f"{other.OTHERS[runtime].folder} is not here")
    found = other.train(runtime, **job(network, digits))
    trainer = Trainer(small_cnn_600k)
    trainer.vector.copy_(flat.flatten(network))
    order.train(trainer, Client(0, digits[0][:300], digits[1][:300]), LocalTraining(2, 32, 0.1), 5)
    assert np.abs(found.vector - trainer.vector.numpy()).max() < 1e-5
    assert found.accuracy == pytest.approx(trainer.evaluate(digits[0][300:], digits[1][300:]).accuracy, abs=0.01)
    assert found.seconds > 0
    assert len(found.losses) == 20


def test_a_script_that_fails_is_quoted(network, digits, tmp_path):
    """An environment without the runtime: the script ends in an ImportError, in a Python without packages."""
    python = tmp_path / ".venv-ort" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.base_prefix}/bin/python3" -S "$@"\n')
    python.chmod(0o755)
    with pytest.raises(RuntimeError, match=r"ONNX Runtime training failed with exit code 1:(.|\n)*ModuleNotFoundError"):
        other.train("onnxruntime", **job(network, digits), root=tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"parameters": []}, "there are 0 parameters"),
        ({"x": np.zeros((4, 28, 28), np.uint8), "y": np.zeros(4, np.int64)}, r"x is uint8 \[4, 28, 28\]"),
        ({"learning_rate": [0.1, 0.1]}, r"want a number above 0, or 20, one for each step"),
        ({"check_steps": 21}, "check_steps is 21: this training has 1 to 20 steps"),
    ],
)
def test_a_wrong_job_is_refused_before_it_is_sent(network, digits, change, said):
    with pytest.raises(ValueError, match=said):
        other.train("onnxruntime", **job(network, digits, **change))


def test_an_unknown_runtime_is_named(network, digits):
    with pytest.raises(ValueError, match="runtime is 'tensorflow': want one of onnxruntime, executorch"):
        other.train("tensorflow", **job(network, digits))
