"""Templates and all pairs against values worked out by hand, and against verification's own rates."""

import time

import numpy as np
import pytest
import torch

from fl_utils import templates
from fl_utils.templates import Templates, make_templates, similarity_matrix, tar_across, tar_masked
from fl_utils.verification import tar_at_far

TWO = Templates(("young", "mature"), np.arange(8).reshape(1, 2, 2, 2))


def test_a_matrix_by_hand():
    """Averages: young (1, 0) and (3, 4), mature (0, 2) and (4, -3)."""
    features = torch.tensor([[1, 1], [1, -1], [6, 8], [0, 0], [0, 3], [0, 1], [8, -3], [0, -3]], dtype=torch.float32)
    found = similarity_matrix(features, TWO)
    assert found.similarity == pytest.approx(np.array([[0.6, 0.8], [0.8, -0.6]]))
    assert found.subjects.tolist() == [[1, 1], [1, 1]]
    features[2:4] = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert similarity_matrix(features, TWO).similarity == pytest.approx(np.array([[1, 0.8], [0, -0.6]]))


def test_features_are_averaged_as_they_are_not_their_directions():
    features = np.array([[10.0, 0], [0, 0.1], [1, 0], [1, 0]])
    one = Templates(("front",), np.arange(4).reshape(1, 1, 2, 2))
    assert similarity_matrix(features, one).similarity[0, 0] == pytest.approx(5 / np.hypot(5, 0.05))


def test_the_mean_over_subjects_and_faces_that_were_not_found():
    features = np.array([[1.0, 0], [0, 1], [1, 0], [1, 0], [0, 1], [np.nan, 0], [1, 0], [1, 0]])
    both = Templates(("front",), np.arange(8).reshape(2, 1, 2, 2))
    found = np.ones(8, dtype=bool)
    found[5] = False  # what is left of subject 2's first template is (0, 1)
    result = similarity_matrix(features, both, found)
    assert result.similarity[0, 0] == pytest.approx((0.5**0.5 + 0) / 2) and result.subjects[0, 0] == 2
    found[4] = False
    result = similarity_matrix(features, both, found)
    assert result.similarity[0, 0] == pytest.approx(0.5**0.5) and result.subjects[0, 0] == 1
    found[[0, 1]] = False
    with pytest.raises(ValueError, match="front against front: no subject has a face in both templates"):
        similarity_matrix(features, both, found)
    with pytest.raises(ValueError, match="features of template 2 have length nan"):
        similarity_matrix(features, both)
    with pytest.raises(ValueError, match="pictures up to 7, features are of 6"):
        similarity_matrix(features[:6], both)


def test_templates_are_drawn_from_those_who_have_enough():
    identities = np.repeat([3, 5, 9], 8)
    views = np.array(["front", "profile"] * 12)
    views[16:] = "front"
    made = make_templates(identities, views, faces=2, seed=1)
    assert made.views == ("front", "profile") and made.members.shape == (2, 2, 2, 2)
    assert len(set(made.members.ravel().tolist())) == made.members.size
    for subject, person in enumerate((3, 5)):
        assert set(identities[made.members[subject]].ravel()) == {person}
        assert [set(views[made.members[subject, view]].ravel()) for view in (0, 1)] == [{"front"}, {"profile"}]
    again, other = (make_templates(identities, views, ["profile", "front"], 2, seed).members for seed in (1, 2))
    assert not np.array_equal(again, other) and set(views[again[:, 0]].ravel()) == {"profile"}
    with pytest.raises(ValueError, match="two templates of 3 faces: want 6 pictures a view, the fullest has 4"):
        make_templates(identities, views, faces=3)
    with pytest.raises(ValueError, match=r"want \[N\], \[N\], at least 1"):
        make_templates(identities, views[1:])


def test_members_of_another_shape():
    with pytest.raises(ValueError, match=r"shape \(2, 2, 2\): want \[subjects, 2 views"):
        Templates(("a", "b"), np.zeros((2, 2, 2)))


