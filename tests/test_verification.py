"""Verification against values worked out by hand and against slow, obvious versions."""

import itertools
import time
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from fl_utils.training import Trainer
from fl_utils.verification import Pairs, features, kfold_accuracy, make_pairs, similarities, tar_at_far


def drawn(seed, n=120, apart=1.0, ties=False):
    random = np.random.default_rng(seed)
    same = random.random(n) < 0.4
    scores = random.normal(size=n) + apart * same
    return (np.round(scores, 1) if ties else scores), same


def slow_threshold(scores, same):
    """Every threshold that makes a difference, tried one by one: half-way below a score, or above them all."""
    values = sorted(set(scores.tolist()), reverse=True)
    below = [*values[1:], values[-1]]
    tried = [(np.nextafter(values[0], np.inf))] + [(a + b) / 2 for a, b in zip(values, below, strict=True)]
    right = [np.sum((scores >= t) == same) for t in tried]
    return tried[int(np.argmax(right))]  # the first of several, which is the highest


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ties", [False, True])
def test_kfold_accuracy_is_that_of_trying_every_threshold(seed, ties):
    scores, same = drawn(seed, ties=ties)
    folds = np.random.default_rng(seed + 100).integers(0, 4, len(scores))
    found = kfold_accuracy(scores, same, folds)
    accuracies = []
    for fold, threshold in zip(range(4), found.thresholds, strict=True):
        expected = slow_threshold(scores[folds != fold], same[folds != fold])
        assert threshold == pytest.approx(expected, abs=1e-12)
        accuracies.append(np.mean((scores >= expected)[folds == fold] == same[folds == fold]))
    assert found.mean == pytest.approx(np.mean(accuracies))
    assert found.std == pytest.approx(np.std(accuracies, ddof=1))


def test_kfold_accuracy_by_hand():
    scores = np.array([0.9, 0.1, 0.8, 0.2, 0.3, 0.7])
    same = np.array([True, False, True, False, True, False])
    found = kfold_accuracy(scores, same, np.array([0, 0, 0, 0, 1, 1]))
    # fold 0 by the threshold of the pairs 0.3 (genuine) and 0.7 (impostor): all or none right by one half, so the
    # highest threshold counts, above 0.7: both genuine pairs of fold 0 and both impostors are right.
    # fold 1 by the threshold between 0.8 and 0.2 of fold 0: 0.5, which gets neither right.
    assert found.thresholds == pytest.approx([np.nextafter(0.7, 1), 0.5])
    assert (found.mean, found.std) == pytest.approx((0.5, np.sqrt(0.5)))
    assert kfold_accuracy([0.9, 0.8, 0.2, 0.1], [True, True, False, False], 2).mean == 1


def test_folds_by_number_hold_both_kinds_and_hang_on_the_seed():
    scores, same = drawn(0, n=40, apart=10)
    assert kfold_accuracy(scores, same, 10).mean == 1
    scores, same = drawn(1)
    first, again, other = (kfold_accuracy(scores, same, 10, seed) for seed in (0, 0, 1))
    assert len(first.thresholds) == 10 and first.mean == again.mean
    assert not np.array_equal(first.thresholds, other.thresholds)


def slow_tar(scores, same, far):
    accepted = [t for t in [*scores, np.inf] if np.mean(scores[~same] >= t) <= far + 1e-12]
    return max(np.mean(scores[same] >= t) for t in accepted)


