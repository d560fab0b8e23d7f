"""What a classifier's predictions are worth: accuracy, precision, recall, confusion matrix.

scikit-learn has all of these; to import it costs each notebook two to three seconds, for a count and two quotients.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Scores:
    """Figures of one evaluation; ratios lie in [0, 1]. ``confusion[i][j]``: examples of class i taken for class j."""

    loss: float
    accuracy: float
    precision: float
    recall: float
    confusion: list[list[int]]
    num_examples: int

    def asdict(self) -> dict:
        """As a plain dictionary that JSON can carry."""
        return asdict(self)


def scores(targets: np.ndarray, predictions: np.ndarray, classes: int, loss: float = float("nan")) -> Scores:
    """Compare ``predictions`` with ``targets`` (int [N], classes 0 .. ``classes`` - 1).

    Precision and recall are those of class 1 where there are two classes, and macro averages otherwise; a class that
    is never predicted has precision 0. Raises ValueError where there is nothing to compare, lengths differ or a class
    is none of these.
    """
    targets, predictions = np.asarray(targets), np.asarray(predictions)
    if len(targets) == 0 or len(targets) != len(predictions):
        raise ValueError(
            f"{len(targets)} targets and {len(predictions)} predictions: want the same number, at least one"
        )
    for name, found in (("targets", targets), ("predictions", predictions)):
        if found.min() < 0 or found.max() >= classes:
            raise ValueError(f"{name} lie from {found.min()} to {found.max()}: want classes from 0 to {classes - 1}")
    pairs = classes * targets.astype(np.int64) + predictions.astype(np.int64)
    confusion = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    right = np.diag(confusion)
    precision, recall = (right / np.maximum(confusion.sum(axis), 1) for axis in (0, 1))
    return Scores(
        loss=float(loss),
        accuracy=float((targets == predictions).mean()),
        precision=float(precision[1] if classes == 2 else precision.mean()),
        recall=float(recall[1] if classes == 2 else recall.mean()),
        confusion=confusion.tolist(),
        num_examples=len(targets),
    )
