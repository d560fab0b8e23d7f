"""Who holds which examples: partitions over clients, and splits into train and test. Functions of a seed alone.

Every partition is a list of index arrays (int64, sorted, one per client) that are disjoint and together hold each index
once. Requests that cannot be met raise ValueError naming what is wrong.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from fl_utils.data.examples import Examples

Parts = list[np.ndarray]


def iid(n: int, clients: int, seed: int) -> Parts:
    """``n`` examples dealt out at random, to each client the same number or one more."""
    _possible(n, clients)
    order = np.random.default_rng(seed).permutation(n)
    return [np.sort(part) for part in np.array_split(order, clients)]


def dirichlet_labels(labels: Any, clients: int, alpha: float, seed: int, min_examples: int = 1) -> Parts:
    """Label skew: each label's examples go to the clients in proportions drawn from Dir(alpha) (Yurochkin et al. 2019).

    labels: [N]. The smaller ``alpha``, the fewer labels a client sees. A client left with less than ``min_examples`` is
    filled up with examples drawn from whoever is the largest, one by one.
    """
    labels = _labels(labels)
    _possible(len(labels), clients, min_examples)
    _positive(alpha)
    random = np.random.default_rng(seed)
    owner = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        owner[members] = np.repeat(np.arange(clients), _quotas(len(members), _dirichlet(random, alpha, clients)))
    sizes = np.bincount(owner, minlength=clients)
    given = np.maximum(sizes - _raised(sizes, min_examples), 0)
    givers = np.flatnonzero(given)
    pool = [random.choice(np.flatnonzero(owner == giver), given[giver], replace=False) for giver in givers]
    if pool:
        lacking = np.maximum(min_examples - sizes, 0)
        owner[random.permutation(np.concatenate(pool))] = np.repeat(np.arange(clients), lacking)
    return [np.flatnonzero(owner == client) for client in range(clients)]


def dirichlet_quantities(n: int, clients: int, alpha: float, seed: int, min_examples: int = 1) -> Parts:
    """Quantity skew: ``n`` examples dealt out at random, the clients' shares drawn from Dir(alpha) (Li et al. 2022).

    A client left with less than ``min_examples`` takes what it lacks from the largest client.
    """
    _possible(n, clients, min_examples)
    _positive(alpha)
    random = np.random.default_rng(seed)
    sizes = _raised(_quotas(n, _dirichlet(random, alpha, clients)), min_examples)
    return [np.sort(part) for part in np.split(random.permutation(n), np.cumsum(sizes)[:-1])]


def shards(labels: Any, clients: int, shards_per_client: int, seed: int) -> Parts:
    """Examples sorted by label, cut into equal shards, ``shards_per_client`` for each client (McMahan et al. 2017)."""
    labels = _labels(labels)
    if shards_per_client < 1:
        raise ValueError(f"shards_per_client is {shards_per_client}, want at least 1")
    _possible(len(labels), clients, shards_per_client, "shards_per_client")
    random = np.random.default_rng(seed)
    shuffled = random.permutation(len(labels))
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    pieces = np.array_split(by_label, clients * shards_per_client)
    dealt = random.permutation(len(pieces)).reshape(clients, shards_per_client)
    return [np.sort(np.concatenate([pieces[piece] for piece in row])) for row in dealt]


def natural(groups: Mapping[Hashable, Sequence[int] | np.ndarray]) -> Parts:
    """One client per group (party, writer), in the mapping's order: its indices, sorted.

    Raises ValueError where a group is empty or an index is in two groups.
    """
    if not groups:
        raise ValueError("groups is empty, want at least one")
    parts = []
    owner: dict[int, Hashable] = {}
    for group, indices in groups.items():
        part = np.sort(np.asarray(indices, dtype=np.int64))
        if not len(part):
            raise ValueError(f"group {group!r} is empty")
        for index in part.tolist():
            if index in owner:
                raise ValueError(f"example {index} is in group {owner[index]!r} and in group {group!r}")
            owner[index] = group
        parts.append(part)
    return parts


def members(groups: Any) -> dict[int, np.ndarray]:
    """From one group number per example ([N]) to what :func:`natural` takes: group -> the indices of its examples."""
    numbers = _labels(groups)
    order = np.argsort(numbers, kind="stable")
    values, starts = np.unique(numbers[order], return_index=True)
    return dict(zip(values.tolist(), np.split(order, starts[1:]), strict=True))


def split(examples: Examples, fractions: Sequence[float], seed: int, by_group: bool = False) -> tuple[np.ndarray, ...]:
    """Cut ``examples`` into parts of the given ``fractions`` (such as 0.8, 0.1, 0.1), each label in about those shares.

    Examples of the same content (byte for byte) always fall into the same part, whatever their labels, so that nothing
    tested on was trained on; with ``by_group`` all examples of a group do, too. Where all contents differ the parts
    have exactly the sizes that largest remainders give; else they are off by less than the largest bundle of examples
    that must stay together. Returns sorted int64 index arrays. Raises ValueError on fractions that are not positive or
    do not sum to 1, on ``by_group`` without groups, and where a part would stay empty.
    """
    shares = np.asarray(fractions, dtype=np.float64)
    if shares.ndim != 1 or not len(shares) or not (shares > 0).all() or abs(shares.sum() - 1) > 1e-6:
        raise ValueError(f"fractions {list(fractions)}: want positive numbers that sum to 1")
    bundle = contents(examples.x)
    if by_group:
        if examples.groups is None:
            raise ValueError("by_group: these examples have no groups")
        bundle = _joined(bundle, _labels(examples.groups))
    labels = np.unique(_labels(examples.y), return_inverse=True)[1]
    quotas = _quotas(len(labels), shares)
    part = _assign(bundle, labels, quotas, np.random.default_rng(seed))
    sizes = np.bincount(part, minlength=len(shares))
    if not sizes.all():
        bundles = len(np.unique(bundle))
        raise ValueError(
            f"fractions {list(fractions)} leave part {int(sizes.argmin())} empty: there are {len(labels)} examples "
            f"in {bundles} bundles that must stay together"
        )
    return tuple(np.flatnonzero(part == number) for number in range(len(shares)))


def unseen(train: Examples, test: Examples) -> np.ndarray:
    """The indices of ``train``, sorted, whose content is not in ``test``: official splits may have examples in both."""
    both = contents([*train.x, *test.x] if isinstance(train.x, list) else np.concatenate([train.x, test.x]))
    return np.flatnonzero(~np.isin(both[: len(train)], both[len(train) :]))


def contents(x: Any) -> np.ndarray:
    """A number per example, int64 [N], equal exactly where two examples are equal byte for byte (by a 128-bit hash)."""
    rows: Iterable[Any]
    if isinstance(x, list):
        rows = (text.encode("utf-8", "surrogatepass") for text in x)
    else:
        array = np.ascontiguousarray(np.asarray(x))
        rows = array.reshape(len(array), -1) if len(array) else array
    digests = [hashlib.blake2b(row, digest_size=16).digest() for row in rows]
    return np.unique(np.array(digests, dtype="V16"), return_inverse=True)[1].astype(np.int64)


def _assign(bundle: np.ndarray, labels: np.ndarray, quotas: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The part of each example: bundles of several first, the largest foremost, then single ones fill the quotas."""
    total = max(1, len(labels))
    part = np.full(len(labels), -1, dtype=np.int64)
    room = quotas.astype(np.int64).copy()
    wanted = np.outer(np.bincount(labels), quotas) / total  # label x part: examples, if every label had the same shares
    left = wanted.copy()
    sizes = np.bincount(bundle)
    several = np.flatnonzero(sizes > 1)
    order = np.argsort(bundle, kind="stable")
    ends = np.cumsum(sizes)
    shuffled = random.permutation(several)
    for number in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        chosen = order[ends[number] - sizes[number] : ends[number]]
        need = (left / np.maximum(wanted, 1e-12))[labels[chosen]].mean(axis=0) + 1e-9 * random.random(len(room))
        fits = room >= len(chosen)
        goal = int(np.where(fits, need, -np.inf).argmax()) if fits.any() else int(room.argmax())
        part[chosen] = goal
        room[goal] -= len(chosen)
        np.subtract.at(left, (labels[chosen], goal), 1)
    single = np.flatnonzero(part < 0)
    single = random.permutation(single)
    single = single[np.argsort(labels[single], kind="stable")]
    part[single] = _spread(np.maximum(room, 0), len(single), random)
    return part


