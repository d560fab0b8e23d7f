"""The model that a notebook leaves, and the ways in which one can fail to fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fl_utils import paths
from fl_utils.export import keep
from fl_utils.export.kept import build, kept, place
from fl_utils.models.vision import SmallCNN
from fl_utils.training import Trainer

NOTEBOOK = "mobile/08_section6-3_conversion"


@pytest.fixture
def batch(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("FL_NOTEBOOKS_CHECKPOINTS", str(tmp_path / "checkpoints" / NOTEBOOK))
    return tmp_path


def leave(model="vision.SmallCNN", arguments=None, state=None, shape=(1, 1, 28, 28), **options) -> Path:
    arguments = {"classes": 3, "width": 4, "hidden": 8} if arguments is None else arguments
    state = SmallCNN(3, 4, 8) if state is None else state
    return keep(NOTEBOOK, model, arguments, state, shape, ["a", "b", "c"], scale=1.0, **options)


def test_it_goes_into_the_batch_and_comes_back(batch):
    trainer = Trainer(lambda: SmallCNN(3, 4, 8))
    examples = torch.randint(0, 256, (5, 1, 28, 28), dtype=torch.uint8)
    path = leave(state=trainer, examples=examples)
    assert path == batch / "models" / f"{NOTEBOOK}.safetensors"
    found = kept(path)
    network, images = found.load()
    assert (found.notebook, found.model, found.shape) == (NOTEBOOK, "vision.SmallCNN", (1, 1, 28, 28))
    assert found.labels == ("a", "b", "c") and (found.scale, found.bias) == (1.0, 0.0) and len(found.version) == 12
    assert images.shape == (5, 28, 28, 1) and np.array_equal(images[..., 0], examples[:, 0].numpy())
    with torch.no_grad():
        assert torch.equal(network(examples), trainer.outputs(examples)) and not network.training
    assert leave() == path and kept(path).load()[1].shape == (0, 28, 28, 1)  # without examples


def test_outside_of_a_batch_and_inside_of_anothers(batch, monkeypatch):
    with pytest.raises(ValueError, match="the notebook that runs is another one"):
        place("mobile/09_other")
    monkeypatch.delenv("FL_NOTEBOOKS_CHECKPOINTS")
    assert place(NOTEBOOK) == paths.RUNS / "models" / f"{NOTEBOOK}.safetensors"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"model": "vision.absent"}, "'vision.absent' with .* is none of fl_utils.models"),
        ({"model": "os.system"}, "none of fl_utils.models"),
        ({"model": "vision"}, "want <module>.<function>"),
        ({"arguments": {"clases": 3}}, "none of fl_utils.models: .*clases"),
        ({"arguments": {"classes": 4}}, "the trained state is not one of vision.SmallCNN"),
        ({"examples": torch.zeros(2, 1, 28, 28)}, "examples are torch.float32"),
        ({"examples": torch.zeros(2, 3, 28, 28, dtype=torch.uint8)}, "want uint8"),
    ],
)
def test_what_does_not_fit_is_refused(batch, options, message):
    with pytest.raises(ValueError, match=message):
        leave(**options)
    assert not (batch / "models").exists()


def test_a_damaged_file_is_refused(batch):
    path = leave()
    data = path.read_bytes()
    for damaged in (b"", data[: len(data) // 2], b"\xff" * 100):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"cannot be read .*run the notebook again"):
            kept(path)
    with pytest.raises(ValueError, match=r"none of fl_utils\.models"):
        build("vision.SmallCNN", {})
