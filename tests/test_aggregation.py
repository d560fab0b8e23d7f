import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_utils import aggregation


def vectors(count: int, length: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, generator=generator) * 10 for _ in range(count)]


@given(
    counts=st.lists(st.integers(1, 10**6), min_size=1, max_size=12), length=st.integers(0, 40), seed=st.integers(0, 99)
)
def test_fedavg_is_the_weighted_mean(counts, length, seed):
    drawn = vectors(len(counts), length, seed)
    slow = sum(v.double() * n for v, n in zip(drawn, counts, strict=True)) / sum(counts)
    torch.testing.assert_close(aggregation.fedavg(drawn, counts), slow.float(), atol=1e-5, rtol=1e-6)


def test_fedavg_of_a_thousand_vectors_keeps_its_precision():
    drawn, counts = vectors(1000, 200, 1), list(range(1, 1001))
    slow = sum(v.double() * n for v, n in zip(drawn, counts, strict=True)) / sum(counts)
    torch.testing.assert_close(aggregation.fedavg(drawn, counts), slow.float(), atol=1e-5, rtol=0)


def test_fedavg_takes_a_generator_that_reuses_one_buffer_and_leaves_its_inputs_alone():
    drawn, buffer = vectors(4, 50, 2), torch.empty(50)
    copies = [v.clone() for v in drawn]
    assert torch.equal(
        aggregation.fedavg_stream((buffer.copy_(v), n) for v, n in zip(drawn, [1, 2, 3, 4], strict=True)),
        aggregation.fedavg(drawn, [1, 2, 3, 4], out=torch.empty(50)),
    )
    assert all(torch.equal(v, c) for v, c in zip(drawn, copies, strict=True))


@pytest.mark.parametrize("length", [0, 1, 1000, aggregation.PIECE, 2 * aggregation.PIECE + 13])
def test_an_average_made_in_pieces_has_the_bits_of_one_made_vector_by_vector(length):
    drawn, counts = vectors(6, length, 4), [3, 1, 500, 2, 2, 9]
    for count in (1, 2, 6):
        one_by_one = aggregation.fedavg_stream(zip(drawn[:count], counts[:count], strict=True))
        assert torch.equal(aggregation.fedavg(drawn[:count], counts[:count]), one_by_one)
        out = torch.empty(length)
        assert aggregation.fedavg(drawn[:count], counts[:count], out=out) is out
        assert torch.equal(out, one_by_one)


@given(count=st.integers(1, 10), k=st.floats(0, 1), seed=st.integers(0, 99))
def test_polyak_in_order_is_its_closed_form(count, k, seed):
    drawn = vectors(count, 30, seed)
    weights = aggregation.polyak_weights(count, k)
    assert sum(weights) == pytest.approx(1)
    slow = sum(v.double() * w for v, w in zip(drawn, weights, strict=True))
    torch.testing.assert_close(aggregation.polyak_in_order(drawn, k), slow.float(), atol=1e-4, rtol=1e-6)


def test_polyak_follows_the_paper_to_the_letter():
    """The code of Raj 2020, section IV.C, on four models: its result and ours."""
    models = [torch.nn.Linear(3, 2) for _ in range(4)]
    drawn = [torch.cat([p.detach().flatten() for p in m.parameters()]) for m in models]
    kept = dict(models[0].named_parameters())
    for model in models[1:]:
        for name, parameter in model.named_parameters():
            kept[name].data.copy_(0.5 * parameter.data + (1 - 0.5) * kept[name].data)
    paper = torch.cat([p.detach().flatten() for p in kept.values()])
    torch.testing.assert_close(aggregation.polyak_in_order(drawn), paper)


def test_polyak_writes_into_old_where_asked():
    old, new = vectors(2, 8, 3)
    expected = 0.25 * old + 0.75 * new
    assert aggregation.polyak(old, new, 0.25, out=old) is old
    torch.testing.assert_close(old, expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: aggregation.fedavg([], []), "vectors is empty"),
        (lambda: aggregation.fedavg([torch.zeros(2)], [0]), "must be positive"),
        (lambda: aggregation.fedavg([torch.zeros(2)], [1, 2]), "shorter|longer"),
        (lambda: aggregation.fedavg([torch.zeros(2), torch.zeros(3)], [1, 1]), "cannot be averaged"),
        (lambda: aggregation.polyak(torch.zeros(2), torch.zeros(2), 1.5), "k is 1.5"),
        (lambda: aggregation.polyak_in_order([]), "vectors is empty"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
