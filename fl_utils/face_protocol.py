"""One protocol for all comparisons of the face benchmark, on any gallery of people (Wang and Guo 2019, section 3.2).

    faces = prepare(gallery, size=48, test_identities=15, seed=0)
    trainer.train(faces.train.x, faces.train.y, ...)
    scores = judge(trainer, faces)     # {"accuracy": 84.1, "similarity/pose/front/turned": 0.61, ...}

Nobody who is tested is trained on. The tests are those of the paper where the pictures allow them: verification of
pairs by a threshold from the other folds (as on LFW); similarity of templates across pose (as on VGGFace2-test); true
accept rates across quality (as on IJB-A). What the pictures do not come with is made from what they show: see
:func:`turned` and :func:`lowered`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fl_utils import templates, verification
from fl_utils.data.examples import Examples
from fl_utils.data.identities import Gallery
from fl_utils.training import Trainer

POSES = ("front", "turned")


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
    for a, one in enumerate(POSES):
        found |= {f"similarity/pose/{one}/{other}": float(matrix[a, b]) for b, other in enumerate(POSES)}
    people = faces.test.y.numpy()
    impostors = int((people[faces.low][:, None] != people[faces.high]).sum())
    enough = [far for far in fars if far * impostors >= 1 - 1e-9]
    for quality, side in sides.items() if enough else ():
        blurred = verification.features(source, lowered(images[faces.low], side), flip)
        shares = templates.tar_across(blurred, features[faces.high], people[faces.low], people[faces.high], enough)
        found |= {f"tar/{quality}2high/far_1e{np.log10(far):.0f}": 100 * share for far, share in shares.shares.items()}
    return found
