"""MovieLens as two parties hold it: who rated which film how, and what is known of users and films (section 3.4).

The parties align by private set intersection on their users' and films' ids. Then the rating party names the pairs of
user and film in each row, so that the other can lay its features beside them: that a user rated a film is told, the
rating is not. The feature party scales its own columns (what is not 0 or 1 to mean 0 and deviation 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fl_utils.data import ratings
from fl_utils.vertical import psi
from fl_utils.vertical.joint import FeatureSide, Joint, RatingSide, Terms, squared_error
from fl_utils.vertical.session import FeatureData, RatingData


@dataclass(frozen=True)
class Recommendation:
    """Both parties' data after alignment, and the ratings of the test rows, float32, which only the tests see.

    users, films: the alignments (first: rating party, second: feature party). rows: ratings of the aligned users.
    """

    features: FeatureData
    ratings: RatingData
    truth: torch.Tensor
    users: psi.Alignment
    films: psi.Alignment
    rows: int


def prepare(
    dataset: str = "movielens_100k",
    data_dir: str = "",
    fraction: float = 1.0,
    known_users: float = 1.0,
    seed: int = 0,
    embedding: int = 8,
    hidden: int = 8,
    test: float = 0.2,
) -> Recommendation:
    """Load, align and split ``dataset``.

    fraction: of the training rows to keep. known_users: share of all users that each party has, drawn by itself. test:
    share of the rows that are only tested on. Raises ValueError on a share out of range, and as
    :func:`fl_utils.data.ratings.load` and :func:`fl_utils.vertical.psi.intersect` do.
    """
    for name, value, most in (("fraction", fraction, 1), ("known_users", known_users, 1), ("test", test, 0.9)):
        if not 0 < value <= most:
            raise ValueError(f"{name} is {value}: want a share above 0, at most {most}")
    table = ratings.load(dataset, data_dir)
    draw = np.random.default_rng(np.random.SeedSequence([seed, 5]))
    count = len(table.user_ids)
    mine, theirs = (np.sort(draw.permutation(count)[: max(1, round(known_users * count))]) for _ in range(2))
    users = psi.intersect(table.user_ids[mine], table.user_ids[theirs], names=("rating party", "feature party"))
    films = psi.intersect(table.item_ids, table.item_ids, names=("rating party", "feature party"))
    aligned = np.full(count, -1)
    aligned[mine[users.first]] = theirs[users.second]
    rows = np.flatnonzero(aligned[table.user] >= 0)
    if len(rows) < 10:
        raise ValueError(f"{len(rows)} ratings of users whom both parties know: want at least 10; raise known_users")
    rows = draw.permutation(rows)
    cut = max(1, int(test * len(rows)))
    tested, trained = rows[:cut], rows[cut : cut + max(1, int(fraction * (len(rows) - cut)))]
    user_features, item_features = scaled(table.user_features), scaled(table.item_features)
    place = np.empty(len(table.item_ids), np.int64)
    place[films.first] = films.second

    def columns(chosen: np.ndarray) -> np.ndarray:
        of_user, of_item = user_features[aligned[table.user[chosen]]], item_features[place[table.item[chosen]]]
        return np.concatenate([of_user, of_item], 1)

    def pairs(chosen: np.ndarray) -> np.ndarray:
        return np.stack([table.user[chosen], table.item[chosen]], 1)

    names = table.user_ids[table.user] * 10**9 + table.item_ids[table.item]  # one number per pair
    ids = names[np.concatenate([trained, tested])]
    model = {"users": count, "items": len(table.item_ids), "embedding": embedding, "hidden": hidden}
    model["mean"] = float(table.rating[trained].mean())
    return Recommendation(
        FeatureData(columns(trained), columns(tested), ids, seed=3 * seed + 1),
        RatingData(pairs(trained), table.rating[trained], pairs(tested), ids, model, seed=3 * seed + 2),
        torch.from_numpy(table.rating[tested]),
        users,
        films,
        len(rows),
    )


def scaled(features: np.ndarray) -> np.ndarray:
    """``features`` [n, f] with each column that is not 0 and 1 alone at mean 0 and deviation 1, float32."""
    found = features.astype(np.float32)
    for column in found.T:
        if not np.isin(column, (0, 1)).all():
            column -= column.mean()
            column /= column.std() or 1
    return found


def in_the_clear(task: Recommendation, terms: Terms, auxiliary: bool) -> tuple[Joint, float]:
    """Plain training in one place, with or without the auxiliary features: the trained network and its test MSE.

    It begins from the same weights as the parties' training does.
    """
    side = FeatureSide.draw(terms, task.features.train.shape[1], task.features.seed) if auxiliary else None
    joint = Joint(terms, RatingSide.draw(terms, seed=task.ratings.seed, **task.ratings.model), side)
    train, test = (torch.from_numpy(part) for part in (task.ratings.train, task.ratings.test))
    beside = [torch.from_numpy(x) if auxiliary else None for x in (task.features.train, task.features.test)]
    joint.train(train, torch.from_numpy(task.ratings.ratings), beside[0])
    return joint, squared_error(joint.predict(test, beside[1]), task.truth)
