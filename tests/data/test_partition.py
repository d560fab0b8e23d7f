"""Partitions cover disjointly, whatever the request; impossible ones are refused by name."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_utils.data import partition
from fl_utils.data.examples import Examples

SEEDS = st.integers(0, 2**31)


def covers(parts, n):
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(n))


def numbered(values, labels=None, groups=None):
    """Examples of one pixel, whose content is its value."""
    x = torch.tensor(values, dtype=torch.uint8).reshape(-1, 1, 1, 1)
    y = torch.tensor(labels if labels is not None else [0] * len(values))
    return Examples(x, y, None if groups is None else torch.tensor(groups))


def different(n, labels):
    """``n`` examples, no two alike."""
    x = torch.tensor([[number // 256, number % 256] for number in range(n)], dtype=torch.uint8)
    return Examples(x.reshape(n, 1, 1, 2), torch.tensor(labels))


@given(st.integers(1, 200), st.data(), SEEDS)
def test_iid(n, data, seed):
    clients = data.draw(st.integers(1, n))
    parts = partition.iid(n, clients, seed)
    covers(parts, n)
    sizes = [len(part) for part in parts]
    assert len(parts) == clients and max(sizes) - min(sizes) <= 1
    assert all(np.array_equal(a, b) for a, b in zip(parts, partition.iid(n, clients, seed), strict=True))


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=120), st.data(), st.floats(1e-4, 1e4), SEEDS)
def test_dirichlet(labels, data, alpha, seed):
    clients = data.draw(st.integers(1, len(labels)))
    least = data.draw(st.integers(0, len(labels) // clients))
    for parts in (
        partition.dirichlet_labels(torch.tensor(labels), clients, alpha, seed, least),
        partition.dirichlet_quantities(len(labels), clients, alpha, seed, least),
    ):
        covers(parts, len(labels))
        assert len(parts) == clients and min(len(part) for part in parts) >= least


def test_alpha_is_what_it_is_said_to_be():
    labels = np.repeat(np.arange(10), 1000)

    def skew(alpha):
        """Mean over clients of the largest label's share: 0.1 where all are alike, 1 where each has one label."""
        parts = partition.dirichlet_labels(labels, 10, alpha, seed=1)
        return np.mean([np.bincount(labels[part]).max() / len(part) for part in parts])

    assert skew(1000.0) < 0.13 < 0.35 < skew(0.1) < skew(0.001) <= 1
    sizes = [
        np.std([len(part) for part in partition.dirichlet_quantities(10_000, 10, alpha, 1)]) for alpha in (0.1, 1e4)
    ]
    assert sizes[0] > 900 and sizes[1] < 50
    shares = np.array([len(partition.dirichlet_quantities(10_000, 2, 2.0, seed)[0]) / 10_000 for seed in range(400)])
    assert abs(shares.mean() - 0.5) < 0.05 and abs(shares.var() - 0.05) < 0.012  # Beta(2, 2): 1/2, 1/20


