"""Templates and all pairs between two sets of faces (Wang and Guo 2019, section 3.2; Cao et al. 2018, VGGFace2).

    templates = make_templates(identities, views, faces=5, seed=0)
    matrix = similarity_matrix(features, templates, found).similarity    # [views, views]
    shares = tar_across(low, high, low_people, high_people, (0.01, 0.001, 0.0001)).shares

Millions of pairs are compared a stretch of rows at a time; of the impostor pairs no more is kept than the highest ones
that the largest false accept rate asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from fl_utils.verification import directions, impostors_accepted

IGNORED, GENUINE, IMPOSTOR = 0, 1, 2  # a pair's kind, in DFW's numbers
FARS = (0.01, 0.001, 0.0001)  # section 3.2, Tables 3-10
AT_ONCE = 1 << 22  # pairs compared at once: 32 MB of similarities
Features = torch.Tensor | np.ndarray


@dataclass(frozen=True, eq=False)
class Templates:
    """Two templates of each view of each subject: ``members`` (int64 [subjects, views, 2, faces]) are rows of the
    features, ``views`` the views' names, in the order of the matrix."""

    views: tuple[str, ...]
    members: np.ndarray

    def __post_init__(self) -> None:
        members = np.asarray(self.members)
        if members.ndim != 4 or members.shape[1:3] != (len(self.views), 2) or not members.size:
            raise ValueError(
                f"members have shape {members.shape}: want [subjects, {len(self.views)} views, 2 templates, faces]"
            )
        object.__setattr__(self, "members", members.astype(np.int64))


class Matrix(NamedTuple):
    """``similarity``: float64 [views, views]; ``subjects``: int64 [views, views], how many each mean is over."""

    similarity: np.ndarray
    subjects: np.ndarray


class Across(NamedTuple):
    """``shares``: false accept rate -> true accept rate, in [0, 1]; how many ``genuine`` and ``impostor`` pairs."""

    shares: dict[float, float]
    genuine: int
    impostor: int


def make_templates(
    identities: Sequence[int] | np.ndarray,
    views: Sequence[str] | np.ndarray,
    order: Sequence[str] = (),
    faces: int = 5,
    seed: int = 0,
) -> Templates:
    """Templates out of pictures whose identity and view (each [N]) are known: for every subject that has 2 * ``faces``
    pictures of every view in ``order`` (by default all, sorted), so many drawn by ``seed`` and dealt to two templates.

    A subject with fewer is left out. Raises ValueError where none has enough, naming the fullest.
    """
    people, views = np.asarray(identities), np.asarray(views)
    if people.shape != views.shape or people.ndim != 1 or not people.size or faces < 1:
        raise ValueError(f"identities {people.shape}, views {views.shape}, faces {faces}: want [N], [N], at least 1")
    order = tuple(order) or tuple(np.unique(views).tolist())
    random = np.random.default_rng(seed)
    members, fullest = [], 0
    for person in np.unique(people):
        rows = [np.flatnonzero((people == person) & (views == view)) for view in order]
        fewest = min(map(len, rows))
        fullest = max(fullest, fewest)
        drawn = [random.permutation(each)[: 2 * faces] for each in rows]
        if fewest >= 2 * faces:
            members.append(np.stack(drawn).reshape(len(order), 2, faces))
    if not members:
        raise ValueError(f"two templates of {faces} faces: want {2 * faces} pictures a view, the fullest has {fullest}")
    return Templates(order, np.stack(members))


def similarity_matrix(features: Features, templates: Templates, found: np.ndarray | None = None) -> Matrix:
    """How alike the templates of one subject are, view against view: the mean over subjects of the cosine between two
    templates' features, a template's being the average of its faces' (section 3.2).

    features: float [N, d]. Row a, column b is the first template of view a against the second of view b. The published
    matrices say so: their diagonal is below 1, so two different templates of a view are compared, and they are not
    symmetric (Table 3, AlexNet-v2: 0.231 young against mature, 0.259 mature against young), so a, b and b, a are
    different pictures. A mean over both would have made them symmetric.

    found: bool [N], False for a picture without a face: the template is averaged over its others, and a subject one of
    whose two templates has no face left is out of that entry's mean. Raises ValueError on an entry without subjects,
    and where a picture's features are not finite or a template's average is zero.
    """
    rows = np.asarray(features, dtype=np.float64)
    members = templates.members
    if members.min() < 0 or members.max() >= len(rows):
        raise ValueError(f"templates name pictures up to {members.max()}, features are of {len(rows)}")
    there = np.ones(len(rows), dtype=bool) if found is None else np.asarray(found, dtype=bool)
    if there.shape != (len(rows),):
        raise ValueError(f"found has shape {there.shape}: want one entry for each of {len(rows)} pictures")
    weights = there[members] / np.maximum(there[members].sum(-1, keepdims=True), 1)
    means = np.einsum("svtf,svtfd->svtd", weights, np.where(there[:, None], rows, 0)[members])
    present = there[members].any(-1)  # [subjects, views, 2]
    means[present] = directions(means[present], "template")
    pairs = present[:, :, 0, None] & present[:, None, :, 1]
    subjects = pairs.sum(0)
    if not subjects.all():
        a, b = np.argwhere(subjects == 0)[0]
        raise ValueError(f"{templates.views[a]} against {templates.views[b]}: no subject has a face in both templates")
    cosines = np.einsum("sad,sbd->sab", means[:, :, 0], means[:, :, 1])
    return Matrix(np.where(pairs, cosines, 0).sum(0) / subjects, subjects)


