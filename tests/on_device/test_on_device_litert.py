"""LiteRT trains as torch does, and refuses what is not its file."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from fl_utils import flat
from fl_utils.cohorts import Client
from fl_utils.export import load_contract
from fl_utils.models.mobile import small_cnn_600k
from fl_utils.on_device import order
from fl_utils.on_device.litert import LiteRTTrainer, export_training
from fl_utils.training import LocalTraining, Trainer

BATCH = 32  # of the export in conftest.py


@pytest.fixture(scope="module")
def trainer(contract):
    return LiteRTTrainer(contract)


def test_twenty_steps_and_a_short_batch_equal_torchs(trainer, network, digits):
    x, y = digits[0][:300], digits[1][:300]  # ten batches an epoch, the last of twelve
    torch_trainer = Trainer(small_cnn_600k)
    torch_trainer.vector.copy_(flat.flatten(network))
    trainer.load(flat.flatten(network).numpy())
    assert np.array_equal(trainer.vector, flat.flatten(network).numpy())
    losses = trainer.train(x.numpy(), y.numpy(), 2, BATCH, 0.1, seed=5)
    expected = order.train(torch_trainer, Client(0, x, y), LocalTraining(2, BATCH, 0.1), 5)
    assert np.abs(trainer.vector - torch_trainer.vector.numpy()).max() < 1e-5
    assert losses[-1] == pytest.approx(expected, abs=1e-5)
    assert losses[1] < losses[0]
    assert np.allclose(trainer.outputs(x.numpy()), torch_trainer.outputs(x).numpy(), atol=1e-5)
    assert trainer.accuracy(x.numpy(), y.numpy()) == pytest.approx(torch_trainer.evaluate(x, y).accuracy)


def test_the_contract_says_what_the_file_has(contract):
    from ai_edge_litert.interpreter import Interpreter

    found = load_contract(contract)
    signatures = Interpreter(str(found.model_path)).get_signature_list()
    for name in ("train", "infer"):
        assert set(signatures[name]["inputs"]) == set(found.training[name]["inputs"])
        assert set(signatures[name]["outputs"]) == set(found.training[name]["outputs"])
    shapes = [each["shape"] for name, each in found.training["train"]["inputs"].items() if "parameter" in name]
    assert sum(int(np.prod(shape)) for shape in shapes) == 585_958
    assert found.training["state"]["bytes"] == 4 * 585_958


def test_wrong_inputs_are_named(trainer, digits):
    x, y = digits[0][:4].numpy(), digits[1][:4].numpy()
    with pytest.raises(ValueError, match=r"vector is float32 \[3\]: this model's is float32 \[585958\]"):
        trainer.load(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="images are float32"):
        trainer.step(x.astype(np.float32), y)
    with pytest.raises(ValueError, match="labels: want one for each of 4 images, from 0 to 9"):
        trainer.step(x, y + 10)
    with pytest.raises(ValueError, match="batch_size is 33: this file takes 1 to 32"):
        trainer.train(x, y, 1, 33, 0.1, 0)


def test_damaged_files_are_refused(contract, tmp_path):
    folder = shutil.copytree(contract.parent, tmp_path / "copy")
    path, state = folder / contract.name, folder / "training.state"
    data = state.read_bytes()
    state.write_bytes(data[:-4])
    with pytest.raises(ValueError, match=r"state .* is missing, truncated or altered"):
        LiteRTTrainer(path)
    state.write_bytes(data)
    model = folder / "training.tflite"
    model.write_bytes(model.read_bytes()[:-1])
    with pytest.raises(ValueError, match="truncated"):
        LiteRTTrainer(path)
    shutil.copy(contract.parent / "training.tflite", model)
    content = json.loads(path.read_text()) | {"training": {}}
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="has no training step for LiteRT"):
        LiteRTTrainer(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"labels": ("a", "b")}, "there are 2 labels and the model has 10 outputs"),
        ({"image_shape": (1, 5, 5)}, "the model does not take images"),
        ({"name": "../up"}, "name is '../up'"),
    ],
)
def test_an_export_that_cannot_be_leaves_nothing(tmp_path, change, said):
    with pytest.raises(ValueError, match=said):
        export_training(small_cnn_600k(), **{"batch": 2, "learning_rate": 0.1, "folder": tmp_path} | change)
    assert not list(tmp_path.iterdir())
    assert torch.is_grad_enabled()
