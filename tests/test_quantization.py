"""Few-bit weights against coremltools, scikit-learn's k-means and arithmetic by hand."""

import importlib
import re
from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn

from fl_utils import federation, flat, quantization
from fl_utils.aggregation import fedavg
from fl_utils.export import coreml
from fl_utils.quantization import BITS, MODES, compress, encode, fine_tune, packed_bytes, quantize, recalibrate
from fl_utils.training import LocalTraining, Trainer
from small import clients, mlp

GRANULARITIES = ("tensor", "channel", 4)


@pytest.fixture(scope="module")
def weights():
    return torch.randn(22, 16, 3, 3, generator=torch.Generator().manual_seed(0)) / 10 + 0.02


def groups(tensor, granularity):
    """Flat groups of channels that share a table."""
    size = {"tensor": len(tensor), "channel": 1}.get(granularity, granularity)
    return [tensor[at : at + size].flatten() for at in range(0, len(tensor), size)]


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("mode", ["linear", "linear_symmetric"])
def test_linear_modes_equal_coremltools(weights, mode, bits, granularity):
    if find_spec("coremltools") is None:
        pytest.skip("coremltools is not installed")
    coreml.tools()  # imports it without the packages that it looks for and that take a minute
    tools = importlib.import_module("coremltools.optimize._utils")
    signed = mode == "linear_symmetric"
    axes = (0, 1, 2, 3) if granularity == "tensor" else (1, 2, 3)
    codes, scale, zero = tools.quantize_weight(
        weights.numpy(), axes, bits, signed, mode.upper(), np.int8 if signed else np.uint8
    )
    shape = () if granularity == "tensor" else (-1, 1, 1, 1)
    zero = 0 if zero is None else zero.astype(np.float32).reshape(shape)
    expected = (codes.astype(np.float32) - zero) * scale.reshape(shape)
    np.testing.assert_allclose(quantize(weights, bits, mode, granularity), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_kmeans_is_as_near_as_scikit_learns(weights, bits):
    from sklearn.cluster import KMeans

    column = weights.reshape(-1, 1).numpy()
    theirs = KMeans(2**bits, tol=1e-2, n_init=1, random_state=0).fit(column).inertia_  # as coremltools asks it
    assert float(((quantize(weights, bits, "kmeans") - weights) ** 2).sum()) <= 1.1 * theirs


def test_kmeans_of_two_clouds_by_hand():
    rows = torch.tensor([[0.0, 1.0, 2.0, 10.0, 11.0, 12.0, 13.0]])
    assert quantize(rows, 1, "kmeans").tolist() == [[1.0, 1.0, 1.0, 11.5, 11.5, 11.5, 11.5]]


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("bits", [b for b in BITS if b <= 8])
@pytest.mark.parametrize("mode", MODES)
def test_a_group_has_no_more_values_than_its_bits_allow(weights, mode, bits, granularity):
    found = quantize(weights, bits, mode, granularity)
    for before, after in zip(groups(weights, granularity), groups(found, granularity), strict=True):
        assert len(after.unique()) <= 2**bits
        if mode == "linear":  # off by half a step at most, but where rounding the zero shifts the grid's ends
            step = (before.max().clamp(min=0) - before.min().clamp(max=0)) / (2**bits - 1)
            assert (before - after).abs().max() <= step * 1.001
    assert (quantize(found, bits, mode, granularity) - found).abs().max() <= (
        1e-6 if bits > 1 or mode != "linear" else 1
    )


@pytest.mark.parametrize("mode", MODES)
def test_more_bits_and_finer_tables_are_nearer(weights, mode):
    uneven = weights * torch.logspace(-2, 0, len(weights)).view(-1, 1, 1, 1)
    error = {
        (bits, granularity): float(((quantize(uneven, bits, mode, granularity) - uneven) ** 2).mean())
        for bits in (2, 4, 8)
        for granularity in GRANULARITIES
    }
    for granularity in GRANULARITIES:
        assert error[8, granularity] < error[4, granularity] < error[2, granularity]
    for bits in (2, 4, 8):
        assert error[bits, "channel"] < error[bits, 4] < error[bits, "tensor"]


def test_sixteen_and_thirty_two_bits(weights):
    assert torch.equal(quantize(weights, 32), weights)
    assert torch.equal(quantize(weights, 16), weights.half().float())


def test_constant_and_zero_weights_stay_finite():
    for value in (0.0, 0.25, -3.0):
        for mode in MODES:
            for bits in (1, 4, 8):
                found = quantize(torch.full((3, 5), value), bits, mode, "channel")
                assert torch.isfinite(found).all()
                assert (found - value).abs().max() < 1e-6


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", [1, 3, 8])
def test_packed_bits_can_be_read_back(weights, mode, bits):
    part, *_ = encode(weights, bits, mode, "channel")
    packed, count = part.packed(), weights.numel()
    length = -(-count * bits // 8)
    stream = np.unpackbits(np.frombuffer(packed[:length], np.uint8))[: count * bits].reshape(-1, bits)
    codes = (stream * (1 << np.arange(bits)[::-1])).sum(1).reshape(len(weights), -1)
    numbers = np.frombuffer(packed[length:], "<f4").reshape(len(weights), -1)
    if mode == "linear":
        table = np.linspace(numbers[:, 0], numbers[:, 1], 2**bits, axis=1)
    elif mode == "linear_symmetric":
        table = np.linspace(-numbers[:, 0], numbers[:, 0], max(2, 2**bits - 1), axis=1)
    else:
        table = numbers
    found = np.take_along_axis(table, codes, 1).reshape(weights.shape)
    np.testing.assert_allclose(found, quantize(weights, bits, mode, "channel"), atol=1e-6)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 36, 40),
        nn.ReLU(),
        nn.Linear(40, 3),
    )


