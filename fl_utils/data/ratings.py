"""MovieLens: who rated which film how, with what is known of users and films, out of the official files.

Two data sets (Harper and Konstan 2015): "movielens_100k" (943 users, 1,682 films, 100,000 ratings; fetched, or by path)
and "movielens_1m" (6,040 users, 3,883 films, 1,000,209 ratings; by path only).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fl_utils.data import fetch
from fl_utils.data.cards import Location

GENRES_100K = ("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama")
GENRES_100K += (
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
GENRES_1M = GENRES_100K[1:]
OCCUPATIONS_100K = ("administrator", "artist", "doctor", "educator", "engineer", "entertainment", "executive")
OCCUPATIONS_100K += ("healthcare", "homemaker", "lawyer", "librarian", "marketing", "none", "other", "programmer")
OCCUPATIONS_100K += ("retired", "salesman", "scientist", "student", "technician", "writer")
OCCUPATIONS_1M = ("other", "academic", "artist", "clerical", "college student", "customer service", "doctor")
OCCUPATIONS_1M += ("executive", "farmer", "homemaker", "K-12 student", "lawyer", "programmer", "retired", "sales")
OCCUPATIONS_1M += ("scientist", "self-employed", "technician", "tradesman", "unemployed", "writer")  # in code order
AGE_CODES_1M = (1, 18, 25, 35, 45, 50, 56)  # the youngest of each group; 1: under 18
FIRST_YEAR = 1880  # of a film
LATEST = 1 << 40  # timestamps are seconds: some 35,000 years
NAMES = ("movielens_100k", "movielens_1m")


@dataclass(frozen=True)
class Ratings:
    """Ratings and both sides' features; U users, I items (films), N ratings, in the order of the file.

    user, item: int64 [N], rows of ``user_ids`` and ``item_ids``. rating: float32 [N], 1 to 5 stars. timestamp: int64
    [N], seconds since 1970. user_ids [U], item_ids [I]: int64, the data set's own numbers, rising; a film without a
    rating is among them. user_features: float32 [U, F_u]: age / 100, gender=F, one column per occupation.
    item_features: float32 [I, F_i]: (year - 1900) / 100 (the mean where unknown), one column per genre.
    """

    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray
    timestamp: np.ndarray
    user_ids: np.ndarray
    item_ids: np.ndarray
    user_features: np.ndarray
    item_features: np.ndarray
    user_feature_names: tuple[str, ...]
    item_feature_names: tuple[str, ...]


@dataclass(frozen=True)
class _Table:
    """One file's rows, each a list of cells with its line number for the error that names it."""

    path: Path
    rows: list[tuple[int, list[str]]]

    def error(self, line: int, what: str) -> ValueError:
        return ValueError(f"{self.path}, line {line}: {what}")

    def number(self, line: int, cell: str, what: str, least: float, most: float = float("inf")) -> int:
        """The whole number in ``cell``, or the error that names it."""
        if re.fullmatch(r"-?\d{1,18}(\.0*)?", cell) and least <= (number := int(cell.partition(".")[0])) <= most:
            return number
        upto = f" to {most:g}" if most < float("inf") else " or more"
        raise self.error(line, f"{what} is {cell!r}; want a whole number, {least:g}{upto}")


def load(name: str, data_dir: str | Path = "") -> Ratings:
    """The data set ``name``: the files below ``data_dir``, or without one those of the card (only 100K has a source).

    100K: u.data, u.user, u.item, u.genre as published, or RecBole's ml-100k.inter, .user, .item (what is fetched). 1M:
    ratings.dat, users.dat, movies.dat as published. Raises ValueError on an unknown name, and naming file and line of a
    damaged row; DataNotFound where the files are not there.
    """
    if name not in NAMES:
        raise ValueError(f"{name!r} is not a data set of ratings: there are {', '.join(NAMES)}")
    found = fetch.obtain(name, data_dir)
    readers: dict[str, Callable[[Location], Ratings]] = {"official": _official_100k, "dat": _official_1m}
    return readers.get(found.layout, _recbole)(found)


def _official_100k(found: Location) -> Ratings:
    data, users, items, genres = found.files
    names = _genre_names(genres)
    user_rows = {}
    table = _read(users, "|", ("user", "age", "gender", "occupation", "zip code"))
    for line, (identifier, age, gender, occupation, _) in table.rows:
        key = table.number(line, identifier, "user", 1)
        user_rows[key] = _user(table, line, user_rows, key, age, gender, occupation, OCCUPATIONS_100K)
    flags = [f"genre {name}" for name in names]
    table = _read(items, "|", ("film", "title", "release date", "video release date", "address", *flags))
    item_rows = {}
    for line, cells in table.rows:
        key = table.number(line, cells[0], "film", 1)
        for name, flag in zip(names, cells[5:], strict=True):
            table.number(line, flag, f"genre {name}", 0, 1)
        year = _year_of_title(cells[1]) or _year_of_date(table, line, cells[2])
        item_rows[key] = _item(table, line, item_rows, key, year, [int(flag) for flag in cells[5:]])
    return _joined(
        _read(data, "\t", ("user", "film", "rating", "timestamp")), user_rows, item_rows, OCCUPATIONS_100K, names
    )


