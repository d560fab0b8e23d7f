"""What a classifier's predictions are worth: accuracy, precision, recall, confusion matrix (all by scikit-learn)."""

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
    is never predicted has precision 0. Raises ValueError where there is nothing to compare or lengths differ.
    """
    from sklearn.metrics import confusion_matrix, precision_score, recall_score

    targets, predictions = np.asarray(targets), np.asarray(predictions)
    if len(targets) == 0 or len(targets) != len(predictions):
        raise ValueError(
            f"{len(targets)} targets and {len(predictions)} predictions: want the same number, at least one"
        )
    average = {"average": "binary"} if classes == 2 else {"average": "macro", "labels": range(classes)}
    return Scores(
        loss=float(loss),
        accuracy=float((targets == predictions).mean()),
        precision=float(precision_score(targets, predictions, zero_division=0, **average)),
        recall=float(recall_score(targets, predictions, zero_division=0, **average)),
        confusion=confusion_matrix(targets, predictions, labels=range(classes)).tolist(),
        num_examples=len(targets),
    )