@given(st.lists(st.integers(0, 9), min_size=1, max_size=120), st.data(), SEEDS)
def test_shards(labels, data, seed):
    clients = data.draw(st.integers(1, len(labels)))
    each = data.draw(st.integers(1, len(labels) // clients))
    parts = partition.shards(labels, clients, each, seed)
    covers(parts, len(labels))
    assert len(parts) == clients


def test_shards_give_each_client_few_labels():
    labels = np.tile(np.arange(10), 600)
    parts = partition.shards(labels, 100, 2, seed=0)
    assert {len(part) for part in parts} == {60}
    assert max(len(np.unique(labels[part])) for part in parts) == 2


def test_natural():
    writers = np.array([3, 1, 3, 3, 1, 7])
    parts = partition.natural(partition.members(torch.tensor(writers)))
    assert [part.tolist() for part in parts] == [[1, 4], [0, 2, 3], [5]]
    assert [part.tolist() for part in partition.natural({"b": [2, 0], "a": [1]})] == [[0, 2], [1]]
    for groups, said in (
        ({}, "groups is empty"),
        ({"a": []}, "group 'a' is empty"),
        ({"a": [0, 1], "b": [1]}, "example 1 is in group 'a' and in group 'b'"),
    ):
        with pytest.raises(ValueError, match=said):
            partition.natural(groups)


LABELS = np.arange(10) % 2


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (lambda: partition.iid(3, 4, 0), "4 clients for 3 examples"),
        (lambda: partition.iid(3, 0, 0), "clients is 0"),
        (lambda: partition.dirichlet_labels(LABELS, 11, 1.0, 0), "11 clients for 10 examples"),
        (lambda: partition.dirichlet_labels(LABELS, 3, 0.0, 0), r"alpha is 0\.0"),
        (lambda: partition.dirichlet_labels(LABELS, 3, float("nan"), 0), "alpha is nan"),
        (lambda: partition.dirichlet_quantities(10, 3, -1.0, 0), r"alpha is -1\.0"),
        (lambda: partition.dirichlet_quantities(10, 3, 1.0, 0, 4), "min_examples = 4 for each of 3 clients needs 12"),
        (lambda: partition.dirichlet_labels(LABELS, 3, 1.0, 0, 4), "min_examples = 4 for each of 3 clients needs 12"),
        (lambda: partition.dirichlet_labels(LABELS, 3, 1.0, 0, -1), "min_examples is -1"),
        (lambda: partition.dirichlet_labels(LABELS.reshape(2, 5), 3, 1.0, 0), r"shape \[2, 5\]"),
        (lambda: partition.shards(LABELS, 5, 3, 0), "shards_per_client = 3 for each of 5 clients needs 15"),
        (lambda: partition.shards(LABELS, 5, 0, 0), "shards_per_client is 0"),
        (lambda: partition.split(numbered(range(10)), (0.5, 0.4), 0), r"fractions \[0\.5, 0\.4\].*sum to 1"),
        (lambda: partition.split(numbered(range(10)), (1.1, -0.1), 0), "want positive numbers"),
        (lambda: partition.split(numbered(range(10)), (), 0), "want positive numbers"),
        (lambda: partition.split(numbered(range(10)), (0.5, 0.5), 0, by_group=True), "have no groups"),
        (lambda: partition.split(numbered(range(3)), (0.9, 0.1), 0), "leave part 1 empty: there are 3 examples"),
        (lambda: partition.split(numbered([5] * 9), (0.5, 0.5), 0), "9 examples in 1 bundles"),
    ],
)
def test_impossible_requests_are_named(request_, said):
    with pytest.raises(ValueError, match=said):
        request_()


FRACTIONS = st.sampled_from([(0.5, 0.5), (0.8, 0.2), (0.8, 0.1, 0.1), (0.25, 0.25, 0.25, 0.25), (1.0,)])


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=40, max_size=300), FRACTIONS, SEEDS)
def test_unique_examples_are_split_exactly_and_by_label(labels, fractions, seed):
    examples = different(len(labels), labels)
    parts = partition.split(examples, fractions, seed)
    covers(parts, len(labels))
    assert sum(abs(len(part) - share * len(labels)) for part, share in zip(parts, fractions, strict=True)) < len(parts)
    assert all(abs(len(part) - share * len(labels)) < 1 for part, share in zip(parts, fractions, strict=True))
    for part, share in zip(parts, fractions, strict=True):
        for label in set(labels):
            have, want = int((examples.y[part] == label).sum()), share * labels.count(label)
            assert abs(have - want) <= 2


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 2)), min_size=60, max_size=300), FRACTIONS, SEEDS)
def test_duplicates_stay_together_and_sizes_hold(pairs, fractions, seed):
    values, labels = zip(*pairs, strict=True)
    largest = np.bincount(values).max()
    examples = numbered(values, labels)
    try:
        parts = partition.split(examples, fractions, seed)
    except ValueError:
        assert min(fractions) * len(pairs) < largest  # only where a bundle is larger than a part
        return
    covers(parts, len(pairs))
    seen = [set(np.array(values)[part].tolist()) for part in parts]
    assert sum(map(len, seen)) == len(set(values))
    for part, share in zip(parts, fractions, strict=True):
        assert abs(len(part) - share * len(pairs)) <= largest


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 40)), min_size=30, max_size=200), SEEDS)
def test_groups_and_their_duplicates_stay_together(pairs, seed):
    values, groups = (np.array(column) for column in zip(*pairs, strict=True))
    examples = numbered(values.tolist(), (values % 3).tolist(), groups.tolist())
    try:
        parts = partition.split(examples, (0.7, 0.3), seed, by_group=True)
    except ValueError as error:
        assert "must stay together" in str(error)  # duplicates may tie all groups to one bundle
        return
    covers(parts, len(pairs))
    for of in (values, groups):
        assert not set(of[parts[0]].tolist()) & set(of[parts[1]].tolist())