@pytest.mark.parametrize("far", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("ties", [False, True])
def test_tar_at_far_is_that_of_trying_every_threshold(far, ties):
    for seed in range(5):
        scores, same = drawn(seed, n=200, ties=ties)
        assert tar_at_far(scores, same, far) == pytest.approx(slow_tar(scores, same, far))


def test_tar_at_far_by_hand():
    scores = np.concatenate([[0.95, 0.85, 0.55, 0.05], np.linspace(0, 0.9, 10)])
    same = np.array([True] * 4 + [False] * 10)
    assert tar_at_far(scores, same, 0.1) == 0.5  # 0.9 may be accepted, 0.8 not: 0.95 and 0.85 are
    assert tar_at_far(scores, same, 0.4) == 0.75  # down to 0.6 but not to 0.5
    with pytest.raises(ValueError, match=r"far is 0\.09 with 10 impostor pairs.*want 12"):
        tar_at_far(scores, same, 0.09)


@pytest.mark.parametrize("far", [0, 1, -0.1, 2])
def test_far_outside_of_its_range(far):
    with pytest.raises(ValueError, match="want a share between 0 and 1"):
        tar_at_far([0.1, 0.2], [True, False], far)


@pytest.mark.parametrize("call", [kfold_accuracy, partial(tar_at_far, far=0.5)])
@pytest.mark.parametrize(
    ("scores", "same", "said"),
    [
        ([0.1, 0.2], [True, True], "2 pairs, 2 of them genuine"),
        ([0.1, 0.2], [False, False], "2 pairs, 0 of them genuine"),
        ([], [], "0 pairs"),
        ([0.1, float("nan")], [True, False], "similarity 1 is not finite"),
        ([0.1], [True, False], "shape"),
    ],
)
def test_nothing_to_decide(call, scores, same, said):
    with pytest.raises(ValueError, match=said):
        call(scores, same)


def test_folds_that_cannot_be():
    scores, same = drawn(0, n=30)
    fewest = min(same.sum(), (~same).sum())
    for folds in (0, 1, fewest + 1):
        with pytest.raises(ValueError, match=f"folds is {folds}: want from 2 to {fewest}"):
            kfold_accuracy(scores, same, int(folds))
    for folds in (np.zeros(30), np.arange(5)):
        with pytest.raises(ValueError, match="at least two different ones"):
            kfold_accuracy(scores, same, folds)
    with pytest.raises(ValueError, match="all genuine or all impostor"):
        kfold_accuracy(scores, same, same.astype(int))


def test_pairs_are_balanced_different_and_their_people_in_one_fold():
    identities = np.repeat(np.arange(12) * 7, 6)
    pairs = make_pairs(identities, 5, seed=3, folds=4)
    assert len(pairs) == 2 * 12 * 5 and pairs.same.sum() == 60
    assert (pairs.same == (identities[pairs.first] == identities[pairs.second])).all()
    assert len({frozenset(pair) for pair in zip(pairs.first, pairs.second, strict=True)}) == len(pairs)
    assert (pairs.first != pairs.second).all()
    people = [set(identities[[*pairs.first[pairs.folds == f], *pairs.second[pairs.folds == f]]]) for f in range(4)]
    assert not any(a & b for a, b in itertools.combinations(people, 2))
    assert [len(block) for block in people] == [3, 3, 3, 3]
    again, other = make_pairs(identities, 5, 3, 4), make_pairs(identities, 5, 4, 4)
    assert np.array_equal(again.first, pairs.first) and not np.array_equal(other.first, pairs.first)


def test_all_pairs_there_are():
    pairs = make_pairs([0, 0, 1, 1], 10, seed=0, folds=1)  # one genuine pair each
    assert pairs.same.sum() == 2 and len(pairs) == 4
    genuine = zip(pairs.first[pairs.same].tolist(), pairs.second[pairs.same].tolist(), strict=True)
    assert sorted(genuine) == [(0, 1), (2, 3)]


@pytest.mark.parametrize(
    ("identities", "per", "folds", "said"),
    [
        ([0, 0, 1], 1, 1, "identity 1 has one picture"),
        ([0, 0, 1, 1], 1, 2, "2 identities in 2 folds"),
        ([0, 0, 1, 1], 0, 1, "per_identity is 0"),
        ([0, 0, 1, 1], 1, 0, "folds 0"),
        ([0] * 20 + [1, 1], 100, 1, "101 impostor pairs wanted of 2 people who make 40"),
    ],
)
def test_pairs_that_cannot_be_made(identities, per, folds, said):
    with pytest.raises(ValueError, match=said):
        make_pairs(identities, per, 0, folds)


def test_columns_of_pairs_fit_together():
    with pytest.raises(ValueError, match="second has shape"):
        Pairs([0, 1], [1], [True, False], [0, 0])


class Means(nn.Module):
    """Features that are seen at a glance: the mean of the left and of the right half, and dropout that must be off."""

    def __init__(self):
        super().__init__()
        self.dropout, self.classifier = nn.Dropout(0.9), nn.Linear(2, 3)

    def features(self, images):
        half = images.shape[-1] // 2
        means = [images[..., :half].float().mean((1, 2, 3)), images[..., half:].float().mean((1, 2, 3))]
        return self.dropout(torch.stack(means, 1))

    def forward(self, images):
        return self.classifier(self.features(images))


def test_features_are_those_of_the_picture_and_of_its_mirror_image():
    images = torch.zeros(3, 1, 4, 6, dtype=torch.uint8)
    images[0, ..., :3], images[1, ..., 3:], images[2] = 10, 20, 5
    trainer = Trainer(Means)
    trainer.model.train()
    found = features(trainer, images, batch_size=2)
    assert found.tolist() == [[10, 0, 0, 10], [0, 20, 20, 0], [5, 5, 5, 5]]
    assert torch.equal(features(trainer.model, images, flip=False), found[:, :2])
    with pytest.raises(ValueError, match="no images"):
        features(trainer, images[:0])


def test_similarities_are_cosines():
    rows = torch.tensor([[3.0, 0.0], [0.0, 0.5], [-2.0, 0.0], [1.0, 1.0]])
    pairs = Pairs([0, 0, 0, 1], [1, 2, 3, 3], [False] * 4, [0] * 4)
    assert similarities(rows, pairs) == pytest.approx([0, -1, 0.5**0.5, 0.5**0.5])


@pytest.mark.parametrize("worth", [0.0, float("nan"), float("inf")])
def test_features_without_direction(worth):
    rows = np.ones((3, 2))
    rows[1] = worth
    with pytest.raises(ValueError, match="features of picture 1 have length"):
        similarities(rows, Pairs([0], [2], [True], [0]))


def test_pairs_of_other_pictures():
    with pytest.raises(ValueError, match="pictures up to 3, features are of 3"):
        similarities(np.ones((3, 2)), Pairs([0], [3], [True], [0]))


def test_six_thousand_pairs_in_no_time():
    scores, same = drawn(0, n=6000)
    tar_at_far(scores, same, 0.1)  # scikit-learn's import is not the scoring
    started = time.process_time()
    kfold_accuracy(scores, same, np.arange(6000) * 10 // 6000)
    tar_at_far(scores, same, 0.001)
    assert time.process_time() - started < 2
