"""Films in three catalogues: what each party of the trend prediction knows of a film before it is released.

"omdb" and "tomatoes" are the two tables of Bokeh's movie data, with one ID; "imdb" is R's ggplot2movies, which shares
titles and years with them and no ID. Only what is known before the release is a feature, unless ``after_release`` asks
for the rest: audiences' votes, receipts and review counts. A party's own score is never a feature of it.
"""

from __future__ import annotations

import csv
import datetime
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fl_utils.data import fetch

GENRES = ("Action", "Adventure", "Animation", "Biography", "Comedy", "Crime", "Documentary", "Drama", "Family")
GENRES += ("Fantasy", "History", "Horror", "Music", "Musical", "Mystery", "Romance", "Sci-Fi", "Short", "Sport")
GENRES += ("Thriller", "War", "Western")
IMDB_GENRES = ("Action", "Animation", "Comedy", "Drama", "Documentary", "Romance", "Short")
CERTIFICATES = ("G", "PG", "PG-13", "R", "NC-17")
COUNTRIES = ("United States", "United Kingdom", "France", "Germany", "Canada", "Italy", "Australia", "Japan", "Spain")
COUNTRIES += ("India", "Hong Kong", "Sweden")
LANGUAGES = ("English", "French", "German", "Italian", "Japanese", "Spanish")
STUDIOS = ("20th Century Studios", "Paramount Pictures", "Metro-Goldwyn-Mayer", "Universal Pictures", "Toho")
STUDIOS += ("Columbia Pictures", "Warner Bros. Entertainment", "Warner Bros. Pictures", "New Line Cinema", "Miramax")
STUDIOS += ("Touchstone Pictures", "United Artists", "RKO Pictures", "Orion Pictures", "TriStar Pictures")
STUDIOS += ("The Walt Disney Company", "Walt Disney Pictures", "Hollywood Pictures", "Castle Rock Entertainment")
STUDIOS += ("Dimension Films", "Canal+", "Gaumont", "Film4 Productions", "BBC Film", "Working Title Films", "A24")
OMDB = ("ID", "Title", "Year", "Rating", "Runtime", "Genre", "Released", "Director", "Writer", "Cast", "Language")
OMDB += ("Country", "Oscars")
TOMATOES = ("ID", "Meter", "Reviews", "BoxOffice", "Production")
IMDB = ("title", "year", "length", "budget", "rating", "votes", "mpaa", *IMDB_GENRES)
LONGEST = 2000.0  # minutes


@dataclass(frozen=True)
class Catalogue:
    """One party's table of N works with F features, in the order of its file.

    ids: its own number of each work. titles: of each work; editions: what tells works of one title apart, the year of a
    film (int) or the platform of a game (str); released: float64 [N], the day as a year with a fraction, NaN where
    unknown; each of them None where the party does not hold it. features: float32 [N, F], NaN where unknown. score:
    float32 [N], the party's own, NaN where it gave none, None where it gives no scores.
    """

    name: str
    ids: tuple[str, ...]
    titles: tuple[str, ...] | None
    editions: tuple[int, ...] | tuple[str, ...] | None
    released: np.ndarray | None
    features: np.ndarray
    feature_names: tuple[str, ...]
    score: np.ndarray | None

    def __len__(self) -> int:
        return len(self.ids)


def load(data_dir: str | Path = "", after_release: bool = False) -> dict[str, Catalogue]:
    """The parties "omdb" and "tomatoes": movies.db below ``data_dir``, else fetched.

    omdb: title, year, day of release; length, certificate, genres, countries, languages, size of the cast, whether a
    director writes too, how many films in this table its first director made before; ``after_release``: Oscars.
    tomatoes: studios; ``after_release``: reviews and receipts; score: Meter, the share of favourable reviews in percent
    (NaN where there is none: Meter is empty, or 0 with no review counted). Raises ValueError naming the table and row
    of a damaged value, DataNotFound where the file is not there.
    """
    (path,) = fetch.obtain("films", data_dir).files
    return {"omdb": _omdb(path, after_release), "tomatoes": _tomatoes(path, after_release)}


