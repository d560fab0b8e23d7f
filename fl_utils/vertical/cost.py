"""What one training step costs under encryption: both parties' work in one process, timed, its operations counted."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from fl_utils.vertical import encryption
from fl_utils.vertical.encryption import Counts


class EncryptedStep:
    """Both parties' encrypted work of one step, with all that is sent as bytes. ``counts`` are those of the last."""

    def __init__(self, scheme: str, rows: int, width: int = 16, outputs: int = 16):
        self.owner = encryption.owner(scheme)
        self.evaluator = encryption.evaluator(self.owner.public(), scheme)
        random = np.random.default_rng(0)
        self.rows = np.tanh(random.normal(size=(rows, width)))
        self.share, self.own = (random.normal(size=(width, outputs)) for _ in range(2))
        self.slopes = random.normal(size=(rows, outputs)) / 4
        self.counts = Counts()

    def __call__(self) -> float:
        """One step; how far the worst of its three results is off."""
        self.owner.counts, self.evaluator.counts = Counts(), Counts()
        rows, weights = (
            _sent(self.owner.seal_rows(self.rows)),
            _sent(self.owner.seal_weights(self.share, len(self.rows))),
        )
        products, forward_mask = self.evaluator.products(rows, self.own)
        forward = self.owner.open(_sent(products)) - forward_mask
        gradient, mask = self.evaluator.gradient(rows, self.slopes)
        change = self.owner.open(_sent(gradient)) - mask
        back = self.owner.open(_sent(self.evaluator.slopes(weights, self.own, self.slopes)))
        self.counts = self.owner.counts + self.evaluator.counts
        wrong = forward - self.rows @ self.own, change - self.rows.T @ self.slopes
        return max(float(np.abs(w).max()) for w in (*wrong, back - self.slopes @ (self.share + self.own).T))


def _sent(sealed: encryption.Sealed) -> encryption.Sealed:
    return encryption.Sealed.from_bytes(sealed.to_bytes())


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process for one call."""
    started = time.process_time()
    work()
    return time.process_time() - started


def extrapolated(few: tuple[EncryptedStep, EncryptedStep], rows: int) -> tuple[float, Counts]:
    """CPU seconds and operations of a step of ``rows`` rows, along the line through two measured steps of fewer rows.

    A scheme with one ciphertext per number costs a constant (sealing the share, masking the gradient) and a part per
    row, so that two sizes tell it. Raises ValueError where both have as many rows.
    """
    first, second = (len(step.rows) for step in few)
    if first == second:
        raise ValueError(f"both steps have {first} rows: a line needs two sizes")
    times = [seconds(step) for step in few]
    weight = (rows - first) / (second - first)
    one, other = (vars(step.counts) for step in few)
    line = {key: round(one[key] + weight * (other[key] - one[key])) for key in one}
    return times[0] + weight * (times[1] - times[0]), Counts(**line)