def _official_1m(found: Location) -> Ratings:
    data, users, items = found.files
    table = _read(users, "::", ("user", "gender", "age", "occupation", "zip code"))
    user_rows = {}
    for line, (identifier, gender, age, code, _) in table.rows:
        key = table.number(line, identifier, "user", 1)
        if table.number(line, age, "age", 1, 56) not in AGE_CODES_1M:
            raise table.error(line, f"age is {age!r}; want one of the codes {', '.join(map(str, AGE_CODES_1M))}")
        occupation = OCCUPATIONS_1M[table.number(line, code, "occupation", 0, len(OCCUPATIONS_1M) - 1)]
        user_rows[key] = _user(table, line, user_rows, key, age, gender, occupation, OCCUPATIONS_1M)
    table = _read(items, "::", ("film", "title (year)", "genres"))
    item_rows = {}
    for line, (identifier, title, genres) in table.rows:
        key = table.number(line, identifier, "film", 1)
        year = _year_of_title(title)
        if year is None:
            raise table.error(line, f"title is {title!r}; want one that ends in its year, as in 'Toy Story (1995)'")
        marks = _marks(table, line, genres.split("|"), GENRES_1M)
        item_rows[key] = _item(table, line, item_rows, key, year, marks)
    return _joined(
        _read(data, "::", ("user", "film", "rating", "timestamp")), user_rows, item_rows, OCCUPATIONS_1M, GENRES_1M
    )


def _recbole(found: Location) -> Ratings:
    data, items, users = (_one(found, ending) for ending in (".inter", ".item", ".user"))
    table = _read(users, "\t", ("user_id", "age", "gender", "occupation", "zip_code"), header=True)
    user_rows = {}
    for line, (identifier, age, gender, occupation, _) in table.rows:
        key = table.number(line, identifier, "user_id", 1)
        user_rows[key] = _user(table, line, user_rows, key, age, gender, occupation, OCCUPATIONS_100K)
    table = _read(items, "\t", ("item_id", "movie_title", "release_year", "class"), header=True)
    item_rows = {}
    for line, (identifier, title, cell, genres) in table.rows:
        key = table.number(line, identifier, "item_id", 1)
        year = None
        if cell not in ("", "unkonwn"):  # spelled so there, for the one film without title and year
            year = _year_of_title(title) or _year(table, line, cell)  # "V" where a title ends in (1995) (V)
        item_rows[key] = _item(table, line, item_rows, key, year, _marks(table, line, genres.split(), GENRES_100K))
    table = _read(data, "\t", ("user_id", "item_id", "rating", "timestamp"), header=True)
    return _joined(table, user_rows, item_rows, OCCUPATIONS_100K, GENRES_100K)


def _read(path: Path, between: str, columns: Sequence[str], header: bool = False) -> _Table:
    """The lines of ``path`` as cells, one per column; an empty line at the end is passed over."""
    encoding = "utf-8" if header else "latin-1"
    try:
        lines = path.read_bytes().decode(encoding).replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: {error}") from error
    while lines and not lines[-1].strip():
        lines.pop()
    if header:
        have = tuple(cell.partition(":")[0] for cell in (lines or [""])[0].split(between))
        if have != tuple(columns):
            raise ValueError(f"{path}, line 1: columns {', '.join(have)}; want {', '.join(columns)}")
    table = _Table(path, [(number, line.split(between)) for number, line in enumerate(lines, 1)][header:])
    if not table.rows:
        raise ValueError(f"{path}: empty; want lines of {', '.join(columns[:5])}")
    for number, cells in table.rows:
        if len(cells) != len(columns):
            want = f"{len(columns)} between {between!r}: {', '.join(columns[:5])}{', ...' * (len(columns) > 5)}"
            raise table.error(number, f"{len(cells)} fields ({lines[number - 1][:60]!r}); want {want}")
    return table


def _genre_names(path: Path) -> tuple[str, ...]:
    """u.genre: lines name|place, 0 upwards."""
    table = _read(path, "|", ("genre", "place"))
    for place, (line, (_, cell)) in enumerate(table.rows):
        if table.number(line, cell, "place", 0) != place:
            raise table.error(line, f"place is {cell}; want {place}, one line per genre in order")
    return tuple(name for _, (name, _) in table.rows)


