"""Trend prediction over catalogues of the same works: joined without showing the rest, split by a date, then learned.

One party holds the scores; each holds features. Rows are the scored works; where a party does not hold a work, its
block of that row is empty (NaN), so that a hybrid partition (some rows at some parties only) is a table with gaps.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fl_utils.data import cards, films, games
from fl_utils.data.films import Catalogue
from fl_utils.vertical import psi

DATASETS = ("films+imdb_films", "games")
MODELS = ("trees", "network")
NETWORK = {"bottom": 16, "hidden": 16, "dropout": 0.3, "epochs": 6, "batch": 64, "rate": 0.05, "decay": 1e-3}
SAMPLE = 500  # identifiers outside the intersection that are looked for in the messages
SHORTEST = 8  # bytes of an identifier worth looking for: shorter ones occur in random bytes by chance


@dataclass(frozen=True)
class Message:
    """One message of a join: who sent it to whom, what it is, its bytes, and what its receiver learns from it."""

    sender: str
    receiver: str
    what: str
    bytes: int
    learns: str


@dataclass(frozen=True)
class Join:
    """Two parties' rows aligned by private set intersection: row ``first_rows[k]`` is ``second_rows[k]`` (int64).

    exact: the pairs are those of a plain join. contained: the announcement is the digests of the shared identifiers,
    the request has the length that any as many identifiers give, and of 500 identifiers outside the intersection
    neither text nor digest stands in what the other side received.
    """

    first: str
    second: str
    on: str
    sizes: tuple[int, int]
    client: str
    first_rows: np.ndarray
    second_rows: np.ndarray
    exact: bool
    contained: bool
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Task:
    """N scored works. blocks: party -> features float32 [N, F], NaN in rows that the party does not hold. present:
    party -> bool [N]. score: float32 [N], in ``unit``. released: float64 [N], the day as a year with a fraction."""

    blocks: Mapping[str, np.ndarray]
    present: Mapping[str, np.ndarray]
    score: np.ndarray
    released: np.ndarray
    unit: str
    joins: tuple[Join, ...]

    @property
    def parties(self) -> tuple[str, ...]:
        """The parties' names; the one that holds the scores first."""
        return tuple(self.blocks)

    @property
    def everywhere(self) -> np.ndarray:
        """bool [N]: the works that every party holds."""
        return np.logical_and.reduce(list(self.present.values()))


def check(dataset: str, data_dir: str | Path, first_test_year: int, last_year: int, share: float, repeats: int) -> None:
    """Raise ValueError, or DataNotFound, on what cannot be run, before any work is done."""
    if dataset not in DATASETS:
        raise ValueError(f"dataset is {dataset!r}; want {' or '.join(DATASETS)}")
    if first_test_year > last_year:
        raise ValueError(f"first_test_year is {first_test_year}, last_year {last_year}; want a year from it on")
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; want a share of the training works, above 0 and at most 1")
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; want at least 1")
    cards.require(dataset.split("+"), data_dir)


def load(dataset: str, data_dir: str | Path = "", after_release: bool = False) -> Task:
    """The works of ``dataset``: "films+imdb_films" (tomatoes, omdb, imdb) or "games" (ign, vgsales); the first scores.

    tomatoes and omdb meet on their ID, omdb and imdb on title and year, ign and vgsales on title and platform; a key
    that a party has twice names neither of its works and is left out. ``after_release`` adds features that are known
    only then. Raises ValueError on an unknown name, else as the loaders do.
    """
    if dataset not in DATASETS:
        raise ValueError(f"dataset is {dataset!r}; want {' or '.join(DATASETS)}")
    cards.require(dataset.split("+"), data_dir)
    if dataset == "games":
        return _games(games.load(data_dir, after_release))
    return _films({**films.load(data_dir, after_release), "imdb": films.load_imdb(data_dir, after_release)})


def join(first: str, second: str, on: str, first_keys: Sequence[str], second_keys: Sequence[str]) -> Join:
    """Align two parties on keys, each once per party; the smaller side is the client. Errors as in :mod:`psi`."""
    forth = len(first_keys) <= len(second_keys)
    names, keys = ((first, second), (first_keys, second_keys))
    client_name, server_name = names if forth else names[::-1]
    client_keys, server_keys = keys if forth else keys[::-1]
    client, server = psi.Client(client_keys, client_name), psi.Server(server_keys, server_name)
    request = client.request()
    reply = server.reply(request)
    announcement = client.announce(reply)
    server_rows, confirmation = server.match(announcement)
    client_rows = client.confirm(confirmation)
    messages = (
        Message(client_name, server_name, "request", len(request), f"{client_name} has {len(client_keys):,} ids"),
        Message(
            server_name,
            client_name,
            "reply",
            len(reply),
            f"{server_name} has {len(server_keys):,} ids; which are shared",
        ),
        Message(
            client_name, server_name, "announcement", len(announcement), f"which {len(server_rows):,} rows are shared"
        ),
        Message(server_name, client_name, "confirmation", len(confirmation), "that they were found"),
    )
    place = {key: row for row, key in enumerate(server_keys)}
    plain = {(row, place[key]) for row, key in enumerate(client_keys) if key in place}
    exact = set(zip(client_rows.tolist(), server_rows.tolist(), strict=True)) == plain
    shared = {client_keys[row] for row, _ in plain}
    contained = (
        announcement == b"".join(sorted(_digest(key) for key in shared))
        and len(request) == 2 + (psi.ELEMENT + 2) * len(client_keys)  # a flag; elements with two bytes of framing
        and not _shown([key for key in client_keys if key not in shared], (request, announcement))
        and not _shown([key for key in server_keys if key not in shared], (reply, confirmation))
    )
    rows = (client_rows, server_rows) if forth else (server_rows, client_rows)
    sizes = (len(first_keys), len(second_keys))
    return Join(first, second, on, sizes, client_name, *rows, exact, contained, messages)


