"""One protocol for all comparisons of the face benchmark, on any gallery of people (Wang and Guo 2019, section 3.2).

    faces = prepare(gallery, size=48, test_identities=15, seed=0)
    trainer.train(faces.train.x, faces.train.y, ...)
    scores = judge(trainer, faces)     # {"accuracy": 84.1, "similarity/pose/front/turned": 0.61, ...}

Nobody who is tested is trained on. The tests are those of the paper where the pictures allow them: verification of
pairs by a threshold from the other folds (as on LFW); similarity of templates across pose (as on VGGFace2-test); true
accept rates across quality (as on IJB-A). What the pictures do not come with is made from what they show: see
:func:`turned` and :func:`lowered`. The paper's own tests are :func:`listed` and :func:`judge_listed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fl_utils import templates, verification
from fl_utils.data import face_lists
from fl_utils.data.examples import Examples
from fl_utils.data.face_lists_protocols import ijb_a_quality, vggface2_templates
from fl_utils.data.identities import Gallery, Loaded, listed_pairs
from fl_utils.training import LocalTraining, Trainer

POSES = ("front", "turned")
LISTED = ("lfw", "vggface2", "ijb_a")


@dataclass(frozen=True, eq=False)
class Faces:
    """``train`` and ``test`` pictures of disjoint people, ``pairs`` of test pictures, ``templates`` of each pose, and
    the test pictures that stand for ``high`` and for lower quality (``low``): int64 rows, no picture in both."""

    train: Examples
    test: Examples
    pairs: verification.Pairs
    templates: templates.Templates
    high: np.ndarray
    low: np.ndarray


def prepare(
    gallery: Gallery,
    size: int,
    test_identities: int,
    seed: int,
    pairs_per_identity: int = 45,
    folds: int = 2,
    channels: int = 1,
    template_faces: int = 2,
) -> Faces:
    """Split ``gallery`` by people and make the tests from the pictures of ``test_identities`` of them.

    pairs_per_identity, folds: see :func:`fl_utils.verification.make_pairs`. template_faces: of a template; each person
    needs four times as many pictures (two templates of two poses). Raises ValueError as its parts do.
    """
    known, unknown = gallery.split(test_identities, seed)
    train, test = known.load(size, channels), unknown.load(size, channels)
    people = test.y.numpy()
    random = np.random.default_rng([seed, 1])
    halves = [np.array_split(random.permutation(np.flatnonzero(people == who)), 2) for who in np.unique(people)]
    return Faces(
        train,
        test,
        verification.make_pairs(people, pairs_per_identity, seed, folds),
        templates.make_templates(people, turned(test.x, people), POSES, template_faces, seed),
        *(np.sort(np.concatenate([half[which] for half in halves])) for which in (0, 1)),
    )


def asymmetry(images: torch.Tensor) -> np.ndarray:
    """How unlike its mirror image each picture is, float64 [N]: the mean absolute difference over the contrast.

    images: uint8 [N, C, H, W]. A face that looks into the camera is nearly symmetric; turned to a side it is not.
    Light from one side counts too: it is a measure of the picture, not of the head.
    """
    grey = images.double().mean(1)
    return ((grey - grey.flip(2)).abs().mean((1, 2)) / grey.std((1, 2)).clamp(min=1)).numpy()


def turned(images: torch.Tensor, people: Sequence[int] | np.ndarray) -> np.ndarray:
    """ "front" for the more symmetric half of each person's pictures, "turned" for the others: str [N]."""
    people, measured = np.asarray(people), asymmetry(images)
    views = np.full(len(people), POSES[1])
    for who in np.unique(people):
        rows = np.flatnonzero(people == who)
        views[rows[np.argsort(measured[rows], kind="stable")[: (len(rows) + 1) // 2]]] = POSES[0]
    return views


def lowered(images: torch.Tensor, side: int) -> torch.Tensor:
    """``images`` (uint8 [N, C, H, W]) shrunk to ``side`` pixels and enlarged again: a face that was far away.

    Raises ValueError where ``side`` is not below the pictures' own.
    """
    size = images.shape[-2:]
    if not 1 <= side < min(size):
        raise ValueError(f"side is {side}: want from 1 to {min(size) - 1}, fewer pixels than the pictures have")
    small = functional.interpolate(images, (side, side), mode="bilinear", antialias=True)
    return functional.interpolate(small, tuple(size), mode="bilinear")


def judge(
    source: Trainer | nn.Module,
    faces: Faces,
    sides: dict[str, int] | None = None,
    fars: Sequence[float] = templates.FARS[:2],
    flip: bool = False,
) -> dict[str, float]:
    """All scores of a model: "accuracy" and "tar/<quality>2high/far_1e-2" in %, "similarity/pose/<a>/<b>" from -1 to 1.

    sides: for each lower quality the pixels that are left of a picture, see :func:`lowered`; by default a half of its
    side for "middle" and a quarter for "low". A rate that the impostor pairs are too few for is left out. flip: the
    mirror image's features beside the picture's, see :func:`fl_utils.verification.features`.
    """
    images = faces.test.x
    sides = {"low": images.shape[-1] // 4, "middle": images.shape[-1] // 2} if sides is None else sides
    features = verification.features(source, images, flip)
    cosines = verification.similarities(features, faces.pairs)
    found = {"accuracy": 100 * verification.kfold_accuracy(cosines, faces.pairs.same, faces.pairs.folds).mean}
    matrix = templates.similarity_matrix(features, faces.templates).similarity
    found |= _entries("similarity/pose", POSES, matrix)
    low, high = (faces.test.y.numpy()[rows] for rows in (faces.low, faces.high))
    enough = _enough(fars, low, high)
    for quality, side in sides.items() if enough else ():
        blurred = verification.features(source, lowered(images[faces.low], side), flip)
        shares = templates.tar_across(blurred, features[faces.high], low, high, enough).shares
        found |= _rates(f"tar/{quality}2high", shares)
    return found


def _entries(prefix: str, views: Sequence[str], matrix: np.ndarray) -> dict[str, float]:
    return {
        f"{prefix}/{one}/{other}": float(matrix[a, b]) for a, one in enumerate(views) for b, other in enumerate(views)
    }


def _enough(fars: Sequence[float], first_people: np.ndarray, second_people: np.ndarray) -> list[float]:
    """Those of ``fars`` into which one impostor pair of the two sets fits at least."""
    impostors = int((first_people[:, None] != second_people).sum())
    return [far for far in fars if far * impostors >= 1 - 1e-9]


def _rates(prefix: str, shares: dict[float, float]) -> dict[str, float]:
    return {f"{prefix}/far_1e{np.log10(far):.0f}": 100 * share for far, share in shares.items()}


def fit(
    trainer: Trainer, examples: Examples, local: LocalTraining, rates: Sequence[float], seed: int = 0
) -> list[float]:
    """Train for one epoch at each learning rate of ``rates``, otherwise as ``local`` says; the mean loss of each epoch.

    The momentum begins anew where the rate changes. Raises ValueError on no rates.
    """
    if not len(rates):
        raise ValueError("rates is empty: want one learning rate for each epoch, such as [0.1] * 8 + [0.01] * 4")
    losses: list[float] = []
    for rate, epochs in groupby(rates):
        stage = replace(local, learning_rate=rate, local_epochs=len(list(epochs)))
        losses += trainer.train(examples.x, examples.y, stage, seed + len(losses))
    return losses


class Listed(NamedTuple):
    """The paper's own tests: pictures by list ("lfw", "pose", "age", "low", "middle", "high"), LFW's ``pairs`` (None
    without LFW), VGGFace2-test's ``templates`` ("pose", "age"), and the ``galleries`` of all."""

    loaded: dict[str, Loaded]
    pairs: verification.Pairs | None
    templates: dict[str, templates.Templates]
    galleries: dict[str, Gallery]


def listed(
    cards: Sequence[str],
    data_dir: str | Path,
    size: int,
    channels: int = 3,
    quality: str | Path = "",
    bounds: tuple[float, float] = (0.0, 0.0),
    crops_dir: str | Path = "",
) -> Listed:
    """The tests of section 3.2 whose ``cards`` (of :data:`LISTED`) are asked for, from the official lists.

    quality, bounds: see :func:`fl_utils.data.face_lists_protocols.ijb_a_quality`. crops_dir: folder of the detected
    faces, crops_dir/lfw and so on, see :func:`fl_utils.data.face_lists.cropped`; without it boxes where the list brings
    them, else the middle square. Raises DataNotFound and ValueError as the readers of the lists do.
    """
    if unknown := [card for card in cards if card not in LISTED]:
        raise ValueError(f"no test of {unknown[0]!r}: want some of {', '.join(LISTED)}")
    found: dict[str, Gallery] = {}
    of_card, pairs, views = {"pose": "vggface2", "age": "vggface2"}, None, {}
    if "lfw" in cards:
        found["lfw"], pairs = listed_pairs(face_lists.people("lfw", data_dir))
    for kind in ("pose", "age") if "vggface2" in cards else ():
        found[kind], views[kind] = vggface2_templates(data_dir, kind)
    if "ijb_a" in cards:
        galleries = ijb_a_quality(data_dir, quality, bounds)
        found, of_card = found | galleries, of_card | dict.fromkeys(galleries, "ijb_a")
    loaded = {}
    for name, gallery in found.items():
        faces = face_lists.cropped(gallery, Path(crops_dir) / of_card.get(name, name)) if str(crops_dir) else gallery
        loaded[name] = faces.load_found(size, channels, "box" if faces.boxes else "centre")
    return Listed(loaded, pairs, views, found)


def judge_listed(
    source: Trainer | nn.Module, tests: Listed, fars: Sequence[float] = templates.FARS, flip: bool = False
) -> dict[str, float]:
    """The scores of Tables 3 to 6 by their names in published.csv, less the model: "accuracy/lfw" and
    "tar/ijb-a/low2high/far_1e-2" in %, "similarity/vggface2/pose/front/profile".

    A pair of LFW with a picture in which no face was found counts as wrong, as over all 6,000 pairs; such a picture is
    left out of templates and of the pairs across quality. A rate that the impostor pairs are too few for is left out.
    """
    features = {n: verification.features(source, part.examples.x, flip) for n, part in tests.loaded.items()}
    scores = {}
    if tests.pairs is not None:
        pairs = tests.pairs
        cosines = verification.similarities(features["lfw"], pairs, tests.loaded["lfw"].found)
        scores["accuracy/lfw"] = 100 * verification.kfold_accuracy(cosines, pairs.same, pairs.folds, 0, "wrong").mean
    for kind, of_kind in tests.templates.items():
        matrix = templates.similarity_matrix(features[kind], of_kind, tests.loaded[kind].found).similarity
        scores |= _entries(f"similarity/vggface2/{kind}", of_kind.views, matrix)
    kept = {name: tests.loaded[name].found for name in ("low", "middle", "high") if name in features}
    who = {n: np.array([person for person, _ in tests.galleries[n].rows()])[rows] for n, rows in kept.items()}
    for name in [name for name in kept if name != "high"]:
        first, second = features[name].numpy()[kept[name]], features["high"].numpy()[kept["high"]]
        enough = _enough(fars, who[name], who["high"])
        shares = templates.tar_across(first, second, who[name], who["high"], enough).shares if enough else {}
        scores |= _rates(f"tar/ijb-a/{name}2high", shares)
    return scores


def paired(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """How much higher ``first`` is than ``second``, seed by seed: the mean difference and its standard error.

    With one seed there is no error to be known, and it is 0. Raises ValueError where their lengths differ.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"{len(first)} and {len(second)} scores: want one of either for each seed")
    difference = np.subtract(first, second)
    error = difference.std(ddof=1) / len(difference) ** 0.5 if len(difference) > 1 else 0.0
    return float(difference.mean()), float(error)