def load_imdb(data_dir: str | Path = "", after_release: bool = False) -> Catalogue:
    """The party "imdb": movies.csv below ``data_dir``, else fetched; 58,788 films up to 2005.

    Title and year; length, budget, seven genres, certificate; ``after_release``: the number of votes. score: the mean
    vote, 1 to 10. Raises ValueError naming file and line of a damaged value, DataNotFound where the file is not there.
    """
    (path,) = fetch.obtain("imdb_films", data_dir).files
    rows = read_csv(path, IMDB)
    number = [[cell_number(path, line, what, row[what]) for what in ("year", "length")] for line, row in rows]
    names = ["length", "log budget", *(f"certificate={c}" for c in CERTIFICATES), *(f"genre={g}" for g in IMDB_GENRES)]
    budget = [cell_number(path, line, "budget", row["budget"]) for line, row in rows]
    certificate = one_hot(([row["mpaa"]] for _, row in rows), CERTIFICATES)
    genres = np.array([[cell_number(path, line, g, row[g]) for g in IMDB_GENRES] for line, row in rows])
    years, length = np.array(number).T
    if (bad := np.flatnonzero(~np.isfinite(years) | (years != years.round()))).size:
        raise ValueError(f"{path}, line {rows[bad[0]][0]}: year is {rows[bad[0]][1]['year']!r}; want a whole number")
    columns = [_minutes(length), np.log1p(np.clip(budget, 0, None)), certificate, genres]
    if after_release:
        votes = [cell_number(path, line, "votes", row["votes"]) for line, row in rows]
        columns.append(np.log1p(votes))
        names.append("log votes")
    score = np.array([cell_number(path, line, "rating", row["rating"]) for line, row in rows], np.float32)
    ids = tuple(str(line - 1) for line, _ in rows)
    titles = tuple(row["title"] for _, row in rows)
    editions = tuple(map(int, years))
    return Catalogue("imdb", ids, titles, editions, years, stack(columns), tuple(names), score)


def _omdb(path: Path, after_release: bool) -> Catalogue:
    rows = _table(path, "omdb", OMDB)
    get = dict(zip(OMDB, zip(*rows, strict=True), strict=True))
    years = np.array(
        [_number(path, "omdb", id, "Year", value) for id, value in zip(get["ID"], get["Year"], strict=True)]
    )
    if not np.isfinite(years).all():
        bad = get["ID"][int(np.flatnonzero(~np.isfinite(years))[0])]
        raise ValueError(f"{path}: table omdb, ID {bad}: no Year; want one in every row")
    days = [_day(path, id, text, year) for id, text, year in zip(get["ID"], get["Released"], years, strict=True)]
    runtime = [_number(path, "omdb", *pair, value) for *pair, value in _named(get, "Runtime")]
    names = ["runtime", "cast", "directors", "director writes", "director's earlier films"]
    directors, writers = _lists(get["Director"]), _lists(get["Writer"])
    columns = [
        _minutes(np.array(runtime)),
        [len(cast) or np.nan for cast in _lists(get["Cast"])],
        [len(people) or np.nan for people in directors],
        [bool(set(a) & set(b)) if a and b else np.nan for a, b in zip(directors, writers, strict=True)],
        earlier([people[0] if people else "" for people in directors], days),
    ]
    for what, values, known in (
        ("certificate", [[value] for value in get["Rating"]], CERTIFICATES),
        ("genre", _lists(get["Genre"]), GENRES),
        ("country", _lists(get["Country"]), COUNTRIES),
        ("language", _lists(get["Language"]), LANGUAGES),
    ):
        columns.append(one_hot(values, known))
        names += [f"{what}={value}" for value in known]
    if after_release:
        columns.append([_number(path, "omdb", *pair, value) for *pair, value in _named(get, "Oscars")])
        names.append("Oscars")
    ids, titles = tuple(map(str, get["ID"])), tuple(map(str, get["Title"]))
    editions = tuple(map(int, years))
    return Catalogue("omdb", ids, titles, editions, np.array(days), stack(columns), tuple(names), None)


def _tomatoes(path: Path, after_release: bool) -> Catalogue:
    rows = _table(path, "tomatoes", TOMATOES)
    get = dict(zip(TOMATOES, zip(*rows, strict=True), strict=True))
    meter, reviews, receipts = (
        np.array([_number(path, "tomatoes", *pair, value) for *pair, value in _named(get, what)])
        for what in ("Meter", "Reviews", "BoxOffice")
    )
    if (bad := np.flatnonzero((meter < 0) | (meter > 100))).size:
        raise ValueError(f"{path}: table tomatoes, ID {get['ID'][bad[0]]}: Meter is {meter[bad[0]]:g}; want 0 to 100")
    score = np.where((meter > 0) | (reviews > 0), meter, np.nan).astype(np.float32)
    studios = _lists(get["Production"])
    columns = [[len(names) or np.nan for names in studios], one_hot(studios, STUDIOS)]
    names = ["companies", *(f"studio={name}" for name in STUDIOS)]
    if after_release:
        columns += [np.log1p(reviews), np.log1p(np.clip(receipts, 0, None))]
        names += ["log reviews", "log receipts"]
    return Catalogue("tomatoes", tuple(map(str, get["ID"])), None, None, None, stack(columns), tuple(names), score)


