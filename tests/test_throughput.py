"""Timing of runtimes: who takes turns with whom, what is compared, and what is refused."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import nn

from fl_utils import throughput

SHAPE = (1, 3, 12, 10)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(), nn.Flatten(), nn.Linear(640, 4))
    return throughput.with_statistics(layers, torch.rand(16, *SHAPE[1:]))


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).random(SHAPE, dtype=np.float32)


def test_statistics_are_those_of_the_images():
    images = torch.rand(32, *SHAPE[1:]) * 3 + 1
    norm = throughput.with_statistics(nn.Sequential(nn.BatchNorm2d(3)), images)[0]
    assert torch.allclose(norm.running_mean, images.mean((0, 2, 3)), atol=1e-5) and not norm.training
    assert torch.allclose(norm.running_var, images.transpose(0, 1).flatten(1).var(1), atol=1e-4)


def test_relu6_in_four_steps_is_relu6(network):
    x = torch.linspace(-9, 9, 181)
    assert torch.equal(throughput.SplitReLU6()(x), nn.functional.relu6(x))
    split = throughput.with_split_relu6(network)
    assert isinstance(split[2], throughput.SplitReLU6) and isinstance(network[2], nn.ReLU6)
    with pytest.raises(ValueError, match="no ReLU6 to split"):
        throughput.with_split_relu6(split)


def test_variants_take_turns(image):
    calls = []
    runs = {name: lambda inputs, name=name: calls.append(name) or inputs for name in "ab"}
    measured = throughput.measure(runs, image, repeats=3, calls=2)
    assert "".join(calls) == "aabb" + "aabb" * 3
    assert all(len(times.processor) == len(times.clock) == 3 for times in measured.values())


def test_a_sleeper_takes_the_clock_and_not_the_processor(image):
    def sleep(inputs):
        time.sleep(0.02)

    times = throughput.measure({"sleep": sleep}, image, repeats=3, calls=1)["sleep"]
    assert times.fastest >= 0.02 and times.seconds() < 0.01 and times.busy < 0.5


def test_medians_and_least():
    times = throughput.Measured(processor=(3.0, 1.0, 9.0), clock=(4.0, 2.0, 20.0))
    assert (times.seconds(), times.fastest, times.busy) == (3.0, 2.0, 0.5)


def test_files_compute_what_torch_computes(network, image, tmp_path):
    pytest.importorskip("onnxruntime")
    calibration = np.random.default_rng(1).integers(0, 256, (16, 12, 10, 3), dtype=np.uint8)
    contracts, missing = throughput.files(network, SHAPE, ["onnx/32", "onnx/8"], calibration, tmp_path)
    assert list(contracts) == ["onnx/32", "onnx/8"] and not missing
    before = torch.get_num_threads()
    try:
        runs = throughput.sessions(network, contracts, 1, throughput.traced(network, SHAPE))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert list(runs) == ["torch/32", "torchscript/32", "onnx/32", "onnx/8"]
    logits = {name: run(image) for name, run in runs.items()}
    for name in ("torchscript/32", "onnx/32"):
        assert np.allclose(logits[name], logits["torch/32"], rtol=0, atol=1e-5)
    rounding = np.abs(logits["onnx/8"] - logits["torch/32"]).max()
    assert 0 < rounding < 0.2 * np.abs(logits["torch/32"]).max()


def test_a_runtime_that_is_not_there_is_named(network, tmp_path, monkeypatch):
    def absent(*given, **options):
        raise ImportError("No module named 'litert_torch'")

    monkeypatch.setattr(throughput, "export", absent)
    contracts, missing = throughput.files(network, SHAPE, ["litert/32"], np.zeros((1, 12, 10, 3), np.uint8), tmp_path)
    assert not contracts and "litert_torch" in missing["litert/32"]


def test_bad_input(network, image):
    for variants in (["onnx/16"], ["onnx/32", "onnx/32"]):
        with pytest.raises(ValueError, match="want different ones of torch/32, torchscript/32, onnx/32"):
            throughput.check(variants)
    with pytest.raises(ValueError, match="threads is 0"):
        throughput.sessions(network, {}, 0)
    for repeats, calls, images in ((0, 1, image), (1, 0, image), (1, 1, np.concatenate([image, image]))):
        with pytest.raises(ValueError, match="want at least 1, 1, and one image"):
            throughput.measure({}, images, repeats, calls)
