"""Robust averages against the obvious slow ones, under permutations, and under attack."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_utils import federation, robust
from fl_utils.aggregation import fedavg
from small import LOCAL, clients, plain_mlp

SHAPES = st.tuples(st.integers(1, 23), st.integers(0, 30), st.integers(0, 999))


def drawn(count: int, length: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, length, generator=generator) * 10


def with_ties(count: int, length: int, seed: int) -> torch.Tensor:
    return drawn(count, length, seed).div(10).round()


@given(SHAPES, st.booleans())
def test_median_is_numpys(shape, ties):
    vectors = (with_ties if ties else drawn)(*shape)
    assert np.array_equal(robust.median(vectors).numpy(), np.median(vectors.numpy(), axis=0))


def test_every_number_of_values_is_sorted():
    """A network of comparisons sorts all inputs if it sorts those of zeros and ones (Knuth, section 5.3.4, theorem Z).

    Of ``count`` values every pattern of zeros and ones is one coordinate here.
    """
    for count in range(1, 13):
        patterns = (torch.arange(2**count).unsqueeze(0) >> torch.arange(count).unsqueeze(1) & 1).float()
        assert np.array_equal(robust.median(patterns).numpy(), np.median(patterns.numpy(), axis=0))
        for place in range(count):
            network = robust._network(count, range(place, place + 1))
            rows = list(patterns.clone())
            for first, second, lower, higher in network:
                low, high = torch.minimum(rows[first], rows[second]), torch.maximum(rows[first], rows[second])
                rows[first], rows[second] = low if lower else rows[first], high if higher else rows[second]
            assert torch.equal(rows[place], patterns.sort(0).values[place])


@given(SHAPES, st.data())
def test_trimmed_mean_is_the_mean_of_what_sorting_leaves(shape, data):
    vectors, count = drawn(*shape), shape[0]
    low = data.draw(st.integers(0, (count - 1) // 2))
    slow = np.sort(vectors.numpy().astype(np.float64), axis=0)[low : count - low].mean(0)
    torch.testing.assert_close(robust.trimmed_mean(vectors, low), torch.from_numpy(slow).float(), atol=1e-5, rtol=1e-6)
    share = data.draw(st.floats(0, 0.5, exclude_max=True))
    assert torch.equal(
        robust.trimmed_mean(vectors, share),
        robust.trimmed_mean(vectors, min(int(share * count + 1e-9), (count - 1) // 2)),
    )


def test_a_share_that_binary_numbers_miss_by_a_hair_trims_what_it_says():
    vectors = drawn(100, 5, 0)
    assert torch.equal(robust.trimmed_mean(vectors, 0.29), robust.trimmed_mean(vectors, 29))


def slow_scores(vectors: torch.Tensor, byzantine: int) -> torch.Tensor:
    """As the paper has it: one vector after the other, in double precision."""
    wide, scores = vectors.double(), []
    for number, one in enumerate(wide):
        distances = sorted(float(((one - other) ** 2).sum()) for n, other in enumerate(wide) if n != number)
        scores.append(sum(distances[: len(wide) - byzantine - 2]))
    return torch.tensor(scores, dtype=torch.float64)


@given(st.integers(3, 12), st.integers(1, 40), st.integers(0, 999), st.data())
@settings(max_examples=50)
def test_krum_is_the_papers(count, length, seed, data):
    byzantine = data.draw(st.integers(0, (count - 3) // 2))
    vectors = drawn(count, length, seed)
    right = slow_scores(vectors, byzantine)
    torch.testing.assert_close(robust.krum_scores(vectors, byzantine), right, rtol=1e-5, atol=0)
    assert torch.equal(robust.krum(vectors, byzantine), vectors[right.argmin()])
    select = data.draw(st.integers(1, count - byzantine))
    best = vectors[right.argsort()[:select]]
    several = robust.multi_krum(vectors, byzantine, select)
    torch.testing.assert_close(several, best.double().mean(0).float(), atol=1e-5, rtol=1e-5)


def test_krum_tells_near_vectors_apart_that_are_long():
    far = torch.full((1000,), 1e4)
    vectors = torch.stack([far + step * 1e-2 for step in (0, 1, 2, 3, 40)])
    torch.testing.assert_close(robust.krum_scores(vectors, 1), slow_scores(vectors, 1), rtol=1e-4, atol=0)


def test_pieces_do_not_show(monkeypatch):
    monkeypatch.setattr(robust, "CACHED", 0)  # pieces of the least width, the last of them cut off
    vectors = drawn(9, 2500, 1)
    assert len(list(robust._pieces(robust._rows(vectors)))) == 3
    assert np.array_equal(robust.median(vectors).numpy(), np.median(vectors.numpy(), axis=0))
    torch.testing.assert_close(robust.krum_scores(vectors, 2), slow_scores(vectors, 2), rtol=1e-5, atol=0)
    best = slow_scores(vectors, 2).argsort()[:7]
    torch.testing.assert_close(robust.multi_krum(vectors, 2), vectors[best].mean(0), atol=1e-5, rtol=1e-5)


@given(st.integers(3, 12), st.integers(1, 20), st.randoms(use_true_random=False), st.booleans())
@settings(max_examples=50)
def test_the_order_of_the_vectors_does_not_matter(count, length, random, ties):
    vectors = (with_ties if ties else drawn)(count, length, random.randrange(999))
    order = random.sample(range(count), count)
    for rule in (robust.median, partial(robust.trimmed_mean, trim=0.25)):
        assert torch.equal(rule(vectors), rule(vectors[order]))
    scores, shuffled = (robust.krum_scores(v, (count - 3) // 2) for v in (vectors, vectors[order]))
    torch.testing.assert_close(scores[order], shuffled, rtol=1e-5, atol=0)


@given(st.integers(3, 15), st.integers(1, 20), st.integers(0, 999))
@settings(max_examples=50)
def test_results_lie_within_the_range_of_the_values(count, length, seed):
    vectors = drawn(count, length, seed)
    low, high = vectors.min(0).values - 1e-5, vectors.max(0).values + 1e-5
    for result in (
        robust.median(vectors),
        robust.trimmed_mean(vectors, 0.2),
        robust.krum(vectors, (count - 3) // 2),
        robust.multi_krum(vectors, (count - 3) // 2),
    ):
        assert ((low <= result) & (result <= high)).all()


@pytest.mark.parametrize("huge", [1e3, 1e30])
def test_wrong_vectors_up_to_the_breakdown_point_move_robust_rules_little_and_fedavg_far(huge):
    """f clients send their update with the sign turned, and huge (to 1e30, whose square is no float any more)."""
    honest = 1 + 0.1 * torch.randn(8, 400, generator=torch.Generator().manual_seed(0))
    mean = honest.mean(0)
    attacked = {f: torch.cat([-huge * honest[:f], honest]) for f in (5, 7)}
    for result in (
        robust.median(attacked[7]),  # 7 of 15: one below half
        robust.trimmed_mean(attacked[5], 5),
        robust.krum(attacked[5], 5),  # 13 > 2 * 5 + 2
        robust.multi_krum(attacked[5], 5),
    ):
        assert (result - mean).abs().max() < 0.5
    assert (fedavg(list(attacked[5]), [1] * 13) - mean).abs().min() > 100
    with pytest.raises(ValueError, match="byzantine is 6 with 13 vectors"):
        robust.krum(attacked[5], 6)


def test_a_federation_survives_an_attack_with_a_robust_rule():
    def train(trainer, client, local, seed):
        before = trainer.vector.clone()
        loss = federation.train_locally(trainer, client, local, seed)
        if client.id == 1:
            trainer.vector.copy_(before - 100 * (trainer.vector - before))
        return loss

    parties = clients((40,) * 6)
    run = partial(federation.run, plain_mlp, parties, rounds=3, local=LOCAL, train=train, seed=1)
    honest = federation.run(plain_mlp, [p for p in parties if p.id != 1], rounds=3, local=LOCAL, seed=1).vector
    rules = [
        robust.median_rule,
        partial(robust.trimmed_mean_rule, trim=1),
        partial(robust.krum_rule, byzantine=1),
        partial(robust.multi_krum_rule, byzantine=1),
    ]
    for rule in rules:
        assert (run(rule=rule).vector - honest).norm() < 0.5 * honest.norm()
    assert (run().vector - honest).norm() > 5 * honest.norm()


def test_vectors_may_be_a_list_one_array_or_a_file_and_out_is_used(tmp_path):
    vectors, out = drawn(5, 300, 3), torch.empty(300)
    file = np.memmap(tmp_path / "vectors", np.float32, "w+", shape=(5, 300))
    file[:] = vectors.numpy()
    file.flush()
    read = np.memmap(tmp_path / "vectors", np.float32, "r", shape=(5, 300))
    for rule in (robust.median, partial(robust.trimmed_mean, trim=1), partial(robust.multi_krum, byzantine=1)):
        right = rule(list(vectors))
        assert torch.equal(rule(vectors), right)
        assert torch.equal(rule(read), right)
        assert torch.equal(rule(list(read)), right)
        assert rule(vectors, out=out) is out
        assert torch.equal(out, right)
    assert torch.equal(vectors, drawn(5, 300, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v: robust.median([]), "vectors is empty"),
        (lambda v: robust.median([v[0], v[1, :2]]), r"vector 1 is float32 \[2\]: want float32 \[4\]"),
        (lambda v: robust.median(v.double()), "vector 0 is float64"),
        (lambda v: robust.median(v.index_fill(0, torch.tensor([2]), torch.nan)), "vector 2 holds values"),
        (lambda v: robust.krum(v.index_fill(0, torch.tensor([1]), torch.inf), 1), "vector 1 holds values"),
        (lambda v: robust.median(v, out=torch.empty(3)), "out is torch.float32 of shape"),
        (lambda v: robust.trimmed_mean(v, 3), "trim is 3 with 5 vectors"),
        (lambda v: robust.trimmed_mean(v, 0.5), "trim is 0.5"),
        (lambda v: robust.trimmed_mean(v, -1), "trim is -1"),
        (lambda v: robust.krum(v, 2), "byzantine is 2 with 5 vectors"),
        (lambda v: robust.krum(v, -1), "byzantine is -1"),
        (lambda v: robust.krum(v, 0.5), "byzantine is 0.5"),
        (lambda v: robust.multi_krum(v, 1, 5), "select is 5: want 1 to n - f = 4"),
        (lambda v: robust.multi_krum(v, 1, -2), "select is -2"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(drawn(5, 4, 0))
