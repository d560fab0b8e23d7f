"""Costs against convolutions counted by hand, torch's own operation counter and torchvision's published figures."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models as published

from fl_utils import costs
from fl_utils.models import mobile

FLOAT = 4


def small():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(4 * 64, 10),
    )  # fmt: skip


def test_a_small_network_by_hand():
    found = costs.count(small(), (3, 16, 16))
    by_hand = [8 * 8 * 8 * 27, 0, 0, 8 * 8 * 8 * 9, 8 * 8 * 4 * 8, 0, 256 * 10]
    assert [row.multiply_adds for row in found.rows] == by_hand and found.multiply_adds == sum(by_hand)
    assert found.parameters == (27 * 8 + 8) + 16 + 72 + (32 + 4) + 2570
    assert found.buffers == 8 + 8 + 1  # running mean and variance, batches seen
    first, *_, last = found.rows
    assert (first.kind, first.input_shape, first.output_shape) == ("Conv2d", (3, 16, 16), (8, 8, 8))
    assert (first.stride, first.kernel, first.parameters) == (2, (3, 3), 224)
    assert (last.kind, last.output_shape, last.stride) == ("Linear", (10,), None)
    assert [row.name for row in found.kinds("Conv2d")] == ["0", "3", "4"]


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "inputs", "outputs", "groups"),
    [(32, 3, 1, 1, 6, 9, 1), (33, 3, 2, 1, 6, 9, 3), (20, 5, 1, 0, 4, 4, 4), (17, 1, 1, 0, 7, 3, 1)],
)
def test_one_convolution_by_hand_and_by_torch(size, kernel, stride, padding, inputs, outputs, groups):
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups)
    out = (size + 2 * padding - kernel) // stride + 1
    assert costs.count(layer, (inputs, size, size)).multiply_adds == kernel**2 * inputs // groups * outputs * out**2
    assert costs.products(layer, (inputs, size, size)) == costs.count(layer, (inputs, size, size)).multiply_adds
    with FlopCounterMode(display=False) as counter:
        layer(torch.zeros(1, inputs, size, size))
    assert counter.get_total_flops() == 2 * costs.count(layer, (inputs, size, size)).multiply_adds


@pytest.mark.parametrize("name", ["mobilenet_v2", "squeezenet1_0", "shufflenet_v2_x0_5", "shufflenet_v2_x2_0", "vgg16"])
def test_torchvisions_published_figures(name):
    meta = published.get_model_weights(name).DEFAULT.meta
    with torch.device("meta"):
        found = costs.count(published.get_model(name, weights=None), (3, 224, 224))
    assert found.parameters == meta["num_params"]
    assert found.multiply_adds / 1e9 == pytest.approx(meta["_ops"], abs=0.0006)


def test_layers_that_cannot_be_counted_and_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"layer '1' is a Last: its multiply-adds cannot be counted"):
        costs.count(nn.Sequential(nn.Flatten(2), Last(4, 4)), (3, 2, 2))
    for shape in ((32, 32), (1, 3, 32, 32), (3, 0, 32), (3, 32.0, 32)):
        for measure in (costs.count, costs.activation_bytes):
            with pytest.raises(ValueError, match=r"input_shape is .*want one image's \(channels, height, width\)"):
                measure(small(), shape)


class Last(nn.LSTM):
    def forward(self, x):
        return super().forward(x)[0]


def test_torchsummarys_measure_by_hand():
    found = costs.summary(small(), (3, 16, 16))
    outputs = 4 * 8 * 8 * 8 + 4 * 8 * 8 + 256 + 10  # four layers of 8 channels, the pointwise one, flatten, the last
    assert found.forward_backward == 2 * FLOAT * outputs == costs.activation_bytes(small(), (3, 16, 16))
    assert (
        found.input == FLOAT * 3 * 16 * 16 and found.parameters == FLOAT * costs.count(small(), (3, 16, 16)).parameters
    )
    assert found.total == found.input + found.forward_backward + found.parameters
    nested = nn.Sequential(small(), Block())
    assert costs.activation_bytes(nested, (3, 16, 16)) == 2 * FLOAT * (outputs + 10 + 10)  # the block and its layer


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.ReLU()

    def forward(self, x):
        return torch.exp(self.layer(x))


@pytest.mark.parametrize(("strides", "megabytes"), [("stock", 3.13), ("kuangliu", 37.54), ("table_4_1", 97.28)])
def test_the_thesis_memory_of_mobilenet_v2(strides, megabytes):
    with torch.device("meta"):
        model = mobile.mobilenet_v2(10, strides)
    assert round(costs.activation_bytes(model, (3, 32, 32)) / 2**20, 2) == megabytes


def test_the_thesis_memory_of_shufflenet():
    with torch.device("meta"):
        stock, fed = (costs.summary(mobile.shufflenet_v2(10, 2.0, stride), (3, 32, 32)) for stride in (2, 1))
    assert round(stock.parameters / 2**20, 2) == round(fed.parameters / 2**20, 2) == 20.47
    assert round(fed.total / 2**20, 2) == 28.00
    assert round(stock.total / 2**20, 2) == 22.36


def test_saved_bytes_by_hand():
    # y = relu(x w + b), 5 examples of 4: the product keeps x, relu keeps its result
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    assert costs.saved_bytes(model, torch.rand(5, 4)) == FLOAT * (5 * 4 + 5 * 3)
    # the next product keeps relu's result as well: the same memory, counted once
    assert costs.saved_bytes(nn.Sequential(*model, nn.Linear(3, 2)), torch.rand(5, 4)) == FLOAT * (5 * 4 + 5 * 3)
    # a sigmoid in a chain keeps its result, a dropout at rate 0.5 its mask
    assert costs.saved_bytes(nn.Sequential(nn.Linear(4, 3), nn.Sigmoid()), torch.rand(5, 4)) == FLOAT * 35


def test_saved_bytes_are_freed_by_checkpointing_and_leave_the_model_alone():
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=False)

    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
    x = torch.rand(4, 3, 9, 9)
    model.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    whole = costs.saved_bytes(model, x)
    assert whole > 4 * 8 * 49 * FLOAT > costs.saved_bytes(Checkpointed(model), x.requires_grad_()) - x.nbytes
    assert not model.training and not any(layer.training for layer in model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    with pytest.raises(ValueError, match="want a model with parameters that train"):
        costs.saved_bytes(nn.ReLU(), torch.rand(1, 3))


def test_saved_bytes_grow_with_the_batch():
    model = mobile.mobilenet_v2(10)
    four, eight = (costs.saved_bytes(model, torch.rand(n, 3, 32, 32)) for n in (4, 8))
    assert 1.9 < eight / four < 2.01


def test_peak_bytes_by_hand():
    x = torch.rand(2, 3, 8, 8)
    image, convolved = FLOAT * 2 * 3 * 64, FLOAT * 2 * 16 * 64
    chain = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 1, 1))
    assert costs.peak_bytes(chain, x) == image + 2 * convolved  # relu's input and result
    in_place = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(inplace=True), nn.Conv2d(16, 1, 1))
    assert costs.peak_bytes(in_place, x) == image + convolved + FLOAT * 2 * 64
    assert costs.peak_bytes(nn.Sequential(*in_place, *chain[:0], nn.Flatten()), x) == costs.peak_bytes(in_place, x)
    assert costs.peak_bytes(in_place, torch.rand(8, 3, 8, 8)[:2]) == costs.peak_bytes(in_place, x)