def _user(
    table: _Table, line: int, rows: dict, key: int, age: str, gender: str, occupation: str, occupations: Sequence[str]
) -> list[float]:
    if key in rows:
        raise table.error(line, f"user {key} is listed twice")
    if gender not in ("F", "M"):
        raise table.error(line, f"gender is {gender!r}; want F or M")
    if occupation not in occupations:
        raise table.error(line, f"occupation is {occupation!r}; want one of {', '.join(occupations)}")
    years = table.number(line, age, "age", 1, 120)
    return [years / 100, float(gender == "F"), *(float(occupation == name) for name in occupations)]


def _item(table: _Table, line: int, rows: dict, key: int, year: int | None, marks: Sequence[int]) -> list[float]:
    if key in rows:
        raise table.error(line, f"film {key} is listed twice")
    return [np.nan if year is None else (year - 1900) / 100, *map(float, marks)]


def _marks(table: _Table, line: int, genres: Sequence[str], known: Sequence[str]) -> list[int]:
    if not genres or any(genre not in known for genre in genres):
        raise table.error(line, f"genres are {' '.join(genres)!r}; want at least one of {', '.join(known)}")
    return [int(genre in genres) for genre in known]


def _year(table: _Table, line: int, cell: str) -> int:
    return table.number(line, cell, "year", FIRST_YEAR, 2100)


def _year_of_title(title: str) -> int | None:
    """The year that ends a title: Toy Story (1995), or of a video, (1995) (V)."""
    year = re.search(r"\(((?:18|19|20)\d\d)\)(?: \(V\))?\s*$", title)
    return int(year[1]) if year else None


def _year_of_date(table: _Table, line: int, cell: str) -> int | None:
    """The year of 01-Jan-1995; None where the date is empty."""
    if not cell:
        return None
    day = re.fullmatch(r"\d{1,2}-[A-Z][a-z]{2}-(\d{4})", cell)
    if not day:
        raise table.error(line, f"release date is {cell!r}; want one as 01-Jan-1995, or nothing")
    return _year(table, line, day[1])


def _joined(
    table: _Table,
    user_rows: dict[int, list[float]],
    item_rows: dict[int, list[float]],
    occupations: Sequence[str],
    genres: Sequence[str],
) -> Ratings:
    """The ratings of ``table``, with places instead of numbers; each must name a user and a film that are listed."""
    user_ids, item_ids = (np.array(sorted(rows), np.int64) for rows in (user_rows, item_rows))
    user_place, item_place = ({int(key): place for place, key in enumerate(ids)} for ids in (user_ids, item_ids))
    values = np.empty((4, len(table.rows)), np.int64)
    for row, (line, cells) in enumerate(table.rows):
        try:  # the plain case first: a million rows
            user, item, rating, timestamp = map(int, cells)
        except ValueError:
            user, item, rating, timestamp = _careful(table, line, cells)
        if user not in user_place or item not in item_place or not 1 <= rating <= 5 or not 0 <= timestamp < LATEST:
            raise _why(table, line, cells, user, item, user_place, item_place)
        values[:, row] = user_place[user], item_place[item], rating, timestamp
    pairs = values[0] * len(item_ids) + values[1]
    order = np.argsort(pairs, kind="stable")
    again = order[1:][pairs[order][1:] == pairs[order][:-1]]
    if len(again):
        line, cells = table.rows[again.min()]
        raise table.error(line, f"user {cells[0]} rated film {cells[1]} in an earlier line already")
    user_features, item_features = (
        np.array([rows[int(key)] for key in ids], np.float32)
        for rows, ids in ((user_rows, user_ids), (item_rows, item_ids))
    )
    unknown = np.isnan(item_features[:, 0])
    item_features[unknown, 0] = item_features[~unknown, 0].mean() if not unknown.all() else 0
    return Ratings(
        user=values[0],
        item=values[1],
        rating=values[2].astype(np.float32),
        timestamp=values[3],
        user_ids=user_ids,
        item_ids=item_ids,
        user_features=user_features,
        item_features=item_features,
        user_feature_names=("age", "gender=F", *(f"occupation={name}" for name in occupations)),
        item_feature_names=("year", *(f"genre={name}" for name in genres)),
    )


def _careful(table: _Table, line: int, cells: Sequence[str]) -> Iterator[int]:
    for cell, what in zip(cells, ("user", "film", "rating", "timestamp"), strict=True):
        yield table.number(line, cell, what, *((1, 5) if what == "rating" else (0,)))


def _why(table: _Table, line: int, cells: Sequence[str], user: int, item: int, users: dict, items: dict) -> ValueError:
    if user not in users:
        return table.error(line, f"user {user} is not among the {len(users)} users listed")
    if item not in items:
        return table.error(line, f"film {item} is not among the {len(items)} films listed")
    return table.error(line, f"rating is {cells[2]!r}, timestamp {cells[3]!r}; want 1 to 5, and seconds from 0 up")


def _one(found: Location, ending: str) -> Path:
    return next(path for path in found.files if path.name.endswith(ending))