def split(task: Task, first_test_year: int, last_year: int) -> tuple[np.ndarray, np.ndarray]:
    """bool [N] twice: the works to train on, released before ``first_test_year``, and to test on, from then to the end
    of ``last_year``. Raises ValueError where either is empty."""
    train = task.released < first_test_year
    test = ~train & (task.released < last_year + 1)
    if not train.any() or not test.any():
        span = f"{task.released.min():.0f} to {task.released.max():.0f}"
        raise ValueError(
            f"split at {first_test_year}, last year {last_year}: {train.sum()} works to train on, {test.sum()} to test "
            f"on; want some of both out of {span}"
        )
    return train, test


def predict(
    model: str, task: Task, parties: Sequence[str], train: np.ndarray, test: np.ndarray, seed: int, share: float = 0.8
) -> np.ndarray:
    """Scores float32 of the rows ``test`` (bool [N]) by a model of ``parties``' features, trained on rows ``train``.

    model: "trees" (scikit-learn's histogram gradient boosting, which sends a gap down a branch of its own) or
    "network" (a bottom layer per party, zero where it lacks the row, and a top). ``seed`` draws ``share`` of the
    training rows and the weights. Raises ValueError on an unknown model or party.
    """
    if model not in MODELS:
        raise ValueError(f"model is {model!r}; want {' or '.join(MODELS)}")
    if not parties or not set(parties) <= set(task.blocks):
        raise ValueError(f"parties are {list(parties)}; want some of {', '.join(task.blocks)}")
    rows = np.flatnonzero(train)
    rows = np.random.default_rng(seed).choice(rows, max(1, round(share * len(rows))), replace=False)
    fit = _trees if model == "trees" else _network
    return fit(task, parties, rows, np.flatnonzero(test), seed)


def error(task: Task, predicted: np.ndarray, test: np.ndarray) -> float:
    """The root mean squared error of ``predicted`` on the rows ``test``, in the score's unit."""
    return float(np.sqrt(np.mean((predicted - task.score[test]) ** 2, dtype=np.float64)))


def _films(parties: Mapping[str, Catalogue]) -> Task:
    tomatoes, omdb, imdb = (parties[name] for name in ("tomatoes", "omdb", "imdb"))
    scored = np.flatnonzero(np.isfinite(tomatoes.score))
    by_id = join("tomatoes", "omdb", "id", [tomatoes.ids[row] for row in scored], omdb.ids)
    (omdb_rows, omdb_keys), (imdb_rows, imdb_keys) = _keyed(omdb), _keyed(imdb)
    by_title = join("omdb", "imdb", "title and year", omdb_keys, imdb_keys)
    first, second = scored[by_id.first_rows], by_id.second_rows
    third = np.full(len(omdb), -1)
    third[omdb_rows[by_title.first_rows]] = imdb_rows[by_title.second_rows]
    places = {"tomatoes": first, "omdb": second, "imdb": third[second]}
    released = omdb.released[second]
    return _task(parties, places, tomatoes.score[first], released, "points of 100", (by_id, by_title))


def _games(parties: Mapping[str, Catalogue]) -> Task:
    ign, sales = parties["ign"], parties["vgsales"]
    (ign_rows, ign_keys), (sales_rows, sales_keys) = _keyed(ign), _keyed(sales)
    found = join("ign", "vgsales", "title and platform", ign_keys, sales_keys)
    scored = np.flatnonzero(np.isfinite(ign.score))
    other = np.full(len(ign), -1)
    other[ign_rows[found.first_rows]] = sales_rows[found.second_rows]
    places = {"ign": scored, "vgsales": other[scored]}
    return _task(parties, places, ign.score[scored], ign.released[scored], "points of 10", (found,))


