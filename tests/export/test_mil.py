"""MIL's operators and compressed weights, each against torch or worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fl_utils.export.mil_operators import OPERATORS
from fl_utils.export.mil_weights import decode


def test_affine_weights():
    numbers = np.array([[1, -2], [3, 4]], np.int8)
    given = {"quantized_data": numbers, "axis": 0, "scale": np.float32([0.5, 2]), "zero_point": np.int8([1, 0])}
    assert decode("constexpr_affine_dequantize", given).tolist() == [[0.0, -1.5], [6.0, 8.0]]
    given |= {"scale": np.float32(2), "zero_point": np.int8(1)}
    assert decode("constexpr_affine_dequantize", given).tolist() == [[0.0, -6.0], [4.0, 6.0]]


def test_blocks_of_weights():
    given = {"data": np.int8([[1, 2, 3, 4]]), "scale": np.float32([[10, 100]]), "offset": np.int8([[1, 0]])}
    assert decode("constexpr_blockwise_shift_scale", given).tolist() == [[0, 10, 300, 400]]


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
def test_packed_tables(bits):
    count = 2**bits
    indices, table = np.random.default_rng(bits).integers(0, count, 15), np.arange(count) * 0.5 - 1
    stream = np.concatenate([[(index >> k) & 1 for k in range(bits)] for index in indices])
    given = {"indices": np.packbits(stream.astype(np.uint8), bitorder="little"), "lut": np.float32(table)}
    dense = decode("constexpr_lut_to_dense", given | {"shape": np.uint32([3, 5])})
    assert np.array_equal(dense, np.float32(table)[indices].reshape(3, 5))


def test_tables_by_channel_and_of_vectors():
    indices = np.uint8([[0, 1], [1, 0]])
    table = np.float32([[[[1], [2]]], [[[3], [4]]]])  # [2 groups, 1, 2 entries, length 1]
    assert decode("constexpr_lut_to_dense", {"indices": indices, "lut": table}).tolist() == [[1, 2], [4, 3]]
    vectors = np.float32([[[[1, 10], [2, 20]]]])  # one group, two entries of length 2
    given = {"indices": indices, "lut": vectors, "vector_axis": 0}
    assert decode("constexpr_lut_to_dense", given).tolist() == [[1, 2], [10, 20], [2, 1], [20, 10]]


def test_sparse_weights():
    given = {"nonzero_data": np.float32([5, 7]), "mask": np.uint8([[0, 1], [1, 0]])}
    assert decode("constexpr_sparse_to_dense", given).tolist() == [[0, 5], [7, 0]]
    given |= {"mask": np.uint8([0b0110]), "shape": np.uint32([2, 2])}
    assert decode("constexpr_sparse_to_dense", given).tolist() == [[0, 5], [7, 0]]
    assert decode("constexpr_cast", {"source_val": np.float16([0.5])}).dtype == np.float32


def test_unknown_weights_are_named():
    with pytest.raises(ValueError, match="unknown MIL operator 'constexpr_magic'"):
        decode("constexpr_magic", {})


@pytest.mark.parametrize("kind", ["valid", "custom", "same", "same_lower"])
def test_convolution(kind):
    x, weight = torch.randn(2, 4, 7, 8), torch.randn(6, 2, 3, 3)
    given = {"x": x, "weight": weight, "bias": torch.randn(6), "groups": 2, "strides": [2, 2], "pad_type": kind}
    found = OPERATORS["conv"](given | {"pad": [1, 1, 1, 1], "dilations": [1, 1]})
    pads = {"valid": (0, 0, 0, 0), "custom": (1, 1, 1, 1), "same": (0, 1, 1, 1), "same_lower": (1, 0, 1, 1)}[kind]
    wanted = functional.conv2d(functional.pad(x, pads), weight, given["bias"], 2, groups=2)
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("size", [6, 7, 8])
@pytest.mark.parametrize("padding, ceiling", [(0, False), (0, True), (1, False), (1, True)])
def test_pooling(size, padding, ceiling):
    x = torch.randn(1, 2, size, size)
    given = {"x": x, "kernel_sizes": [3, 3], "strides": [2, 2], "pad_type": "custom", "pad": [padding] * 4}
    found = OPERATORS["max_pool"](given | {"ceil_mode": ceiling})
    assert torch.equal(found, nn.MaxPool2d(3, 2, padding, ceil_mode=ceiling)(x))
    if not ceiling:
        for exclude in (False, True):
            found = OPERATORS["avg_pool"](given | {"exclude_padding_from_average": exclude})
            wanted = nn.AvgPool2d(3, 2, padding, count_include_pad=not exclude)(x)
            assert torch.allclose(found, wanted, atol=1e-6)


def test_shapes_and_the_rest():
    x = torch.randn(2, 6, 4, 4)
    operate = lambda name, **given: OPERATORS[name](given)  # noqa: E731
    assert torch.equal(operate("reshape", x=x, shape=[0, 2, 3, -1]), x.reshape(2, 2, 3, 16))
    first, second = operate("split", x=x, num_splits=2, axis=1)
    assert torch.equal(torch.cat([first, second], 1), x)
    sizes = operate("split", x=x, split_sizes=[1, 5], axis=1)
    assert [part.shape[1] for part in sizes] == [1, 5]
    chosen = operate(
        "slice_by_index", x=x, begin=[0, 1, 0, 0], end=[2, 5, 4, 1], stride=[1, 2, 1, 1],
        end_mask=[True, False, True, False], squeeze_mask=[False, False, False, True],
    )  # fmt: skip
    assert torch.equal(chosen, x[:, 1:5:2, :, 0])
    norm = nn.BatchNorm2d(6).eval()
    norm.running_mean.normal_()
    given = {"mean": norm.running_mean, "variance": norm.running_var, "gamma": norm.weight, "beta": norm.bias}
    assert torch.allclose(operate("batch_norm", x=x, epsilon=1e-5, **given), norm(x), atol=1e-6)
    ones = torch.ones(4)
    found = operate("layer_norm", x=x, axes=[-1], epsilon=1e-5, gamma=ones, beta=ones)
    assert torch.allclose(found, functional.layer_norm(x, (4,)) + 1, atol=1e-5)
    assert torch.equal(operate("matmul", x=x, y=x, transpose_y=True), x @ x.transpose(-1, -2))
    assert operate("pad", x=x, pad=[0, 0, 1, 2], constant_val=3.0)[0, 0, 0, 0] == 3
    assert operate("expand_dims", x=x, axes=[0, 3]).shape == (1, 2, 6, 1, 4, 4)
    assert torch.equal(operate("reduce_max", x=x, axes=[2, 3], keep_dims=False), x.amax((2, 3)))
    assert torch.equal(operate("clip", x=x, alpha=0.0, beta=0.5), x.clamp(0, 0.5))
    assert torch.equal(operate("sub", x=2.0, y=x), 2 - x)


@pytest.mark.parametrize(
    "name, given",
    [
        ("pad", {"x": torch.zeros(1, 1, 2, 2), "pad": [1, 1], "mode": "reflect"}),
        ("slice_by_index", {"x": torch.zeros(3), "begin": [2], "end": [0], "stride": [-1]}),
        ("max_pool", {"x": torch.zeros(1, 1, 4), "kernel_sizes": [2], "pad_type": "valid"}),
    ],
)
def test_what_is_not_read_is_refused(name, given):
    with pytest.raises(ValueError, match=r"is not read here"):
        OPERATORS[name](given)


def test_concatenation_one_of_each_in_turn():
    x, y = torch.zeros(1, 2, 1), torch.ones(1, 2, 1)
    assert OPERATORS["concat"]({"values": [x, y], "axis": 1}).flatten().tolist() == [0, 0, 1, 1]
    assert OPERATORS["concat"]({"values": [x, y], "axis": 1, "interleave": True}).flatten().tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    "build, arguments",
    [
        ("shufflenet_v1", {"groups": 3, "scale": 0.25}),
        ("shufflenet_v2", {"width": 0.5}),
    ],
)
def test_networks_for_phones(build, arguments, tmp_path):
    from fl_utils.export import export, run_exported
    from fl_utils.models import mobile

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = getattr(mobile, build)(classes=3, **arguments)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        for _ in range(10):
            network(x)  # statistics of batch norm, without which little of an image arrives at the end
        wanted = network.eval()(x).numpy()
    found = run_exported(export(network, (1, 3, 32, 32), "abc", "coreml", tmp_path), images)
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_an_attribute_that_is_not_computed_is_refused(tmp_path, monkeypatch):
    from fl_utils.export import export, mil, run_exported

    network = nn.Sequential(nn.MaxPool2d(2), nn.Flatten())
    contract = export(network, (1, 3, 4, 2), list("abcdef"), "coreml", tmp_path)
    images = np.zeros((2, 4, 2, 3), np.uint8)
    assert run_exported(contract, images).shape == (2, 6)
    forgetful = lambda inputs: nn.MaxPool2d(2)(inputs["x"])  # noqa: E731
    monkeypatch.setitem(mil.OPERATORS, "max_pool", forgetful)
    with pytest.raises(ValueError, match=r"'max_pool' with ceil_mode, kernel_sizes, pad_type, strides, which is not"):
        run_exported(contract, images)
