"""Averages that a minority of wrong vectors cannot carry away: median, trimmed mean, Krum and multi-Krum.

    median         each coordinate's middle value; bounded by honest values while f < n / 2 of n vectors are wrong
    trimmed_mean   each coordinate's mean without its k lowest and k highest values; while f <= k (Yin et al. 2018)
    krum           the vector closest to its n - f - 2 nearest ones; while 2 f + 2 < n (Blanchard et al. 2017)
    multi_krum     the mean of the m vectors that are best by Krum's score; the same

None weighs vectors by their examples: a wrong client would claim a million. All go through the coordinates in pieces,
so that beside the vectors (tensors or numpy arrays on the CPU, memory-mapped ones too) and the result they take
memory for a few hundred thousand values. A ``vectors`` here is a list of float32 [d] or one array of float32 [n, d].

As rules of :func:`fl_utils.federation.run` they hold a whole cohort's vectors; settings are given by ``partial``:

    federation.run(build, clients, rule=partial(robust.krum_rule, byzantine=2), ...)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from fl_utils.aggregation import fedavg

Vectors = Sequence[torch.Tensor | np.ndarray] | torch.Tensor | np.ndarray
CACHED = 1 << 18  # values of all vectors together that are worked on at a time, where that is enough for each
Updates = Iterable[tuple[torch.Tensor, int]]


def median(vectors: Vectors, out: torch.Tensor | None = None) -> torch.Tensor:
    """Coordinate-wise median (float32 [d], in ``out`` where given); of an even number the mean of the middle two.

    Breakdown point: while fewer than half of the vectors are wrong, each coordinate lies between two honest values.
    Raises ValueError where there is no vector, lengths differ or a value is not finite.
    """
    rows = _rows(vectors)
    return _middle(rows, (len(rows) - 1) // 2, out)


def trimmed_mean(vectors: Vectors, trim: float, out: torch.Tensor | None = None) -> torch.Tensor:
    """Coordinate-wise mean without the lowest and the highest values (Yin et al. 2018, definition 2).

    trim: how many at each end, a whole number k with 2 k < n, or a share of n in [0, 0.5), rounded down. It bears as
    many wrong vectors as it trims at an end. Result and errors as :func:`median`.
    """
    rows = _rows(vectors)
    count = len(rows)
    share = isinstance(trim, float) and 0 <= trim < 0.5
    low = min(int(trim * count + 1e-9), (count - 1) // 2) if share else trim  # 0.29 * 100 is 28.999999999999996
    if not _whole(low) or 2 * low >= count:
        raise ValueError(f"trim is {trim!r} with {count} vectors: want a whole number below half, or a share below 0.5")
    return _middle(rows, low, out)


def krum_scores(vectors: Vectors, byzantine: int) -> torch.Tensor:
    """Krum's score of each vector (float64 [n]): the sum of squared distances to its n - f - 2 nearest others.

    byzantine: f, how many vectors may be wrong. Distances come from differences, not from products: near vectors are
    told apart however long they are; n (n - 1) / 2 of them are taken. Raises ValueError where not 2 f + 2 < n
    (Blanchard et al. 2017, proposition 1), and as :func:`median`.
    """
    rows = _rows(vectors)
    count = len(rows)
    if not _whole(byzantine) or 2 * byzantine + 2 >= count:
        raise ValueError(f"byzantine is {byzantine!r} with {count} vectors: want a whole number f, 2 f + 2 < {count}")
    squared = np.zeros((count, count))
    for _, piece in _pieces(rows):
        between = np.empty_like(piece[1:])
        for first in range(count - 1):
            gaps = np.subtract(piece[first + 1 :], piece[first], out=between[first:])
            with np.errstate(over="ignore"):  # infinitely far away, that is
                squared[first, first + 1 :] += np.einsum("ij,ij->i", gaps, gaps)
    squared += squared.T
    np.fill_diagonal(squared, np.inf)
    return torch.from_numpy(np.sort(squared, axis=1)[:, : count - byzantine - 2].sum(1))


def krum(vectors: Vectors, byzantine: int, out: torch.Tensor | None = None) -> torch.Tensor:
    """The vector with the least :func:`krum_scores` (of several the first): a copy, float32 [d]. Errors as there."""
    return multi_krum(vectors, byzantine, 1, out)


def multi_krum(vectors: Vectors, byzantine: int, select: int = 0, out: torch.Tensor | None = None) -> torch.Tensor:
    """The mean of the ``select`` vectors of the least :func:`krum_scores` (Blanchard et al. 2017, section 4).

    select: m, 1 (Krum) to n - f; 0 stands for n - f, as many as are honest. Errors as there, and on another m.
    """
    rows = _rows(vectors)
    scores = krum_scores(rows, byzantine)
    most = len(scores) - byzantine
    if not _whole(select) or select > most:
        raise ValueError(f"select is {select!r}: want 1 to n - f = {most} vectors, or 0 for all of these")
    best = sorted(torch.argsort(scores, stable=True)[: select or most].tolist())
    out = _result(rows, out)
    for begin, piece in _pieces([rows[number] for number in best]):
        fedavg(list(torch.from_numpy(piece)), [1] * len(best), out=out[begin : begin + piece.shape[1]])
    return out


def median_rule(old: torch.Tensor, updates: Updates) -> torch.Tensor:
    """:func:`median` as a federation's rule; ignores the numbers of examples."""
    return median([vector for vector, _ in updates])


