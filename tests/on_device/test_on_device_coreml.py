"""The updatable Core ML model holds torch's network and says how it trains; what is changed in it is found."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from fl_utils.export import load_contract
from fl_utils.on_device import coreml


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory):
    return coreml.export_updatable(network, 32, 0.1, 10, tmp_path_factory.mktemp("coreml"))


def test_the_file_is_the_network_made_trainable(exported, network, digits):
    spec = coreml.load(exported.model_path)
    assert coreml.problems(spec, network) == []
    x = digits[0][:20].float() / 255
    with torch.no_grad():
        expected = torch.softmax(network(x), 1).numpy()
    assert np.abs(coreml.forward(spec, x.numpy()) - expected).max() < 1e-6
    update = spec.neuralNetwork.updateParams
    assert update.epochs.defaultValue == 10
    assert update.optimizer.sgdOptimizer.learningRate.defaultValue == pytest.approx(0.1)
    assert update.optimizer.sgdOptimizer.miniBatchSize.defaultValue == 32
    contract = load_contract(exported.path)
    assert list(contract.training["update"]["inputs"]) == [each.name for each in spec.description.trainingInput]
    assert contract.output.shape == (1, 10)


def test_each_change_is_found(exported, network):
    spec = coreml.load(exported.model_path)

    def found(change):
        changed = copy.deepcopy(spec)
        change(changed)
        (line,) = coreml.problems(changed, network)
        return line

    assert "not marked as updatable" in found(lambda s: setattr(s, "isUpdatable", False))
    first = "0_conv2d"
    assert f"layer {first} is not updatable" in found(
        lambda s: setattr(s.neuralNetwork.layers[0], "isUpdatable", False)
    )

    def other_weight(s):
        s.neuralNetwork.layers[0].convolution.weights.floatValue[7] += 0.1

    assert f"layer {first}: its weights differ" in found(other_weight)
    assert "training inputs are ['image']" in found(lambda s: s.description.trainingInput.pop())
    assert "layers are" in found(lambda s: s.neuralNetwork.layers.pop())
    assert "want one categorical cross-entropy" in found(lambda s: s.neuralNetwork.updateParams.lossLayers.pop())


def test_other_layers_and_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"layer 0_batchnorm2d, .* is not built for an updatable Core ML model"):
        network = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(784, 10)).eval()
        coreml.export_updatable(network, 32, 0.1, 10, tmp_path)
    assert not list(tmp_path.iterdir())
    broken = tmp_path / "broken.mlmodel"
    broken.write_bytes(b"\xff" * 40)
    with pytest.raises(ValueError, match="cannot be read as a Core ML model"):
        coreml.load(broken)