def _task(
    parties: Mapping[str, Catalogue],
    places: Mapping[str, np.ndarray],
    score: np.ndarray,
    released: np.ndarray,
    unit: str,
    joins: tuple[Join, ...],
) -> Task:
    """``places``: party -> its row of each work, -1 where it does not hold it. The works go in order of their day."""
    order = np.lexsort((places[next(iter(places))], released))
    present = {name: places[name][order] >= 0 for name in places}
    blocks = {
        name: np.where(present[name][:, None], parties[name].features[places[name][order]], np.float32("nan"))
        for name in places
    }
    return Task(blocks, present, score[order], released[order], unit, joins)


def _keyed(party: Catalogue) -> tuple[np.ndarray, list[str]]:
    """The rows int64 [n] whose key is theirs alone within the party, and their keys."""
    keys = [psi.key(title, edition) for title, edition in zip(party.titles, party.editions, strict=True)]
    count = Counter(keys)
    rows = [row for row, key in enumerate(keys) if count[key] == 1]
    return np.array(rows, np.int64), [keys[row] for row in rows]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _shown(keys: Sequence[str], messages: Sequence[bytes]) -> list[str]:
    """Those of the first ``keys`` whose digest, or text where long enough, stands in any of ``messages``."""
    found = []
    for key in keys[:SAMPLE]:
        forms = [_digest(key), *([key.encode()] if len(key.encode()) >= SHORTEST else [])]
        if any(form in message for form in forms for message in messages):
            found.append(key)
    return found


def _trees(task: Task, parties: Sequence[str], rows: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.ensemble import HistGradientBoostingRegressor

    table = np.hstack([task.blocks[party] for party in parties])
    model = HistGradientBoostingRegressor(
        max_iter=150,
        learning_rate=0.05,
        max_leaf_nodes=12,
        min_samples_leaf=20,
        early_stopping=False,
        random_state=seed,
    )
    return model.fit(table[rows], task.score[rows]).predict(table[test]).astype(np.float32)


def _network(task: Task, parties: Sequence[str], rows: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """A bottom layer per party on standardised features and marks of what is unknown, then one hidden layer; SGD
    with momentum 0.9, the rate falling to 0 (:data:`NETWORK`)."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        blocks = [torch.from_numpy(_standard(task.blocks[party], rows)) for party in parties]
        held = [torch.from_numpy(task.present[party][:, None].astype(np.float32)) for party in parties]
        bottoms = nn.ModuleList(nn.Linear(block.shape[1], NETWORK["bottom"]) for block in blocks)
        wide, drop = NETWORK["bottom"] * len(blocks), nn.Dropout(NETWORK["dropout"])
        top = nn.Sequential(drop, nn.Linear(wide, NETWORK["hidden"]), nn.ReLU(), drop, nn.Linear(NETWORK["hidden"], 1))

        def forward(rows: torch.Tensor) -> torch.Tensor:
            parts = zip(blocks, held, bottoms, strict=True)
            return top(torch.cat([here[rows] * bottom(block[rows]).relu() for block, here, bottom in parts], 1))[:, 0]

        mean, spread = float(task.score[rows].mean()), float(task.score[rows].std()) or 1.0
        target = torch.from_numpy((task.score - mean) / spread)
        weights = [*bottoms.parameters(), *top.parameters()]
        speed = [torch.zeros_like(weight) for weight in weights]
        steps = NETWORK["epochs"] * -(-len(rows) // NETWORK["batch"])
        rates = iter(np.linspace(NETWORK["rate"], 0, steps, endpoint=False))
        for _ in range(NETWORK["epochs"]):
            for batch in torch.from_numpy(np.sort(rows))[torch.randperm(len(rows))].split(NETWORK["batch"]):
                loss = nn.functional.mse_loss(forward(batch), target[batch])
                gradients, rate = torch.autograd.grad(loss, weights), float(next(rates))
                with torch.no_grad():  # no optimizer object: the first one of torch.optim costs seconds
                    for weight, gradient, moving in zip(weights, gradients, speed, strict=True):
                        moving.mul_(0.9).add_(gradient + NETWORK["decay"] * weight)
                        weight.sub_(rate * moving)
    top.eval()
    with torch.no_grad():
        return (forward(torch.from_numpy(test)) * spread + mean).numpy()


def _standard(block: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Features at mean 0 and deviation 1 over the training ``rows``, 0 where unknown, with a mark for each column that
    has gaps there; float32 [N, F + gaps]."""
    known = np.isfinite(block)
    seen = np.where(known[rows], block[rows], 0).astype(np.float64)
    count = np.maximum(known[rows].sum(0), 1)
    mean = seen.sum(0) / count
    spread = np.sqrt((np.where(known[rows], seen - mean, 0) ** 2).sum(0) / count)
    scaled = np.where(known, (block - mean) / np.where(spread > 0, spread, 1), 0)
    gaps = ~known[:, ~known[rows].all(0)]
    return np.hstack([np.clip(scaled, -5, 5), gaps]).astype(np.float32)