def trimmed_mean_rule(old: torch.Tensor, updates: Updates, trim: float = 0.1) -> torch.Tensor:
    """:func:`trimmed_mean` as a federation's rule; ignores the numbers of examples."""
    return trimmed_mean([vector for vector, _ in updates], trim)


def krum_rule(old: torch.Tensor, updates: Updates, byzantine: int = 1) -> torch.Tensor:
    """:func:`krum` as a federation's rule; ignores the numbers of examples. n: of the updates that arrived."""
    return krum([vector for vector, _ in updates], byzantine)


def multi_krum_rule(old: torch.Tensor, updates: Updates, byzantine: int = 1, select: int = 0) -> torch.Tensor:
    """:func:`multi_krum` as a federation's rule; ignores the numbers of examples. n: of the updates that arrived."""
    return multi_krum([vector for vector, _ in updates], byzantine, select)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _rows(vectors: Vectors) -> list[np.ndarray]:
    rows = [row.detach().numpy() if isinstance(row, torch.Tensor) else row for row in vectors]
    if not rows:
        raise ValueError("vectors is empty: an aggregate needs at least one client's vector")
    for number, row in enumerate(rows):
        if row.dtype != np.float32 or row.ndim != 1 or len(row) != len(rows[0]):
            raise ValueError(
                f"vector {number} is {row.dtype} {list(row.shape)}: want float32 [{len(rows[0])}], as the first"
            )
    return rows


def _result(rows: list[np.ndarray], out: torch.Tensor | None) -> torch.Tensor:
    out = torch.empty(len(rows[0])) if out is None else out
    if out.dtype != torch.float32 or out.shape != rows[0].shape:
        raise ValueError(f"out is {out.dtype} of shape {tuple(out.shape)}: want float32 of shape {rows[0].shape}")
    return out


def _pieces(rows: list[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """(begin, all vectors' next coordinates [n, width]): a buffer that the caller may write into until the next one."""
    width = max(1 << 10, CACHED // len(rows))
    buffer = np.empty((len(rows), min(width, len(rows[0]))), np.float32)
    for begin in range(0, len(rows[0]), width):
        piece = buffer[:, : len(rows[0]) - begin]
        for target, row in zip(piece, rows, strict=True):
            target[:] = row[begin : begin + width]
        with np.errstate(over="ignore", invalid="ignore"):
            whole = np.isfinite(piece.sum(1))  # false where a value is not finite, or where huge ones overflow
        for number in np.flatnonzero(~whole):
            if not np.isfinite(piece[number]).all():
                raise ValueError(f"vector {number} holds values that are not finite: leave it out")
        yield begin, piece


def _middle(rows: list[np.ndarray], low: int, out: torch.Tensor | None) -> torch.Tensor:
    """The mean of each coordinate's values without the ``low`` lowest and highest."""
    out = _result(rows, out)
    wanted = range(low, len(rows) - low)
    network = _network(len(rows), wanted)
    for begin, piece in _pieces(rows):
        values, spare = list(piece), np.empty_like(piece[0])
        for first, second, lower, higher in network:
            if lower and higher:
                np.minimum(values[first], values[second], out=spare)
                np.maximum(values[first], values[second], out=values[second])
                values[first], spare = spare, values[first]
            elif lower:
                np.minimum(values[first], values[second], out=values[first])
            else:
                np.maximum(values[first], values[second], out=values[second])
        total = values[low]
        for number in wanted[1:]:
            total += values[number]
        np.divide(total, len(wanted), out=out[begin : begin + len(total)].numpy())
    return out


def _network(count: int, wanted: range) -> list[tuple[int, int, bool, bool]]:
    """Batcher's merge exchange (Knuth, volume 3, algorithm 5.2.2M): comparisons that sort any ``count`` values.

    Whole rows of coordinates pass through it at once. (first, second, is the lower wanted, is the higher wanted): what
    has no part in the values at the places ``wanted`` is left out.
    """
    pairs = []
    step = largest = 1 << max(0, (count - 1).bit_length() - 1)
    while step:
        reach, residue, distance = largest, 0, step
        while True:
            pairs += [(i, i + distance) for i in range(count - distance) if i & step == residue]
            if reach == step:
                break
            distance, residue, reach = reach - step, step, reach // 2
        step //= 2
    used, network = set(wanted), []
    for first, second in reversed(pairs):
        if first in used or second in used:
            network.append((first, second, first in used, second in used))
            used |= {first, second}
    return network[::-1]
