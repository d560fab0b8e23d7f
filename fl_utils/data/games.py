"""Games in two catalogues: VGChartz's sales (vgsales.csv) and IGN's reviews (ign.csv), as published on Kaggle.

They share titles and, under other names, platforms: :data:`PLATFORMS` says which name of the one is which of the other.
Only what is known before the release is a feature, unless ``after_release`` asks for the sales as well; IGN's phrase
and its editors' choice say the score again and are never features.
"""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np

from fl_utils.data import fetch
from fl_utils.data.films import Catalogue, cell_number, earlier, one_hot, read_csv, stack

# IGN's name of a platform -> VGChartz's, for every platform that both have.
PLATFORMS = {
    "PC": "PC",
    "PlayStation": "PS",
    "PlayStation 2": "PS2",
    "PlayStation 3": "PS3",
    "PlayStation 4": "PS4",
    "PlayStation Portable": "PSP",
    "PlayStation Vita": "PSV",
    "Xbox": "XB",
    "Xbox 360": "X360",
    "Xbox One": "XOne",
    "NES": "NES",
    "Super NES": "SNES",
    "Nintendo 64": "N64",
    "GameCube": "GC",
    "Wii": "Wii",
    "Wii U": "WiiU",
    "Game Boy": "GB",
    "Game Boy Color": "GB",  # VGChartz counts both as GB
    "Game Boy Advance": "GBA",
    "Nintendo DS": "DS",
    "Nintendo DSi": "DS",
    "Nintendo 3DS": "3DS",
    "New Nintendo 3DS": "3DS",
    "Genesis": "GEN",
    "Saturn": "SAT",
    "Dreamcast": "DC",
    "Sega CD": "SCD",
    "Game Gear": "GG",
    "Atari 2600": "2600",
    "NeoGeo": "NG",
    "WonderSwan": "WS",
    "WonderSwan Color": "WS",
    "TurboGrafx-16": "TG16",
    "3DO": "3DO",
}
PLATFORMS_OF_SALES = (
    "DS",
    "PS2",
    "PS3",
    "Wii",
    "X360",
    "PSP",
    "PS",
    "PC",
    "XB",
    "GBA",
    "GC",
    "3DS",
    "PSV",
    "PS4",
    "N64",
)
PLATFORMS_OF_SALES += ("XOne", "WiiU", "GB", "DC")
GENRES_OF_SALES = ("Action", "Adventure", "Fighting", "Misc", "Platform", "Puzzle", "Racing", "Role-Playing", "Shooter")
GENRES_OF_SALES += ("Simulation", "Sports", "Strategy")
GENRES_OF_IGN = (
    "Action",
    "Adventure",
    "Board",
    "Card",
    "Compilation",
    "Fighting",
    "Flight",
    "Hunting",
    "Music",
    "Party",
)
GENRES_OF_IGN += ("Platformer", "Puzzle", "RPG", "Racing", "Shooter", "Simulation", "Sports", "Strategy", "Trivia")
GENRES_OF_IGN += ("Virtual Pet", "Wrestling")
PUBLISHERS = ("Electronic Arts", "Activision", "Namco Bandai Games", "Ubisoft", "Konami Digital Entertainment", "THQ")
PUBLISHERS += (
    "Nintendo",
    "Sony Computer Entertainment",
    "Sega",
    "Take-Two Interactive",
    "Capcom",
    "Atari",
    "Tecmo Koei",
)
PUBLISHERS += ("Square Enix", "Warner Bros. Interactive Entertainment", "Disney Interactive Studios", "Midway Games")
PUBLISHERS += ("Eidos Interactive", "505 Games", "Microsoft Game Studios", "Acclaim Entertainment", "Vivendi Games")
PUBLISHERS += ("Codemasters", "D3Publisher", "Majesco Entertainment", "Bethesda Softworks")
REGIONS = ("NA_Sales", "EU_Sales", "JP_Sales", "Other_Sales")
SALES = ("Rank", "Name", "Platform", "Year", "Genre", "Publisher", *REGIONS, "Global_Sales")
REVIEWS = ("title", "platform", "score", "genre", "release_year", "release_month", "release_day")


