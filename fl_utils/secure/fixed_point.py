"""Real numbers as whole ones: fixed point with ``fraction_bits`` bits behind the point, in rings of integers.

A weighted average is the sum of each party's ``count / total * vector``; the counts are public, so a party scales its
own vector before it rounds. (Whole counts could instead multiply the shares, but they would take log2(total) of the
value bits: 14 of 32 for twenty thousand examples.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class FixedPoint:
    """Signed numbers of ``value_bits`` bits, ``fraction_bits`` of them behind the point."""

    value_bits: int = 32
    fraction_bits: int = 20

    def __post_init__(self) -> None:
        if not 0 < self.fraction_bits < self.value_bits <= 62:
            raise ValueError(
                f"fraction_bits is {self.fraction_bits}, value_bits {self.value_bits}: want 0 < fraction_bits < "
                "value_bits <= 62"
            )

    def largest(self, parties: int) -> float:
        """The bound on one party's scaled numbers: ``parties`` of them can never leave the value bits."""
        return 2.0 ** (self.value_bits - 1 - self.fraction_bits) / parties - 2.0**-self.fraction_bits

    def error(self, parties: int) -> float:
        """The most that a sum over ``parties`` can be off: half a unit of the last place each (float32's own aside)."""
        return parties * 2.0 ** -(self.fraction_bits + 1)

    def check(self, vector: np.ndarray, weight: float, parties: int) -> None:
        """Raise ValueError where ``weight * vector`` (float32 [d]) does not fit, naming its largest value.

        weight: the party's share of all examples, in (0, 1].
        """
        if not len(vector):
            raise ValueError("vector is empty: an average needs at least one weight")
        largest = max(float(vector.max()), -float(vector.min()))
        if not np.isfinite(largest):
            raise ValueError("vector holds values that are not finite")
        if largest * weight > self.largest(parties):
            fits = max(0, int(np.floor(self.value_bits - 1 - np.log2(largest * weight * parties + 1e-300))))
            advice = f"at most {fits} fraction bits hold it" if fits else "no number of fraction bits holds it"
            raise ValueError(
                f"the largest weight, {largest:.6g}, times its party's share {weight:.3g} of the examples exceeds "
                f"{self.largest(parties):.6g}, the bound for {parties} parties with {self.fraction_bits} of "
                f"{self.value_bits} bits behind the point: {advice}"
            )

    def encode(self, vector: np.ndarray, weight: float, out: np.ndarray, room: np.ndarray) -> np.ndarray:
        """``weight * vector`` (float32 [m]), rounded, into ``out`` (unsigned [m]); ``room``: float64 [m] to work in."""
        np.multiply(vector, weight * 2.0**self.fraction_bits, out=room, dtype=np.float64)
        np.rint(room, out=room)
        np.copyto(out.view(f"i{out.itemsize}"), room, casting="unsafe")
        return out

    def sign(self, words: np.ndarray) -> np.ndarray:
        """Let the bits above the low ``value_bits`` of ``words`` (unsigned [m]) repeat the sign, in place."""
        signed, above = words.view(f"i{words.itemsize}"), 8 * words.itemsize - self.value_bits
        if above:
            np.left_shift(signed, above, out=signed)
            np.right_shift(signed, above, out=signed)
        return words

    def decode(self, words: np.ndarray, out: np.ndarray) -> np.ndarray:
        """The low ``value_bits`` of ``words`` (unsigned [m], changed), signed, as real numbers into ``out`` [m]."""
        signed = self.sign(words).view(f"i{words.itemsize}")
        return np.multiply(signed, 2.0**-self.fraction_bits, out=out, casting="unsafe", dtype=np.float64)
