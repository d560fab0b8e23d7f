"""Core ML files, computed from their graph: each width against torch and against coremltools' own decoding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fl_utils.export import ExportError, export, load_contract, run_exported

LIMITS = {16: 5e-3, 8: 0.05, 6: 0.1, 4: 0.6, 3: 1.0, 2: 2.0, 1: 4.0}  # of the largest logit
NARROW = [(16, "float"), (8, "linear"), (4, "linear"), (4, "palette"), (3, "palette"), (2, "palette_channel")]


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory):
    return tiny.export("coreml", tmp_path_factory.mktemp("coreml"), name="clothes")


def test_floats(tiny, plain):
    assert tiny.error(plain) < 1e-5 and load_contract(plain.path) == plain
    assert plain.model_path.is_dir() and plain.file == "clothes.mlpackage"
    assert sorted(path.name for path in plain.path.parent.iterdir()) == ["clothes.coreml.contract.json", plain.file]


def test_the_pre_processing_is_in_the_model(tiny, plain):
    from fl_utils.export.coreml import tools

    (image,) = tools().models.MLModel(str(plain.model_path), skip_model_load=True).get_spec().description.input
    assert image.name == "image" and image.type.WhichOneof("Type") == "imageType"
    assert (image.type.imageType.width, image.type.imageType.height) == (10, 12)
    assert plain.input.applied_by == "model"
    assert plain.tensor(tiny.images).max() == 255  # it is given pixels


@pytest.mark.parametrize("bits, mode", NARROW)
def test_narrower(tiny, plain, tmp_path, bits, mode):
    from fl_utils.export.coreml import tools
    from fl_utils.export.mil import Program
    from fl_utils.export.quiet import silenced

    contract = tiny.export("coreml", tmp_path, bits=bits, mode=mode)
    assert 0 < tiny.error(contract) < LIMITS[bits]
    if bits in (8, 4, 3):  # ours decoded the weights as coremltools does
        with silenced():
            ct = tools()
            model = ct.models.MLModel(str(contract.model_path), skip_model_load=True)
            ct.optimize.coreml.decompress_weights(model).save(str(tmp_path / "dense.mlpackage"))
            pixels = contract.tensor(tiny.images)
            dense = Program(tmp_path / "dense.mlpackage")(pixels)
            assert np.allclose(Program(contract.model_path)(pixels), dense, atol=1e-5)
    if mode != "palette_channel":  # a table for each of 16 channels outweighs what it saves in so small a network
        assert contract.bytes < plain.bytes


def test_one_by_one_and_many_at_once_agree(tiny, plain):
    together = run_exported(plain.path, tiny.images)
    alone = np.concatenate([run_exported(plain.path, tiny.images[i : i + 1]) for i in range(3)])
    assert np.allclose(together[:3], alone, atol=1e-6)


def test_a_second_export_replaces_the_first(tiny, tmp_path):
    first = tiny.export("coreml", tmp_path)
    second = tiny.export("coreml", tmp_path, bits=16)
    assert load_contract(first.path) == second and len(list(tmp_path.iterdir())) == 2


def test_a_file_missing_from_the_package(tiny, tmp_path):
    contract = tiny.export("coreml", tmp_path)
    weights = next(contract.model_path.rglob("weight.bin"))
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="it was truncated"):
        run_exported(contract.path, tiny.images)


def test_grey_images(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    contract = export(network, (1, 1, 3, 4), ["a", "b"], "coreml", tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 1), dtype=np.uint8)
    wanted = network(torch.from_numpy(images).permute(0, 3, 1, 2) / 255).detach().numpy()
    assert contract.input.colours == "GRAY" and np.allclose(run_exported(contract, images), wanted, atol=1e-5)
    with pytest.raises(ValueError, match="Core ML's images have 1 or 3 colours, not 2"):
        export(network, (1, 2, 3, 4), ["a", "b"], "coreml", tmp_path)


def test_an_operator_that_it_does_not_have(bessel, tmp_path):
    with pytest.raises(ExportError) as refused:
        export(bessel, (1, 3, 4, 4), "abc", "coreml", tmp_path, name="waves")
    message = "coreml has no operator 'special_bessel_j0', which 'waves' uses"
    assert str(refused.value).startswith(message) and not list(tmp_path.iterdir())


def test_an_operator_that_the_interpreter_does_not_have(tmp_path):
    class Erf(nn.Module):
        def forward(self, image):
            return torch.erf(image).mean((2, 3))

    contract = export(Erf(), (1, 3, 4, 4), "abc", "coreml", tmp_path)
    with pytest.raises(ValueError, match="uses the MIL operator 'erf', which is not computed here"):
        run_exported(contract.path, np.zeros((1, 4, 4, 3), np.uint8))