def load(data_dir: str | Path, after_release: bool = False) -> dict[str, Catalogue]:
    """The parties "vgsales" and "ign": vgsales.csv and ign.csv below ``data_dir``.

    vgsales: publisher, how many games in this table it published in earlier years, genre; ``after_release``: copies
    sold in four regions. ign: platform, genres, month of release; score: 0 to 10. Editions are VGChartz's names of
    platforms; IGN's games for platforms that VGChartz does not count are left out. Raises ValueError naming file and
    line of a damaged value, DataNotFound where the files are not there.
    """
    sales, reviews = fetch.obtain("games", data_dir).files
    return {"vgsales": _sales(sales, after_release), "ign": _reviews(reviews)}


def _sales(path: Path, after_release: bool) -> Catalogue:
    rows = read_csv(path, SALES)
    years = np.array([cell_number(path, line, "Year", row["Year"]) for line, row in rows])
    unnamed = ("", "N/A", "Unknown")
    publishers = ["" if row["Publisher"] in unnamed else row["Publisher"] for _, row in rows]
    columns = [
        earlier(publishers, years),
        one_hot([[publisher] for publisher in publishers], PUBLISHERS),
        one_hot([[row["Genre"]] for _, row in rows], GENRES_OF_SALES),
    ]
    names = ["publisher's earlier games", *(f"publisher={name}" for name in PUBLISHERS)]
    names += [f"genre={name}" for name in GENRES_OF_SALES]
    if after_release:
        sold = [[cell_number(path, line, region, row[region]) for region in REGIONS] for line, row in rows]
        columns.append(np.log1p(sold))
        names += [f"log {region}" for region in REGIONS]
    _want_titles(path, rows, "Name", "Platform")
    return Catalogue(
        name="vgsales",
        ids=tuple(row["Rank"] for _, row in rows),
        titles=tuple(row["Name"] for _, row in rows),
        editions=tuple(row["Platform"] for _, row in rows),
        released=years,
        features=stack(columns),
        feature_names=tuple(names),
        score=None,
    )


def _reviews(path: Path) -> Catalogue:
    everything = read_csv(path, REVIEWS)
    _want_titles(path, everything, "title", "platform")
    rows = [(line, row) for line, row in everything if row["platform"] in PLATFORMS]
    if not rows:
        raise ValueError(
            f"{path}: no game for a platform that VGChartz counts, such as {', '.join(list(PLATFORMS)[:4])}"
        )
    days = [_day(path, line, row) for line, row in rows]
    score = np.array([cell_number(path, line, "score", row["score"]) for line, row in rows], np.float32)
    if (bad := np.flatnonzero((score < 0) | (score > 10))).size:
        raise ValueError(f"{path}, line {rows[bad[0]][0]}: score is {score[bad[0]]:g}; want 0 to 10")
    platforms = [PLATFORMS[row["platform"]] for _, row in rows]
    columns = [
        [day.month for day in days],
        one_hot([[platform] for platform in platforms], PLATFORMS_OF_SALES),
        one_hot([[part.strip() for part in row["genre"].split(",")] for _, row in rows], GENRES_OF_IGN),
    ]
    names = [
        "month",
        *(f"platform={name}" for name in PLATFORMS_OF_SALES),
        *(f"genre={name}" for name in GENRES_OF_IGN),
    ]
    return Catalogue(
        name="ign",
        ids=tuple(str(line - 1) for line, _ in rows),
        titles=tuple(row["title"] for _, row in rows),
        editions=tuple(platforms),
        released=np.array([day.year + (day.timetuple().tm_yday - 1) / 366 for day in days]),
        features=stack(columns),
        feature_names=tuple(names),
        score=score,
    )


def _day(path: Path, line: int, row: dict[str, str]) -> datetime.date:
    parts = [row[f"release_{part}"] for part in ("year", "month", "day")]
    try:
        return datetime.date(*map(int, parts))
    except ValueError:
        raise ValueError(f"{path}, line {line}: released {'-'.join(parts)!r}; want year, month and day") from None


def _want_titles(path: Path, rows: list[tuple[int, dict[str, str]]], *columns: str) -> None:
    for line, row in rows:
        for column in columns:
            if not row[column].strip():
                raise ValueError(f"{path}, line {line}: {column} is empty; want text")
