"""A learning rate that is lowered whenever the accuracy stops rising (Hofman 2020, section 4.2).

The thesis lowered it by hand, and its curves climb in terraces. Here a rule does it, from the rounds past alone, so
that a run that was killed goes on with the same rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fl_utils.cohorts import Round
from fl_utils.training import LocalTraining


@dataclass(frozen=True)
class Terraces:
    """``local``, its learning rate multiplied by ``factor`` after ``patience`` evaluated rounds without a new best.

    Give it to :func:`fl_utils.federation.run` as ``local``. metric: the name of a value that ``evaluate`` returns,
    higher is better; or "train_loss", lower is better, which looks at no test data. A value counts as a new best where
    it is better by more than ``margin``. lowerings: at most so many. Raises ValueError on settings out of range.
    """

    local: LocalTraining
    metric: str = "accuracy"
    factor: float = 0.1
    patience: int = 3
    margin: float = 0.0
    lowerings: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.factor < 1:
            raise ValueError(f"factor is {self.factor}: want a number between 0 and 1, it multiplies the rate")
        if self.margin < 0:
            raise ValueError(f"margin is {self.margin}: want a number from 0 up")
        for name, least in (("patience", 1), ("lowerings", 0)):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)!r}: want a whole number from {least} up")

    def after(self, rounds: Sequence[Round]) -> LocalTraining:
        """How clients train in the round that follows ``rounds``."""
        steps = len(self.lowered(rounds))
        return replace(self.local, learning_rate=self.local.learning_rate * self.factor**steps)

    def lowered(self, rounds: Sequence[Round]) -> list[int]:
        """The numbers of the rounds that are, or would be, the first with a lower rate, in order.

        Raises ValueError where a round was evaluated without ``metric``.
        """
        best, waited, found = float("-inf"), 0, []
        for one in rounds if self.lowerings else ():
            value = self._value(one)
            if value is None:
                continue
            waited += 1
            if value > best + self.margin or best == float("-inf"):
                best, waited = value, 0
            elif waited == self.patience and len(found) < self.lowerings:
                found.append(one.number + 1)
                waited = 0
        return found

    def _value(self, one: Round) -> float | None:
        if self.metric == "train_loss":
            return -one.train_loss
        if one.evaluation is None:
            return None
        if self.metric not in one.evaluation:
            raise ValueError(f"metric {self.metric!r} is not in what evaluate returned: {', '.join(one.evaluation)}")
        return one.evaluation[self.metric]