def test_a_model_is_compressed_in_its_weights_alone():
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small = compress(model, 2, "kmeans", "channel")
    for name, tensor in small.state_dict().items():
        assert torch.equal(model.state_dict()[name], before[name])
        assert torch.equal(tensor, before[name]) != (name in ("0.weight", "4.weight", "6.weight"))


@pytest.mark.parametrize("bits", [32, 16, 8, 4, 1])
def test_bytes_of_a_packed_model(bits):
    model = network()
    weights = 8 * 9 + 8 * 36 * 40 + 120
    rest = 4 * sum(t.numel() for t in model.state_dict().values()) - 4 * weights
    tables = 3 * 2 * 4 if bits <= 8 else 0
    assert packed_bytes(model, bits, "linear", "tensor") == rest + weights * bits // 8 + tables


def test_recalibration_takes_the_plain_mean_over_the_batches():
    model, x = network(), torch.randn(64, 1, 8, 8)
    recalibrate(model.eval(), x, batch_size=32)
    with torch.no_grad():
        expected = model[0](x).mean((0, 2, 3))
    torch.testing.assert_close(model[1].running_mean, expected)
    assert model[1].momentum == 0.1 and not model.training
    assert recalibrate(mlp(), x) is not None


def examples(n=240):
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(0, 3, (n,), generator=generator)
    x = torch.randn(n, 1, 8, 8, generator=generator)
    x[torch.arange(n), 0, 2 * y, :] += 1.5
    return x, y


def test_fine_tuning_brings_one_bit_back():
    x, y = examples()
    trainer = Trainer(network)
    trainer.train(x, y, LocalTraining(8, 16, 0.05), 0)

    def loss(model):
        with torch.no_grad():
            return float(nn.functional.cross_entropy(model.eval()(x), y))

    whole = loss(trainer.model)
    coarse = loss(compress(trainer.model, 1, "kmeans", "tensor"))
    tuned_model = fine_tune(trainer.model, x, y, LocalTraining(4, 16, 0.02), 0, 1, "kmeans", "tensor")
    assert loss(tuned_model) < coarse / 2
    for layer in (tuned_model[0], tuned_model[4], tuned_model[6]):
        assert isinstance(layer.weight, nn.Parameter) and len(layer.weight.unique()) <= 2
    assert abs(loss(trainer.model) - whole) < 1e-6  # the model that was given is unchanged
    again = fine_tune(trainer.model, x, y, LocalTraining(4, 16, 0.02), 0, 1, "kmeans", "tensor")
    assert torch.equal(again[4].weight, tuned_model[4].weight)


