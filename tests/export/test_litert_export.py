"""Files for LiteRT, run by LiteRT: each width against torch, the operator that it does not have."""

from __future__ import annotations

import pytest

from fl_utils.export import ExportError, export, load_contract

WIDTHS = [
    (16, "float", 5e-3),
    (8, "dynamic", 0.1),
    (8, "weight_only", 0.05),
    (4, "dynamic", 0.6),
    (4, "weight_only", 0.6),
]


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory):
    return tiny.export("litert", tmp_path_factory.mktemp("litert"), name="clothes")


def test_floats(tiny, plain):
    assert tiny.error(plain) < 1e-5 and plain.bits == 32 and load_contract(plain.path) == plain
    assert sorted(path.name for path in plain.path.parent.iterdir()) == ["clothes.litert.contract.json", plain.file]


@pytest.mark.parametrize("bits, mode, most", WIDTHS)
def test_narrower(tiny, plain, tmp_path, bits, mode, most):
    contract = tiny.export("litert", tmp_path, bits=bits, mode=mode)
    assert 0 < tiny.error(contract) < most and contract.mode == mode and contract.bytes < plain.bytes


def test_an_operator_that_it_does_not_have(bessel, tmp_path):
    with pytest.raises(ExportError) as refused:
        export(bessel, (1, 3, 4, 4), "abc", "litert", tmp_path, name="waves")
    message = "litert has no operator 'special_bessel_j0', which 'waves' uses"
    assert str(refused.value).startswith(message) and not list(tmp_path.iterdir())
