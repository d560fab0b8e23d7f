"""The contract: what it holds, and every way in which it and its model can be wrong; no converter is needed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from fl_utils.export import load_contract
from fl_utils.export.contract import Contract, Input, Output, digest

PIXELS = Input("image", (2, 3, 4, 5), "float32", "NCHW", "RGB", (0.5, 1.0, 2.0), (0.0, -1.0, 3.0), "caller")


@pytest.fixture
def written(tmp_path: Path) -> Contract:
    """A contract beside a file that stands for a model."""
    (tmp_path / "cats.onnx").write_bytes(b"a model" * 100)
    size, sha256 = digest(tmp_path / "cats.onnx")
    given = Output("logits", (2, 2), "float32")
    return Contract(
        "cats", "1", "onnx", "onnxruntime 1", 8, "static", "cats.onnx", size, sha256, PIXELS, given, ("cat", "dog")
    ).write(tmp_path)


def changed(written: Contract, values: dict) -> Path:
    """The contract's file with some of its values replaced, or removed where None; ``input__scale`` is nested."""
    content = json.loads(written.path.read_text())
    for name, value in values.items():
        *parents, last = name.split("__")
        place = content
        for parent in parents:
            place = place[parent]
        if value is None:
            del place[last]
        else:
            place[last] = value
    written.path.write_text(json.dumps(content))
    return written.path


def test_it_is_read_as_it_was_written(written):
    assert written.path.name == "cats.onnx.contract.json" and written.model_path.name == "cats.onnx"
    again = load_contract(written.path)
    assert again == written and again.input == PIXELS and again.labels == ("cat", "dog") and again.training == {}
    assert written.sha256 == hashlib.sha256(b"a model" * 100).hexdigest() and written.bytes == 700
    assert sorted(path.name for path in written.path.parent.iterdir()) == ["cats.onnx", "cats.onnx.contract.json"]


@pytest.mark.parametrize(
    "values, message",
    [
        ({"labels": None}, "'labels' is missing"),
        ({"input": None}, "'input' is missing"),
        ({"input__scale": None}, "'scale' is missing"),
        ({"model__sha256": None}, "'sha256' is missing"),
        ({"contract": 2}, "contract is 2, want 1"),
        ({"runtime": "tvm"}, "runtime is 'tvm', want one of coreml, litert"),
        ({"bits": "8"}, "'bits' is '8', want int"),
        ({"bits": True}, "'bits' is True, want int"),
        ({"input__shape": [2, 3, 4]}, "want 4 whole numbers"),
        ({"input__scale": [1.0]}, "want 3 finite numbers, one per colour"),
        ({"input__bias": [0.0, float("nan"), 0.0]}, "want 3 finite numbers"),
        ({"input__layout": "NHWC"}, "input.layout is 'NHWC', want 'NCHW'"),
        ({"input__colours": "GRAY"}, "input.colours is 'GRAY', want 'RGB'"),
        ({"labels": ["cat"]}, "there are 1 labels and the model has 2 outputs"),
        ({"labels": ["cat", "cat"]}, "want different, non-empty texts"),
        ({"labels": ["cat", 7]}, "want different, non-empty texts"),
        ({"model__file": "../cats.onnx"}, "want a plain name"),
        ({"model__file": "dogs.onnx"}, "its model dogs.onnx is missing"),
    ],
)
def test_a_wrong_value_is_named(written, values, message):
    path = changed(written, values)
    with pytest.raises(ValueError) as refused:
        load_contract(path)
    assert message in str(refused.value) and str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_truncated_and_an_altered_model_are_refused(written):
    data = written.model_path.read_bytes()
    written.model_path.write_bytes(data[:-1])
    with pytest.raises(ValueError, match=r"has 699 bytes, want 700: it was truncated"):
        load_contract(written.path)
    written.model_path.write_bytes(data[:-1] + b"?")
    with pytest.raises(ValueError, match=r"sha256 .* it was altered"):
        load_contract(written.path)
    written.model_path.write_bytes(data)
    assert load_contract(written.path) == written


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"])
def test_a_file_that_is_no_contract(tmp_path, text):
    (tmp_path / "x.contract.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"x\.contract\.json"):
        load_contract(tmp_path / "x.contract.json")
    with pytest.raises(ValueError, match="no such file"):
        load_contract(tmp_path / "absent.json")


def test_a_folder_is_digested_by_its_files_and_their_places(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "Data").mkdir(parents=True)
        (tmp_path / name / "Data" / "weights").write_bytes(b"w")
        (tmp_path / name / "Manifest.json").write_bytes(b"{}")
    assert digest(tmp_path / "a") == digest(tmp_path / "b") and digest(tmp_path / "a")[0] == 3
    files = (("Data/weights", b"w"), ("Manifest.json", b"{}"))
    lines = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files)
    assert digest(tmp_path / "a")[1] == hashlib.sha256(lines.encode()).hexdigest()
    (tmp_path / "b" / "Data" / "weights").rename(tmp_path / "b" / "Data" / "biases")
    assert digest(tmp_path / "a") != digest(tmp_path / "b")


def test_pixels_become_what_the_network_takes(written):
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    x = written.tensor(images)
    assert x.shape == (3, 3, 4, 5) and x.dtype == np.float32
    for colour, (scale, bias) in enumerate(zip(PIXELS.scale, PIXELS.bias, strict=True)):
        assert np.allclose(x[:, colour], images[..., colour] * scale + bias)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 4, 5, 3), np.float32),
        np.zeros((1, 5, 4, 3), np.uint8),
        np.zeros((1, 3, 4, 5), np.uint8),
        np.zeros((1, 4, 5, 1), np.uint8),
        np.zeros((4, 5, 3), np.uint8),
        np.zeros((0, 4, 5, 3), np.uint8),
    ],
)
def test_images_of_another_size_or_type_are_refused(written, images):
    with pytest.raises(ValueError, match=r"'cats' wants uint8 \[N, 4, 5, 3\], RGB pixels of 0 to 255"):
        written.tensor(images)
