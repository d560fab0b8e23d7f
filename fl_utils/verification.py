"""Face verification: do two pictures show the same person? Pairs, features, thresholds (Hu et al. 2020, appendix).

    pairs = make_pairs(identities, per_identity=20, seed=0)
    scores = similarities(features(trainer, images), pairs)
    accuracy, spread, thresholds = kfold_accuracy(scores, pairs.same, pairs.folds)

A pair is called genuine where both pictures show one person, and impostor where not. Nothing here knows of files: lists
of pairs that a data set brings along are read by :mod:`fl_utils.data.identities`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from fl_utils import probe
from fl_utils.training import Trainer

UNDETECTED = ("refuse", "wrong", "left out")  # pairs with a picture in which no face was found


@dataclass(frozen=True, eq=False)
class Pairs:
    """N pairs of pictures: the index of each one's ``first`` and ``second`` picture (int64 [N]), whether both are the
    ``same`` person (bool [N]), and the part of the cross-validation it belongs to (``folds``, int64 [N], from 0 up)."""

    first: np.ndarray
    second: np.ndarray
    same: np.ndarray
    folds: np.ndarray

    def __post_init__(self) -> None:
        for name, kind in (("first", np.int64), ("second", np.int64), ("same", bool), ("folds", np.int64)):
            column = np.asarray(getattr(self, name), dtype=kind)
            if column.shape != (len(self.same),):
                raise ValueError(f"pairs: {name} has shape {column.shape}, want one entry for each of {len(self.same)}")
            object.__setattr__(self, name, column)

    def __len__(self) -> int:
        return len(self.same)


class KFold(NamedTuple):
    """What :func:`kfold_accuracy` returns: mean and standard deviation over the folds, in [0, 1]; each threshold."""

    mean: float
    std: float
    thresholds: np.ndarray


def make_pairs(identities: Sequence[int] | np.ndarray, per_identity: int, seed: int, folds: int = 10) -> Pairs:
    """As many genuine as impostor pairs of the pictures of the given ``identities`` (int [N], one per picture).

    per_identity: genuine pairs drawn of each person's pictures, all there are where there are fewer. folds: the people
    are dealt out to so many folds, each of two people at least, and the two of an impostor pair come from one fold; so
    no person of one fold is in another, as with LFW's own list. No pair occurs twice.

    Raises ValueError where a person has only one picture, where there are fewer than two people per fold, and where a
    fold has fewer impostor pairs than are wanted of it.
    """
    y = np.asarray(identities)
    people, counts = np.unique(y, return_counts=True)
    if per_identity < 1 or folds < 1:
        raise ValueError(f"per_identity is {per_identity}, folds {folds}: want at least 1 of each")
    if (counts < 2).any():
        raise ValueError(f"identity {people[counts.argmin()]} has one picture: a genuine pair needs two")
    if len(people) < 2 * folds:
        raise ValueError(f"{len(people)} identities in {folds} folds: an impostor pair needs two people in each fold")
    random = np.random.default_rng(seed)
    rows: list[tuple[int, int, bool, int]] = []
    for fold, block in enumerate(np.array_split(random.permutation(people), folds)):
        genuine = []
        for person in np.sort(block):
            members = np.flatnonzero(y == person)
            both = np.stack(np.triu_indices(len(members), 1), 1)
            genuine += members[both[random.permutation(len(both))[:per_identity]]].tolist()
        rows += [(a, b, True, fold) for a, b in genuine]
        rows += [(a, b, False, fold) for a, b in _impostors(y, np.flatnonzero(np.isin(y, block)), len(genuine), random)]
    return Pairs(*(np.array(column) for column in zip(*rows, strict=True)))


def _impostors(y: np.ndarray, pictures: np.ndarray, wanted: int, random: np.random.Generator) -> list[tuple[int, int]]:
    """``wanted`` different pairs of ``pictures`` of different people, in a random order."""
    sizes = np.unique(y[pictures], return_counts=True)[1]
    there = (len(pictures) ** 2 - int((sizes**2).sum())) // 2
    if there < wanted:
        raise ValueError(
            f"{wanted} impostor pairs wanted of {len(sizes)} people who make {there}: take fewer pairs per identity "
            "or fewer folds"
        )
    found: dict[tuple[int, int], None] = {}
    while len(found) < wanted:
        drawn = np.sort(random.choice(pictures, (2 * wanted, 2)), axis=1)
        found.update(dict.fromkeys(map(tuple, drawn[y[drawn[:, 0]] != y[drawn[:, 1]]].tolist())))
    return list(found)[:wanted]


@torch.inference_mode()
def features(
    source: Trainer | nn.Module, images: torch.Tensor, flip: bool = True, batch_size: int = 256
) -> torch.Tensor:
    """The features of ``images`` (uint8 [N, C, H, W]), float32 [N, d] on the CPU, by a model in evaluation mode.

    They are what ``model.features`` gives: what goes into the last layer, which tells the training's people apart and
    means nothing for others. flip: the features of the picture and those of its mirror image, one after the other
    (2 d numbers), as the appendix of Hu et al. 2020 has it after Liu et al. 2017 (SphereFace). The appendix says
    "extracted from the output of the last FC layer": in SphereFace's networks that is the layer before the classifier,
    and so it is read here; ResNet-34 has no further one, its features are the 512 averages after the last block.
    """
    model = source.model if isinstance(source, Trainer) else source
    if len(images) == 0:
        raise ValueError("features: no images")
    place = next(model.parameters()).device
    model.eval()

    def described(part: torch.Tensor) -> torch.Tensor:
        part = part.to(place)
        views = [part, part.flip(3)] if flip else [part]
        return torch.cat([model.features(view) for view in views], 1).float().cpu()

    return torch.cat(probe.outputs(described, images.split(batch_size), "features", flip, model))


def similarities(
    features: torch.Tensor | np.ndarray, pairs: Pairs, found: Sequence[bool] | np.ndarray | None = None
) -> np.ndarray:
    """The cosine of the angle between the two ``features`` (float [N, d]) of each pair: float64 [pairs], -1 to 1.

    found: bool [N], False for a picture in which no face was found: what its features are does not matter, and a pair
    with it has no similarity (not a number). What becomes of such a pair the scoring is told: :data:`UNDETECTED`.
    Raises ValueError where another picture's features are all zero or not finite: they have no direction; and where a
    pair names a picture that has no features.
    """
    rows = np.asarray(features, dtype=np.float64)
    highest = max(pairs.first.max(initial=-1), pairs.second.max(initial=-1))
    if highest >= len(rows) or min(pairs.first.min(initial=0), pairs.second.min(initial=0)) < 0:
        raise ValueError(f"pairs name pictures up to {highest}, features are of {len(rows)}: want the same pictures")
    if found is None:
        rows = directions(rows)
    else:
        found = np.asarray(found, dtype=bool)
        if found.shape != (len(rows),):
            raise ValueError(f"found has shape {found.shape}: want one entry for each of {len(rows)} pictures")
        rows = directions(np.where(found[:, None], rows, 1.0))
        rows[~found] = np.nan
    return np.einsum("nd,nd->n", rows[pairs.first], rows[pairs.second])


def directions(features: torch.Tensor | np.ndarray, what: str = "picture") -> np.ndarray:
    """Each row of ``features`` ([N, d]) divided by its length, float64. Raises ValueError on one without direction."""
    rows = np.asarray(features, dtype=np.float64)
    if rows.ndim != 2:
        raise ValueError(f"features have shape {rows.shape}: want [N, d]")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    usable = np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0)
    if not usable.all():
        worst = int(np.flatnonzero(~usable)[0])
        raise ValueError(f"the features of {what} {worst} have length {lengths[worst, 0]}: they have no direction")
    return rows / lengths


def kfold_accuracy(
    similarities: np.ndarray,
    same: np.ndarray,
    folds: int | np.ndarray = 10,
    seed: int = 0,
    undetected: str = "refuse",
) -> KFold:
    """Accuracy of "same person where the similarity reaches a threshold", the threshold chosen on the other folds.

    similarities, same: float and bool [N]. folds: each pair's fold (int [N], as ``Pairs.folds``), or a number of folds
    into which genuine and impostor pairs are dealt evenly by ``seed``. For each fold the threshold is the one of
    highest accuracy on all other folds (of several, the highest), half-way to the next lower similarity there.
    The standard deviation is that of a sample of folds (n - 1).

    undetected: what becomes of a pair without a similarity, one of :data:`UNDETECTED`. Wang and Guo 2019 drop a picture
    without a face from training only (section 4.1) and give their accuracy over all 6,000 pairs of LFW (section 3.2):
    "wrong" is theirs. Such a pair has no part in choosing thresholds.

    Raises ValueError where there is no genuine or no impostor pair, in all or beside a fold, fewer than two folds or
    more folds than pairs of either kind.
    """
    similarities, same, known = _checked(similarities, same, undetected)
    if undetected == "left out":
        if np.shape(folds) == same.shape:
            folds = np.asarray(folds)[known]
        similarities, same, known = similarities[known], same[known], known[known]
    if isinstance(folds, int | np.integer):
        fewest = int(min(same.sum(), (~same).sum()))
        if not 2 <= folds <= fewest:
            raise ValueError(f"folds is {folds}: want from 2 to {fewest}, the number of genuine or of impostor pairs")
        from sklearn.model_selection import StratifiedKFold

        parts = StratifiedKFold(int(folds), shuffle=True, random_state=seed).split(similarities[:, None], same)
    else:
        folds = np.asarray(folds)
        if folds.shape != same.shape or len(np.unique(folds)) < 2:
            raise ValueError(
                f"folds has shape {folds.shape} and {len(np.unique(folds))} different numbers: want one for each of "
                f"{len(same)} pairs, at least two different ones"
            )
        parts = ((np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in np.unique(folds))
    accuracies, thresholds = [], []
    for rest, fold in parts:
        others = rest[known[rest]]
        if same[others].all() or not same[others].any():
            raise ValueError("the pairs outside of one fold are all genuine or all impostor: no threshold follows")
        thresholds.append(_best_threshold(similarities[others], same[others]))
        right = (similarities[fold] >= thresholds[-1]) == same[fold]
        accuracies.append(np.mean(right & known[fold]))
    return KFold(float(np.mean(accuracies)), float(np.std(accuracies, ddof=1)), np.array(thresholds))


def _best_threshold(similarities: np.ndarray, same: np.ndarray) -> float:
    from sklearn.metrics import roc_curve

    false, true, thresholds = roc_curve(same, similarities, drop_intermediate=False)  # the first: above all pairs
    right = np.rint(true * same.sum() + (1 - false) * (~same).sum())
    best = int(right.argmax())
    if best == 0:
        return float(np.nextafter(similarities.max(), np.inf))
    return float(thresholds[best : best + 2].mean())


def tar_at_far(similarities: np.ndarray, same: np.ndarray, far: float, undetected: str = "refuse") -> float:
    """The share of genuine pairs accepted (true accept rate) where at most ``far`` of the impostor pairs are.

    similarities, same: float and bool [N]. undetected: as for :func:`kfold_accuracy`, where with "wrong" a pair without
    a similarity is never accepted: a genuine one is an error at any threshold, an impostor one stays among the impostor
    pairs that ``far`` is a share of. Raises ValueError where there is no genuine or no impostor pair, and as
    :func:`impostors_accepted`.
    """
    similarities, same, known = _checked(similarities, same, undetected)
    if undetected == "left out":
        similarities, same = similarities[known], same[known]
    else:
        similarities = np.where(known, similarities, similarities[known].min() - 1)
    most = impostors_accepted(far, int((~same).sum()))
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(same, similarities, drop_intermediate=False)
    return float(true[np.rint(false * (~same).sum()) <= most].max())


def impostors_accepted(far: float, impostors: int) -> int:
    """How many of the ``impostors`` pairs may be accepted at the false accept rate ``far``, at least one.

    Raises ValueError where ``far`` is not between 0 and 1, and where the impostor pairs are too few for it: one of them
    must fit into ``far``.
    """
    if not 0 < far < 1:
        raise ValueError(f"far is {far}: want a share between 0 and 1, such as 0.01")
    wanted = int(np.ceil(1 / far - 1e-9))
    if impostors < wanted:
        raise ValueError(f"far is {far} with {impostors} impostor pairs: one of them is more; want {wanted} at least")
    return int(far * impostors + 1e-9)


def _checked(similarities: np.ndarray, same: np.ndarray, undetected: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both as arrays, and which pairs have a similarity (all, where ``undetected`` is "refuse")."""
    similarities, same = np.asarray(similarities, dtype=np.float64), np.asarray(same, dtype=bool)
    if undetected not in UNDETECTED:
        raise ValueError(f"undetected is {undetected!r}: want one of {', '.join(map(repr, UNDETECTED))}")
    if similarities.shape != same.shape or same.ndim != 1:
        raise ValueError(f"similarities have shape {similarities.shape}, same has {same.shape}: want [N] and [N]")
    known = np.isfinite(similarities)
    refused = ~known if undetected == "refuse" else np.isinf(similarities)
    if refused.any():
        raise ValueError(f"similarity {int(np.flatnonzero(refused)[0])} is not finite")
    if same[known].all() or not same[known].any():
        left = "" if known.all() else f" ({int((~known).sum())} more without a face)"
        raise ValueError(
            f"{int(known.sum())} pairs{left}, {int(same[known].sum())} of them genuine: want genuine and impostor pairs"
        )
    return similarities, same, known