def test_groups_chained_by_duplicates():
    # group 0 and 1 share content 5, group 1 and 2 share content 6; group 3 is free
    examples = numbered([1, 5, 5, 6, 6, 2, 3, 4], groups=[0, 0, 1, 1, 2, 2, 3, 3])
    parts = partition.split(examples, (0.75, 0.25), 0, by_group=True)
    assert [part.tolist() for part in parts] == [[0, 1, 2, 3, 4, 5], [6, 7]]


def test_equal_groups_are_split_exactly():
    groups = np.repeat(np.arange(40), 10)
    examples = different(400, (np.arange(400) % 2).tolist())
    examples = Examples(examples.x, examples.y, torch.tensor(groups))
    chosen = []
    for seed in range(20):
        parts = partition.split(examples, (0.8, 0.1, 0.1), seed, by_group=True)
        assert [len(part) for part in parts] == [320, 40, 40]
        chosen += np.unique(groups[parts[1]]).tolist()
    assert len(set(chosen)) > 30  # every group has its turn: it is the seed that chooses


def test_equal_content_with_other_labels_stays_together():
    examples = numbered([1, 1, 2, 2, 3, 3, 4, 4], [0, 1] * 4)
    for part in partition.split(examples, (0.5, 0.5), 0):
        assert len(part) == 4 and len(examples.x[part].unique()) == 2


def test_texts_and_images_are_compared_byte_for_byte():
    assert partition.contents(["a", "b", "a", "a ", "\ud800"]).tolist()[0] == partition.contents(["a", "b", "a"])[2]
    numbers = partition.contents(["a", "b", "a", "a ", "A"])
    assert numbers[0] == numbers[2] and len(set(numbers.tolist())) == 4
    images = torch.zeros(3, 2, 4, 4, dtype=torch.uint8)
    images[1, 1, 3, 3] = 1
    numbers = partition.contents(images)
    assert numbers[0] == numbers[2] != numbers[1]
    train, test = numbered([1, 2, 3, 2]), numbered([2, 9])
    assert partition.unseen(train, test).tolist() == [0, 2]


def test_the_same_seed_the_same_parts_another_seed_others():
    labels = (np.arange(300) % 3).tolist()
    examples = different(300, labels)
    for deal in (
        lambda seed: partition.split(examples, (0.5, 0.5), seed),
        lambda seed: partition.iid(300, 3, seed),
        lambda seed: partition.dirichlet_labels(labels, 3, 1.0, seed),
        lambda seed: partition.dirichlet_quantities(300, 3, 1.0, seed),
        lambda seed: partition.shards(labels, 3, 2, seed),
    ):
        assert all(np.array_equal(a, b) for a, b in zip(deal(1), deal(1), strict=True))
        assert any(not np.array_equal(a, b) for a, b in zip(deal(1), deal(2), strict=True))