def test_fine_tuning_in_turns_keeps_the_weights_behind_the_codes():
    x, y = examples()
    model = network()
    coarse = partial(fine_tune, x=x, y=y, bits=2)
    none = LocalTraining(1, 16, 0.0)
    turned = coarse(model, local=[none, none, none], seed=4, refresh=1)
    assert torch.equal(turned[0].weight, compress(model, 2, "kmeans", "channel")[0].weight)
    first, second = LocalTraining(2, 16, 0.05), LocalTraining(1, 16, 0.01)
    both = coarse(model, local=[first, second], seed=4)
    again = coarse(coarse(model, local=first, seed=4), local=second, seed=5)
    assert not torch.equal(both[0].weight, again[0].weight)  # the latter starts its second turn from the codes
    assert torch.equal(coarse(model, local=[first], seed=4)[0].weight, coarse(model, local=first, seed=4)[0].weight)
    with pytest.raises(ValueError, match="local is empty: want at least one LocalTraining"):
        coarse(model, local=[], seed=4)


@pytest.mark.parametrize("values", [2, 4, 8, 16])
def test_the_nearest_value_and_the_lower_of_two(values):
    table = torch.arange(values).float().repeat(3, 1)
    rows = torch.tensor([-9.0, 0.0, 0.5, 0.51, 1.0, values - 1.5, values - 1.49, 99.0]).repeat(3, 1)
    expected = torch.tensor([0, 0, 0, 1, 1, values - 2, values - 1, values - 1]).clamp(0, values - 1)
    assert torch.equal(quantization._nearest(rows, table).long(), expected.repeat(3, 1))


def test_a_server_that_compresses_what_it_sends():
    three = clients((30, 17, 25))
    rule = quantization.compressing(federation.fedavg_rule, mlp, 4, "kmeans", "channel")
    run = partial(federation.run, mlp, three, rounds=2, local=LocalTraining(1, 8, 0.1), seed=1)
    found = run(rule=rule)
    trainer = Trainer(mlp)
    trainer.vector.copy_(found.vector)
    layers = [layer for layer in trainer.model.modules() if isinstance(layer, nn.Linear)]
    assert layers
    for layer in layers:
        assert all(len(row.unique()) <= 16 for row in layer.weight)
    given = [torch.randn(flat.Layout.of(mlp()).numel) for _ in range(2)]
    trainer.vector.copy_(fedavg(given, [1, 3]))
    expected = Trainer(lambda: compress(trainer.model, 4, "kmeans", "channel")).vector
    assert torch.equal(rule(given[0], [(given[0], 1), (given[1], 3)]), expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bits": 12}, "bits is 12: mode linear has 32, 16 and 8 to 1"),
        ({"bits": 0}, "bits is 0"),
        ({"mode": "octal"}, "mode is 'octal': want one of linear, linear_symmetric, kmeans"),
        ({"granularity": "row"}, "granularity is 'row'"),
        ({"granularity": 0}, "granularity is 0"),
        ({"weights": torch.tensor([[1.0, torch.nan]])}, "weights (1, 2) hold values that are not finite"),
    ],
)
def test_bad_input(given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        quantize(**{"weights": torch.zeros(2, 2), "bits": 4, "mode": "linear", "granularity": "tensor"} | given)
    with pytest.raises(ValueError, match="codes have 1 to 8"):
        encode(torch.zeros(2, 2), 16)