def test_across_by_hand():
    """Probes a at 0 and b at 90 degrees, gallery pictures c, a, d, b, e at 0, 100, 90, 130 and 180 degrees."""
    angles = np.deg2rad([0, 100, 90, 130, 180])
    first, second = np.eye(2), np.stack([np.cos(angles), np.sin(angles)], 1)
    # genuine: -0.17 and 0.77; impostors of a: 1, 0, -0.64, -1, of b: 0, 0.98, 1, 0
    found = tar_across(first, second, ["a", "b"], ["c", "a", "d", "b", "e"], (0.2, 0.3, 0.4, 0.8))
    assert (found.genuine, found.impostor) == (2, 8)
    assert found.shares == {0.2: 0, 0.3: 0, 0.4: 0.5, 0.8: 1}  # above 1, 0.98, 0 and -0.64
    with pytest.raises(ValueError, match=r"far is 0\.1 with 8 impostor pairs: one of them is more; want 10 at least"):
        tar_across(first, second, ["a", "b"], ["c", "a", "d", "b", "e"], (0.2, 0.1))
    with pytest.raises(ValueError, match="1 false accept rates, 0 genuine pairs"):
        tar_across(first, second, ["a", "b"], list("cdefg"), (0.2,))
    with pytest.raises(ValueError, match="features of 2 and 5 pictures, 2 and 4 people"):
        tar_across(first, second, ["a", "b"], list("cdef"), (0.2,))
    with pytest.raises(ValueError, match="features of picture 1 have length 0"):
        tar_across(first * [[1], [0]], second, ["a", "b"], list("abcde"), (0.2,))


@pytest.mark.parametrize("at_once", [1, 700, 1 << 22])
@pytest.mark.parametrize("ties", [False, True])
def test_across_and_masked_are_tar_at_far_of_all_pairs(monkeypatch, at_once, ties):
    monkeypatch.setattr(templates, "AT_ONCE", at_once)
    random = np.random.default_rng(0)
    who = random.integers(0, 12, 150)
    features = random.normal(size=(150, 6)) + 2 * random.normal(size=(12, 6))[who]
    if ties:  # cosines of -1, 0 and 1, exactly
        features = np.eye(6)[np.abs(features).argmax(1)] * random.choice([-1.0, 1.0], (150, 1))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    fars = (0.3, 0.1, 0.01)
    same, cosines = who[:100, None] == who[None, 100:], unit[:100] @ unit[100:].T
    found = tar_across(features[:100], features[100:], who[:100], who[100:], fars)
    assert (found.genuine, found.impostor) == (same.sum(), (~same).sum())
    assert found.shares == {far: pytest.approx(tar_at_far(cosines.ravel(), same.ravel(), far)) for far in fars}
    kinds = random.integers(0, 4, (150, 150))
    a, b = np.triu_indices(150, 1)
    listed, cosines = np.isin(kinds[a, b], (1, 2)), (unit @ unit.T)[a, b]
    found = tar_masked(features, kinds, fars)
    assert found.genuine + found.impostor == listed.sum()
    expected = {far: pytest.approx(tar_at_far(cosines[listed], kinds[a, b][listed] == 1, far)) for far in fars}
    assert found.shares == expected


def test_masked_by_hand_counts_each_pair_once_and_not_those_nobody_cares_for():
    features = np.array([[1.0, 0], [1, 0], [0, 1], [1, 1]])
    kinds = np.array([[1, 1, 2, 2], [1, 1, 2, 0], [2, 2, 1, 1], [2, 0, 1, 1]])
    found = tar_masked(features, kinds, (0.4,))  # genuine 1 and 0.71; impostors 0.71, 0, 0: one may be accepted
    assert found == ({0.4: 1.0}, 2, 3)
    with pytest.raises(ValueError, match=r"far is 0\.01 with 3 impostor pairs.*want 100 at least"):
        tar_masked(features, kinds)
    with pytest.raises(ValueError, match=r"kinds have shape \(3, 4\), features are of 4"):
        tar_masked(features, kinds[:3], (0.4,))


def test_millions_of_pairs_in_seconds_and_little_memory():
    random = np.random.default_rng(0)
    one, other = random.normal(size=(3000, 64)), random.normal(size=(1500, 64))
    started = time.process_time()
    found = tar_across(one, other, random.integers(0, 500, 3000), random.integers(0, 500, 1500))
    assert time.process_time() - started < 5
    assert found.genuine + found.impostor == 4_500_000 and found.shares[0.0001] <= found.shares[0.01] < 0.1
