"""ONNX files by ONNX Runtime, and what export refuses for every runtime before a converter is asked."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from fl_utils.export import ExportError, export, load_contract, run_exported

LABELS = list("abcd")


@pytest.mark.parametrize(
    "bits, mode, most", [(32, "", 1e-5), (16, "", 5e-3), (8, "", 0.1), (8, "dynamic", 0.1), (8, "static", 0.1)]
)
def test_widths(tiny, tmp_path, bits, mode, most):
    contract = tiny.export("onnx", tmp_path, bits=bits, mode=mode, name="t")
    assert tiny.error(contract) < most and contract.bits == bits and contract.mode == (mode or contract.mode)
    if bits < 32:
        assert contract.bytes < tiny.export("onnx", tmp_path, name="float").bytes


def test_the_contract_says_what_was_exported(tiny, tmp_path):
    contract = tiny.export("onnx", tmp_path, name="clothes", version="7")
    assert load_contract(contract.path) == contract
    content = json.loads(contract.path.read_text())
    assert (content["name"], content["version"], content["runtime"]) == ("clothes", "7", "onnx")
    assert content["runtime_version"].startswith("onnxruntime ") and content["labels"][0] == "ankle boot"
    assert content["input"]["shape"] == [1, 3, 12, 10] and content["input"]["colours"] == "RGB"
    assert content["input"]["scale"] == [2 / 255] * 3 and content["input"]["bias"] == [-1.0] * 3
    assert content["input"]["applied_by"] == "caller" and content["output"]["shape"] == [1, 4]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["clothes.onnx", "clothes.onnx.contract.json"]  # and nothing half-made
    assert tiny.network[0][1].training is False and isinstance(tiny.network[0][1], nn.BatchNorm2d)


def test_several_images_at_once(tiny, tmp_path):
    contract = export(tiny.network, (16, 3, 12, 10), LABELS, "onnx", tmp_path, scale=tiny.scale, bias=tiny.bias)
    assert contract.input.shape[0] == 16 and tiny.error(contract) < 1e-5  # 40 images: the last batch is filled up


def test_an_export_takes_the_place_of_the_one_before(tiny, tmp_path):
    first = tiny.export("onnx", tmp_path)
    again = tiny.export("onnx", tmp_path, bits=16)
    assert first.path == again.path and load_contract(first.path).bits == 16
    assert len(list(tmp_path.iterdir())) == 2


def test_a_federations_model_whose_parameters_are_views(tmp_path):
    from fl_utils.training import Trainer

    torch.manual_seed(0)
    trainer = Trainer(lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4)))
    before = trainer.vector.clone()
    contract = export(trainer.model, (1, 3, 2, 2), LABELS, "onnx", tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (5, 2, 2, 3), dtype=np.uint8)
    wanted = trainer.outputs(torch.from_numpy(images).permute(0, 3, 1, 2) / 255).numpy()
    assert np.allclose(run_exported(contract, images), wanted, atol=1e-5) and torch.equal(trainer.vector, before)
    trainer.vector.zero_()
    assert not trainer.model[1].weight.any()  # still views


def test_an_operator_that_it_does_not_have(bessel, tmp_path):
    with pytest.raises(ExportError) as refused:
        export(bessel, (1, 3, 4, 4), "abc", "onnx", tmp_path, name="waves")
    message = "onnx has no operator 'special_bessel_j0', which 'waves' uses"
    assert str(refused.value).startswith(message) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"to": "tvm"}, "runtime 'tvm': want one of coreml, litert, executorch, onnx"),
        ({"bits": 4}, "onnx has no weights of 4 bits: it has 32, 16, 8"),
        ({"to": "coreml", "bits": 5}, "coreml has no weights of 5 bits: it has 32, 16, 8, 6, 4, 3, 2, 1"),
        ({"to": "litert", "bits": 2}, "litert has no weights of 2 bits: it has 32, 16, 8, 4"),
        ({"to": "executorch", "bits": 4}, "executorch has no weights of 4 bits: it has 32, 16, 8"),
        ({"bits": 8, "mode": "palette"}, "onnx has no mode 'palette' at 8 bits: it has dynamic, static"),
        ({"bits": 8, "mode": "static"}, "there are none, want at least 1"),
        ({"bits": 8, "mode": "static", "calibration": np.zeros((4, 9, 9, 3), np.uint8)}, "'calibration' wants uint8"),
        ({"labels": "abc"}, "there are 3 labels and the model has 4 outputs"),
        ({"labels": "abca"}, "want different, non-empty texts"),
        ({"example_shape": (3, 12, 10)}, "want [N, C, H, W]"),
        ({"example_shape": (1, 3, 0, 10)}, "want [N, C, H, W]"),
        ({"example_shape": (1, 3, 40, 40)}, "does not take images of shape [1, 3, 40, 40]"),
        ({"name": "../x"}, "it becomes a file's name"),
        ({"scale": 0.0}, "the same image always"),
        ({"scale": [1.0, 2.0]}, "want a finite number, or 3, one per colour"),
        ({"bias": float("inf")}, "want a finite number"),
        ({"to": "coreml", "scale": [1.0, 2.0, 1.0]}, "one scale for all colours"),
        ({"model": nn.Identity()}, "want logits [1, classes]"),
    ],
)
def test_refused_before_any_converter_runs(tiny, tmp_path, options, message):
    given = {"model": tiny.network, "example_shape": tiny.shape, "labels": LABELS, "to": "onnx"} | options
    with pytest.raises(ValueError) as refused:
        export(folder=tmp_path / "out", **given)
    assert message in str(refused.value) and not (tmp_path / "out").exists()


def test_nothing_reaches_the_terminal(tiny, tmp_path, capfd):
    tiny.export("onnx", tmp_path, bits=8, mode="dynamic")
    assert capfd.readouterr() == ("", "")