def _spread(room: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """``count`` part numbers, of each as many as ``room`` says, spread so evenly that any stretch has all shares."""
    room = room.copy()
    while room.sum() > count:  # a bundle too large for any part took more than its room
        room[room.argmax()] -= 1
    keys = [(np.arange(size) + random.random()) / size for size in room]
    order = np.argsort(np.concatenate(keys), kind="stable")
    return np.repeat(np.arange(len(room)), room)[order]


def _joined(bundle: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The connected bundles: equal contents hold groups together, and groups hold contents together."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    groups = np.unique(groups, return_inverse=True)[1] + (bundle.max(initial=-1) + 1)
    nodes = int(groups.max(initial=-1)) + 1
    graph = coo_array((np.ones(len(bundle), dtype=np.int8), (bundle, groups)), shape=(nodes, nodes))
    component = connected_components(graph, directed=False)[1][bundle]
    return np.unique(component, return_inverse=True)[1].astype(np.int64)


def _quotas(n: int, shares: np.ndarray) -> np.ndarray:
    """``n`` in whole numbers by ``shares``, the largest remainders rounded up."""
    exact = shares / shares.sum() * n
    whole = np.floor(exact + 1e-9).astype(np.int64)
    rest = n - int(whole.sum())
    whole[np.argsort(-(exact - whole), kind="stable")[:rest]] += 1
    return whole


def _raised(sizes: np.ndarray, least: int) -> np.ndarray:
    """``sizes`` with none below ``least``: what a small one lacks is taken from whichever is the largest, by ones."""
    raised = sizes.copy()
    for client in np.flatnonzero(sizes < least):
        for _ in range(least - int(sizes[client])):
            raised[raised.argmax()] -= 1
            raised[client] += 1
    return raised


def _dirichlet(random: np.random.Generator, alpha: float, clients: int) -> np.ndarray:
    """One draw; where ``alpha`` is so small that the gamma variates underflow, all goes to one client: the limit."""
    draw = random.dirichlet(np.full(clients, alpha))
    if not np.isfinite(draw).all() or draw.sum() <= 0:
        draw = np.zeros(clients)
        draw[random.integers(clients)] = 1.0
    return draw


def _labels(labels: Any) -> np.ndarray:
    array = np.asarray(labels)
    if array.ndim != 1:
        raise ValueError(f"labels have shape {list(array.shape)}, want [N], one per example")
    return array


def _positive(alpha: float) -> None:
    if not (np.isfinite(alpha) and alpha > 0):
        raise ValueError(f"alpha is {alpha}, want a positive number")


def _possible(n: int, clients: int, each: int = 1, name: str = "min_examples") -> None:
    if clients < 1:
        raise ValueError(f"clients is {clients}, want at least 1")
    if each < 0:
        raise ValueError(f"{name} is {each}, want at least 0")
    if n < clients:
        raise ValueError(f"{clients} clients for {n} examples: want at most one client per example")
    if clients * each > n:
        raise ValueError(
            f"{name} = {each} for each of {clients} clients needs {clients * each} examples, there are {n}"
        )
