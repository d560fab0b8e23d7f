"""Keras in its own environment: absent, it is said to be; present, it computes and begins as the tables have it."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from fl_utils import framework_defaults as defaults
from fl_utils.other_frameworks import keras_runs
from fl_utils.other_frameworks.small_vgg import SmallVGG
from fl_utils.other_frameworks.training import Schedule


@pytest.fixture(scope="module")
def images():
    return torch.randint(256, (40, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.fixture(scope="module")
def model():
    network = SmallVGG(4, 14, (8, 0, 16, 0), embedding=12)
    defaults.initialise(network, "vgg-16", "pytorch", 0)
    return network


@pytest.mark.parametrize("backend", keras_runs.BACKENDS)
def test_without_its_environment_it_is_not_installed_here(backend, model, images, tmp_path):
    x = defaults.prepare(images, "vgg-16", "tensorflow", 14)
    found = keras_runs.embed(backend, model, x, root=tmp_path)
    assert (found.why, found.embeddings) == (keras_runs.NOT_INSTALLED, None)


@pytest.mark.parametrize("backend", keras_runs.BACKENDS)
def test_with_it_the_same_weights_give_the_same_embeddings(backend, model, images):
    if keras_runs.ENVIRONMENTS["jax"].python() is None:
        pytest.skip("its environment is not here: make keras")
    x = defaults.prepare(images, "vgg-16", "pytorch", 14)
    found = keras_runs.embed(backend, model, x)
    with torch.no_grad():
        assert np.abs(found.embeddings - model.features(x).numpy()).max() < 1e-4
    for ours, theirs in zip(model.parameters(), found.initial, strict=True):
        assert np.array_equal(ours.detach().numpy(), theirs)


def test_keras_begins_and_normalises_as_the_tables_have_tensorflow(model, images):
    """Its own first weights: Table 12's uniform ones. Its own three ways with pixels: two of Table 11, and one more."""
    if keras_runs.ENVIRONMENTS["jax"].python() is None:
        pytest.skip("its environment is not here: make keras")
    pixels = images[:, :, :14, :14].float()
    y = torch.arange(40) % 4
    found = keras_runs.train("tensorflow", model, images, y, pixels, Schedule(2, 16, 1e-4), 0)
    assert len(found.losses) == 2
    assert found.seconds > 0
    for weight in (value for value in found.initial if value.ndim > 1):
        rule = defaults.INITIALISATION["vgg-16", "tensorflow"].convolution
        assert np.abs(weight).max() <= rule.scale(weight.shape) * (1 + 1e-6)
        assert weight.std() == pytest.approx(rule.std(weight.shape), rel=5 / weight.size**0.5)
    first = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    first[:, :, 1:15, 1:15] = images[:1, :, :14, :14]  # so that a centred crop of 14 is the picture that Keras had
    for mode, network, framework in (("torch", "vgg-16", "pytorch"), ("tf", "inception-v3", "tensorflow")):
        wanted = defaults.prepare(first, network, framework, 14).numpy()
        assert np.abs(found.normalised[mode] - wanted).max() < 1e-4
    ours = defaults.prepare(first, "vgg-16", "tensorflow", 14).flip(1).numpy()
    assert np.abs(found.normalised["caffe"] - ours).max() < 1e-3  # Keras calls BGR less ImageNet's means "caffe"


def test_a_script_that_fails_is_quoted(model, images, tmp_path):
    """An environment without Keras: the script ends in an ImportError, in a Python without packages."""
    python = tmp_path / ".venv-keras" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.base_prefix}/bin/python3" -S "$@"\n')
    python.chmod(0o755)
    with pytest.raises(RuntimeError, match=r"Keras on JAX failed with exit code 1:(.|\n)*ModuleNotFoundError"):
        keras_runs.embed("jax", model, images[:, :, :14, :14].float(), root=tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"backend": "caffe"}, "backend is 'caffe': want one of tensorflow, jax"),
        ({"images": torch.zeros(1, 3, 4, 4, dtype=torch.uint8)}, r"images are torch.uint8 \[1, 3, 4, 4\]"),
        ({"schedule": Schedule(1, 8, 0.1, weight_decay=0.1)}, "weight_decay is 0.1"),
        ({"schedule": Schedule(1, 80, 0.1)}, "M at least 80"),
        ({"y": torch.zeros(3, dtype=torch.int64)}, "40 examples and 3 labels"),
    ],
)
def test_a_wrong_job_is_refused_before_it_is_sent(change, said, model, images):
    given = {"backend": "jax", "model": model, "x": images, "y": torch.arange(40) % 4, "schedule": Schedule(1, 8, 0.1)}
    given |= {"images": images[:, :, :14, :14].float(), "seed": 0} | change
    with pytest.raises(ValueError, match=said):
        keras_runs.train(**given)