def read_csv(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV in UTF-8 with their line numbers; ``columns`` must be among its own. Raises ValueError naming
    file and line of a row with more or fewer cells."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            rows = csv.DictReader(handle, strict=True)
            have = rows.fieldnames or []
            if missing := [column for column in columns if column not in have]:
                raise ValueError(f"{path}, line 1: no column {', '.join(missing)}; want {', '.join(columns)}")
            table = []
            for row in rows:
                if None in row or None in row.values():
                    raise ValueError(f"{path}, line {rows.line_num}: not {len(have)} cells as in line 1")
                table.append((rows.line_num, row))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV in UTF-8, or a damaged one: {error}") from error
    if not table:
        raise ValueError(f"{path}: no rows below its first line")
    return table


def cell_number(path: Path, line: int, what: str, cell: str) -> float:
    """The number in a cell of a CSV, NaN where it is empty, NA or N/A. Raises ValueError naming file and line."""
    if cell in ("", "NA", "N/A"):
        return float("nan")
    try:
        number = float(cell)
    except ValueError:
        number = float("inf")
    if not np.isfinite(number):
        raise ValueError(f"{path}, line {line}: {what} is {cell!r}; want a number, or nothing")
    return number


def one_hot(values: Iterable[Sequence[str]], known: Sequence[str]) -> np.ndarray:
    """float32 [N, len(known)]: 1 where a work's values hold the known one. All NaN where a work has no value at all."""
    place = {name: index for index, name in enumerate(known)}
    values = list(values)
    marks = np.zeros((len(values), len(known)), np.float32)
    for row, names in enumerate(values):
        if not any(names):
            marks[row] = np.nan
        for name in names:
            if name in place:
                marks[row, place[name]] = 1
    return marks


def stack(columns: Sequence[Sequence[float] | np.ndarray]) -> np.ndarray:
    """Columns [N] and blocks [N, k] as one float32 table."""
    return np.column_stack([np.asarray(column, np.float32) for column in columns])


def earlier(makers: Sequence[str], days: Sequence[float]) -> np.ndarray:
    """How many works each work's maker made on an earlier day, float64 [N]; NaN where maker ("") or day is unknown."""
    by_maker: dict[str, list[float]] = {}
    for maker, day in zip(makers, days, strict=True):
        if maker and np.isfinite(day):
            by_maker.setdefault(maker, []).append(day)
    ordered = {maker: np.sort(found) for maker, found in by_maker.items()}
    return np.array(
        [
            np.searchsorted(ordered[maker], day) if maker and np.isfinite(day) else np.nan
            for maker, day in zip(makers, days, strict=True)
        ]
    )


def _table(path: Path, table: str, columns: Sequence[str]) -> list[tuple]:
    """The wanted columns of a table, in the order of ID. The file is opened for reading only."""
    names = ", ".join(f'"{column}"' for column in columns)
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            have = [row[1] for row in database.execute(f'PRAGMA table_info("{table}")')]
            if missing := [column for column in columns if column not in have]:
                raise ValueError(f"{path}: table {table} has no {', '.join(missing)}; want {', '.join(columns)}")
            rows = database.execute(f'SELECT {names} FROM "{table}" ORDER BY ID').fetchall()
    except sqlite3.Error as error:
        raise ValueError(f"{path}: not an SQLite database, or a damaged one: {error}") from error
    if not rows:
        raise ValueError(f"{path}: table {table} has no rows")
    return rows


def _named(get: dict[str, tuple], what: str) -> Iterable[tuple]:
    return ((id, what, value) for id, value in zip(get["ID"], get[what], strict=True))


def _number(path: Path, table: str, id: int, what: str, value: object) -> float:
    """A value as a number, NaN where there is none; older versions of the tables have "N/A" and "$1,000,000"."""
    if value is None or value in ("", "N/A"):
        return float("nan")
    try:
        number = float(str(value).replace("$", "").replace(",", ""))
    except ValueError:
        number = float("inf")
    if not np.isfinite(number):
        raise ValueError(f"{path}: table {table}, ID {id}: {what} is {value!r}; want a number")
    return number


def _day(path: Path, id: int, text: str | None, year: float) -> float:
    """2009-07-02 as 2009.5; where the day is not known, the year's first."""
    if not text or text == "N/A":
        return float(year)
    try:
        day = datetime.date.fromisoformat(text[:10])
    except ValueError:
        raise ValueError(f"{path}: table omdb, ID {id}: Released is {text!r}; want a day as 2009-07-02") from None
    return day.year + (day.timetuple().tm_yday - 1) / 366


def _lists(values: Iterable[str | None]) -> list[list[str]]:
    return [[part.strip() for part in value.split(",") if part.strip()] if value else [] for value in values]


def _minutes(length: np.ndarray) -> np.ndarray:
    return np.where((length > 0) & (length < LONGEST), length, np.nan)
