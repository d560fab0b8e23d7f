import pytest
import torch
from torch import nn

from fl_utils import flat
from small import with_batch_norm


class Everything(nn.Module):
    """Tied weights, batch norm, a constant table, a non-persistent buffer, a frozen parameter."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.norm.weight.requires_grad_(False)
        self.register_buffer("table", torch.arange(3))
        self.register_buffer("scratch", torch.ones(2), persistent=False)

    def forward(self, tokens):
        return self.head(self.norm(self.embedding(tokens)))


def test_layout_holds_each_state_entry_once_and_no_constant():
    layout = flat.Layout.of(Everything())
    assert layout.names == (
        "embedding.weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var",
        "norm.num_batches_tracked",
    )  # fmt: skip
    assert layout.trainable == 3
    assert (layout.numel, layout.num_parameters) == (20 + 4 * 4 + 1, 28)
    assert layout.dtypes[-1] == "int64"


def test_flatten_and_load_carry_the_state_to_another_model():
    first, second = Everything(), Everything()
    first(torch.arange(5))  # moves the running statistics
    flat.load(second, flat.flatten(first))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    assert second.norm.num_batches_tracked.dtype == torch.int64


@pytest.mark.parametrize("build", [Everything, with_batch_norm])
def test_bound_model_and_vector_are_the_same_memory(build):
    torch.manual_seed(0)
    model, twin = build(), build()
    flat.load(twin, flat.flatten(model))
    vector = flat.bind(model)
    x = torch.arange(5) if build is Everything else torch.randn(4, 6)
    for network in (model, twin):
        network.train()
        network(x).square().sum().backward()
        torch.optim.SGD(network.parameters(), 0.1).step()
    assert torch.equal(vector, flat.flatten(twin))
    vector.zero_()
    assert all(not parameter.any() for parameter in model.parameters())


def test_another_length_type_or_precision_is_refused():
    model = with_batch_norm()
    layout = flat.Layout.of(model)
    with pytest.raises(ValueError, match=r"float32 of shape \(373,\)"):
        flat.load(model, torch.zeros(layout.numel - 1))
    with pytest.raises(ValueError, match="float64"):
        layout.check(torch.zeros(layout.numel, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"'0.weight' is torch.float16"):
        flat.Layout.of(with_batch_norm().half())
