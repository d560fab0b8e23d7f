"""A training step under encryption against the plain step, CKKS and Paillier at the same protocol, in the same run.

CKKS takes the whole batch of 256 rows. Paillier takes a few rows, twice as many the second time; the line through both
is extrapolated to 256 rows, since its cost is a constant (sealing W_A's share, making the gradient) and a part per row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from statistics import median

import torch

from fl_utils.vertical.cost import EncryptedStep, extrapolated, seconds
from fl_utils.vertical.joint import FeatureSide, Joint, RatingSide, Terms

ROWS, WIDTH, OUTPUTS, FEATURES, USERS, ITEMS = 256, 16, 16, 42, 943, 1682
FEW = (2, 4)  # Paillier's rows


def plain_step(rows: int = ROWS) -> Callable[[], object]:
    """One step of the whole network in the clear, both parties' parts."""
    terms = Terms(width=WIDTH, outputs=OUTPUTS)
    joint = Joint(terms, RatingSide.draw(terms, USERS, ITEMS, 0), FeatureSide.draw(terms, FEATURES, 1))
    generator = torch.Generator().manual_seed(0)
    pairs = torch.stack([torch.randint(count, (rows,), generator=generator) for count in (USERS, ITEMS)], 1)
    features, ratings = torch.randn(rows, FEATURES, generator=generator), torch.full((rows,), 4.0)
    return lambda: joint.step(pairs, ratings, features)


def compare(repeats: int = 5, paillier_repeats: int = 2, rows: int = ROWS) -> dict[str, dict]:
    """CPU seconds of a step of ``rows`` rows: plain, CKKS (the encrypted work and the plain work), Paillier.

    Each contender: "cpu_s" (median), "ratio" to the plain step and its least and most within a turn, "counts" of
    ciphertext operations, "error"; Paillier's are extrapolated from :data:`FEW` rows.
    """
    plain, ckks, few = plain_step(rows), EncryptedStep("ckks", rows), tuple(EncryptedStep("paillier", n) for n in FEW)
    for contender in (plain, ckks, few[0]):
        contender()
    turns = {"plain": [], "ckks": [], "paillier": []}
    for turn in range(repeats):
        turns["plain"].append(median(seconds(plain) for _ in range(5)))
        turns["ckks"].append(seconds(ckks) + turns["plain"][-1])
        if turn < paillier_repeats:
            measured, counts = extrapolated(few, rows)
            turns["paillier"].append(measured + turns["plain"][-1])
    found = {}
    for name, times in turns.items():
        ratios = [spent / base for spent, base in zip(times, turns["plain"], strict=False)]
        spread = {"ratio": median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}
        found[name] = {"cpu_s": median(times), **spread}
    found["ckks"] |= {"counts": asdict(ckks.counts), "error": ckks()}
    over = [slow / fast for slow, fast in zip(turns["paillier"], turns["ckks"], strict=False)]
    found["paillier"]["over_ckks"] = over
    found["paillier"] |= {"counts": asdict(counts), "error": few[1](), "measured_rows": list(FEW)}
    return found


def run() -> dict:
    """Two groups: steps against the plain one, and Paillier against CKKS, which the project wants at 50 or more."""
    found = compare()
    pair, over = {name: found[name]["cpu_s"] for name in ("ckks", "paillier")}, found["paillier"]["over_ckks"]
    spread = {"ratio": median(over), "ratio_min": min(over), "ratio_max": max(over)}
    against = {
        "ckks": {"cpu_s": pair["ckks"], "ratio": 1.0, "ratio_min": 1.0, "ratio_max": 1.0},
        "paillier 2048": {"cpu_s": pair["paillier"], **spread},
    }
    return {f"step of {ROWS}": found, "under encryption": against}