def tar_across(
    first: Features,
    second: Features,
    first_people: Sequence | np.ndarray,
    second_people: Sequence | np.ndarray,
    fars: Iterable[float] = FARS,
) -> Across:
    """True accept rates where every picture of one set meets every one of the other, as from low to high quality.

    first, second: float [n, d] and [m, d]; first_people, second_people: who is in each, in the same names. A rate is
    the share of genuine pairs above the threshold at which at most ``far`` of the impostor pairs are accepted, as
    :func:`fl_utils.verification.tar_at_far` has it. Leave out beforehand what a detector did not find.

    Raises ValueError before comparing anything where the impostor pairs are too few for a rate, giving both numbers;
    where there is no genuine pair; and on features without a direction.
    """
    a, b = directions(first), directions(second)
    one, other = np.asarray(first_people), np.asarray(second_people)
    if (len(one), len(other)) != (len(a), len(b)):
        raise ValueError(
            f"features of {len(a)} and {len(b)} pictures, {len(one)} and {len(other)} people: want the same"
        )
    names, codes = np.unique(np.concatenate([one, other]), return_inverse=True)
    one, other = codes[: len(one)], codes[len(one) :]
    genuine = int(np.bincount(one, minlength=len(names)) @ np.bincount(other, minlength=len(names)))

    def parts() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for rows in _stretches(len(a), len(b)):
            yield a[rows] @ b.T, np.where(one[rows, None] == other, GENUINE, IMPOSTOR)

    return _shares(parts(), genuine, len(a) * len(b) - genuine, fars)


def tar_masked(features: Features, kinds: np.ndarray, fars: Iterable[float] = FARS[:2]) -> Across:
    """True accept rates over the pairs of one set that a matrix of ``kinds`` (int [N, N]) calls :data:`GENUINE` (1) or
    :data:`IMPOSTOR` (2); any other number means "do not care". Each pair counts once, as above the diagonal (DFW)."""
    rows, kinds = directions(features), np.asarray(kinds)
    if kinds.shape != (len(rows), len(rows)):
        raise ValueError(f"kinds have shape {kinds.shape}, features are of {len(rows)}: want [N, N] of these")

    def above(part: slice) -> np.ndarray:
        return np.triu(kinds[part], 1 + part.start)

    stretches = list(_stretches(len(rows), len(rows)))
    genuine, impostor = (
        sum(int(np.count_nonzero(above(part) == kind)) for part in stretches) for kind in (GENUINE, IMPOSTOR)
    )
    return _shares(((rows[part] @ rows.T, above(part)) for part in stretches), genuine, impostor, fars)


def _stretches(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, AT_ONCE // max(1, columns))
    return (slice(start, start + step) for start in range(0, rows, step))


def _shares(
    parts: Iterable[tuple[np.ndarray, np.ndarray]], genuine: int, impostor: int, fars: Iterable[float]
) -> Across:
    accepted = {far: impostors_accepted(far, impostor) for far in fars}
    if not accepted or not genuine:
        raise ValueError(f"{len(accepted)} false accept rates, {genuine} genuine pairs: want at least one of each")
    kept = max(accepted.values()) + 1  # the highest impostor similarities, down to the first that is refused
    highest, right = np.empty(0), []
    for similarities, kinds in parts:
        right.append(similarities[kinds == GENUINE])
        wrong = similarities[kinds == IMPOSTOR]
        if len(highest) == kept:
            wrong = wrong[wrong > highest.min()]
        highest = np.concatenate([highest, wrong])
        if len(highest) > kept:
            highest = np.partition(highest, -kept)[-kept:]
    highest, scores = np.sort(highest)[::-1], np.concatenate(right)
    return Across({far: float(np.mean(scores > highest[most])) for far, most in accepted.items()}, genuine, impostor)
