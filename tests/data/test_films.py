"""Films out of an SQLite database and a CSV: features known before release, damaged values named."""

import csv
import sqlite3

import numpy as np
import pytest

from fl_utils.data import cards, fetch, films

OMDB = (
    "ID imdbID Title Year Rating Runtime Genre Released Director Writer Cast Metacritic imdbRating imdbVotes Language"
)
OMDB = [*OMDB.split(), "Country", "Awards", "lastUpdated", "Oscars"]
TOMATOES = "ID Image Rating Meter Reviews Fresh Rotten Consensus userMeter userRating userReviews DVD BoxOffice"
TOMATOES = [*TOMATOES.split(), "Production", "Website", "lastUpdated"]
IMDB = ["", "title", "year", "length", "budget", "rating", "votes", *(f"r{n}" for n in range(1, 11)), "mpaa"]
IMDB += ["Action", "Animation", "Comedy", "Drama", "Documentary", "Romance", "Short"]


def omdb(id, title, year, **others):
    return {"ID": id, "Title": title, "Year": year, "Genre": "", "Released": f"{year}-01-01", "Cast": "", **others}


FILMS = [
    omdb(7, "Alpha", 1990, Runtime=90.0, Genre="Drama, Crime", Director="Ann, Bo", Writer="Bo", Cast="X, Y, Z"),
    omdb(3, "Beta", 1995, Rating="R", Director="Ann", Writer="Cy", Country="France, Italy", Language="French"),
    omdb(
        5, "Gamma", 1995, Released="1995-07-02", Director="Ann", Metacritic=88, imdbRating=9.9, imdbVotes=10, Oscars=2
    ),
    omdb(9, "Delta", 1995, Runtime=0.0, Released=None),
]
SCORES = [
    {"ID": 3, "Meter": 80, "Reviews": 10, "Fresh": 8, "Rotten": 2, "Rating": 7.7, "Production": "Toho, Miramax"},
    {"ID": 5, "Meter": 0, "Reviews": 12, "Fresh": 0, "Rotten": 12, "BoxOffice": 1e6},
    {"ID": 7, "Meter": 0, "Reviews": 0},
    {"ID": 9},
]


def write_database(folder, rows=FILMS, scores=SCORES, drop=""):
    with sqlite3.connect(folder / "movies.db") as database:
        for table, names, content in (("omdb", OMDB, rows), ("tomatoes", TOMATOES, scores)):
            names = [name for name in names if name != drop]
            database.execute(f"CREATE TABLE {table} ({', '.join(f'{chr(34)}{name}{chr(34)}' for name in names)})")
            for row in content:
                values = [row.get(name) for name in names]
                database.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(names))})", values)
    database.close()
    return folder


def imdb(title, year, **others):
    row = {**dict.fromkeys(IMDB, "0"), "budget": "NA", "mpaa": "", "length": "90", "rating": "6.4", "votes": "20"}
    return {**row, "title": title, "year": str(year), **others}


def write_csv(folder, rows, columns=IMDB):
    with (folder / "movies.csv").open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, columns, extrasaction="ignore", quoting=csv.QUOTE_NONNUMERIC)
        writer.writeheader()
        writer.writerows(rows)
    return folder


def column(party, name):
    return party.features[:, party.feature_names.index(name)]


def test_the_two_tables_in_the_order_of_their_id(tmp_path):
    found = films.load(write_database(tmp_path))
    omdb, tomatoes = found["omdb"], found["tomatoes"]
    assert omdb.ids == tomatoes.ids == ("3", "5", "7", "9")
    assert omdb.titles == ("Beta", "Gamma", "Alpha", "Delta") and omdb.editions == (1995, 1995, 1990, 1995)
    assert tomatoes.titles is None and tomatoes.released is None and omdb.score is None
    np.testing.assert_allclose(omdb.released, [1995, 1995 + 182 / 366, 1990, 1995], atol=0.01)
    np.testing.assert_array_equal(column(omdb, "runtime"), np.float32([np.nan, np.nan, 90, np.nan]))
    np.testing.assert_array_equal(column(omdb, "genre=Crime"), np.float32([np.nan, np.nan, 1, np.nan]))
    np.testing.assert_array_equal(column(omdb, "certificate=R"), np.float32([1, np.nan, np.nan, np.nan]))
    np.testing.assert_array_equal(column(omdb, "country=Italy"), np.float32([1, np.nan, np.nan, np.nan]))
    np.testing.assert_array_equal(column(omdb, "director writes"), np.float32([0, np.nan, 1, np.nan]))
    np.testing.assert_array_equal(column(omdb, "cast"), np.float32([np.nan, np.nan, 3, np.nan]))
    np.testing.assert_array_equal(column(tomatoes, "studio=Miramax"), np.float32([1, np.nan, np.nan, np.nan]))
    for party in found.values():
        assert party.features.shape == (4, len(party.feature_names)) and party.features.dtype == np.float32
        assert len(set(party.feature_names)) == len(party.feature_names)


def test_a_directors_earlier_films_are_those_before_the_day(tmp_path):
    found = films.load(write_database(tmp_path))["omdb"]
    np.testing.assert_array_equal(column(found, "director's earlier films"), np.float32([1, 2, 0, np.nan]))


def test_a_meter_of_0_is_a_score_only_where_reviews_were_counted(tmp_path):
    score = films.load(write_database(tmp_path))["tomatoes"].score
    np.testing.assert_array_equal(score, np.float32([80, 0, np.nan, np.nan]))


def test_no_score_and_nothing_from_after_the_release_is_a_feature(tmp_path):
    before = films.load(write_database(tmp_path))
    changed = [{**row, "Metacritic": 1, "imdbRating": 1.0, "imdbVotes": 1, "Oscars": 9, "Awards": "x"} for row in FILMS]
    others = {"Meter": 1, "Rating": 1.0, "Reviews": 99, "Fresh": 1, "Rotten": 98, "BoxOffice": 5.0, "userMeter": 1}
    (tmp_path / "b").mkdir()
    again = films.load(write_database(tmp_path / "b", changed, [{**row, **others} for row in SCORES]))
    for name in before:
        np.testing.assert_array_equal(before[name].features, again[name].features)


def test_what_is_known_after_the_release_can_be_asked_for(tmp_path):
    found = films.load(write_database(tmp_path), after_release=True)
    np.testing.assert_array_equal(column(found["omdb"], "Oscars"), np.float32([np.nan, 2, np.nan, np.nan]))
    np.testing.assert_allclose(column(found["tomatoes"], "log reviews")[:3], np.log1p([10, 12, 0]), rtol=1e-6)
    assert column(found["tomatoes"], "log receipts")[1] == np.float32(np.log1p(1e6))


def test_older_tables_write_unknown_and_money_otherwise(tmp_path):
    rows = [omdb(1, "A", 2000, Runtime="N/A", Released="N/A"), omdb(2, "B", 2001, Runtime="101")]
    scores = [{"ID": 1, "BoxOffice": "$1,000,000", "Meter": 50}, {"ID": 2, "BoxOffice": "N/A", "Meter": 60}]
    found = films.load(write_database(tmp_path, rows, scores), after_release=True)
    np.testing.assert_array_equal(column(found["omdb"], "runtime"), np.float32([np.nan, 101]))
    np.testing.assert_array_equal(column(found["tomatoes"], "log receipts"), np.float32([np.log1p(1e6), np.nan]))


def test_imdb_from_its_csv(tmp_path):
    rows = [
        imdb('Say "Yes", Éva', 1950, budget="1000000", mpaa="PG-13", Drama="1", rating="7.5"),
        imdb("Endless", 2001, length="5220"),
    ]
    found = films.load_imdb(write_csv(tmp_path, rows))
    assert found.titles == ('Say "Yes", Éva', "Endless") and found.editions == (1950, 2001) and len(found) == 2
    np.testing.assert_array_equal(found.score, np.float32([7.5, 6.4]))
    np.testing.assert_array_equal(column(found, "length"), np.float32([90, np.nan]))  # more than a day: not a length
    np.testing.assert_array_equal(column(found, "log budget"), np.float32([np.log1p(1e6), np.nan]))
    np.testing.assert_array_equal(column(found, "certificate=PG-13"), np.float32([1, np.nan]))
    np.testing.assert_array_equal(column(found, "genre=Drama"), np.float32([1, 0]))
    assert "log votes" not in found.feature_names
    assert "log votes" in films.load_imdb(tmp_path, after_release=True).feature_names


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"Runtime": "long"}, "table omdb, ID 7: Runtime is 'long'; want a number"),
        ({"Released": "soon"}, "table omdb, ID 7: Released is 'soon'"),
        ({"Year": None}, "table omdb, ID 7: no Year"),
    ],
)
def test_a_damaged_value_of_the_database_is_named(tmp_path, change, says):
    with pytest.raises(ValueError, match=says) as error:
        films.load(write_database(tmp_path, [{**FILMS[0], **change}, *FILMS[1:]]))
    assert "movies.db" in str(error.value) and "\n" not in str(error.value)


def test_other_damage_of_the_database_is_named(tmp_path):
    with pytest.raises(ValueError, match="ID 3: Meter is 101; want 0 to 100"):
        films.load(write_database(tmp_path, FILMS, [{"ID": 3, "Meter": 101}]))
    for number, (arguments, says) in enumerate(
        [({"drop": "Production"}, "tomatoes has no Production"), ({"rows": []}, "table omdb has no rows")]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(ValueError, match=says):
            films.load(write_database(folder, **arguments))
    whole = (tmp_path / "movies.db").read_bytes()
    for damaged in (b"not a database at all, " * 99, whole[: len(whole) // 2], b""):
        (tmp_path / "movies.db").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"movies\.db: "):
            films.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"year": "MCM"}, "line 3: year is 'MCM'; want a number"),
        ({"year": "NA"}, "line 3: year is 'NA'; want a whole number"),
        ({"length": "inf"}, "line 3: length is 'inf'"),
        ({"Drama": "yes"}, "line 3: Drama is 'yes'"),
    ],
)
def test_a_damaged_cell_of_the_csv_is_named(tmp_path, change, says):
    write_csv(tmp_path, [imdb("A", 1950), {**imdb("B", 1951), **change}])
    with pytest.raises(ValueError, match=says) as error:
        films.load_imdb(tmp_path)
    assert "movies.csv" in str(error.value)


def test_other_damage_of_the_csv_is_named(tmp_path):
    path = write_csv(tmp_path, [imdb("A", 1950), imdb("B", 1951)]) / "movies.csv"
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b',"')])
    with pytest.raises(ValueError, match="line 3: not 25 cells"):
        films.load_imdb(tmp_path)
    path.write_bytes(whole.splitlines()[0] + b"\n")
    with pytest.raises(ValueError, match="no rows"):
        films.load_imdb(tmp_path)
    path.write_bytes(b"\xff\xfe" + whole)
    with pytest.raises(ValueError, match="not a CSV in UTF-8"):
        films.load_imdb(tmp_path)
    write_csv(tmp_path, [imdb("A", 1950)], [name for name in IMDB if name != "budget"])
    with pytest.raises(ValueError, match="line 1: no column budget"):
        films.load_imdb(tmp_path)


def test_a_folder_without_the_files_is_told_what_belongs_there(tmp_path):
    for load, name in ((films.load, r"movies\.db"), (films.load_imdb, r"movies\.csv")):
        with pytest.raises(cards.DataNotFound, match=name):
            load(tmp_path)


def test_the_fetched_tables_are_what_their_card_counts():
    if any(set(fetch.status(name)["files"].values()) != {"ok"} for name in ("films", "imdb_films")):
        pytest.skip("not fetched on this machine")
    found = films.load()
    assert len(found["omdb"]) == len(found["tomatoes"]) == cards.load("films").examples["omdb"]
    assert (found["tomatoes"].score > 0).sum() == 17_080
    third = films.load_imdb()
    assert len(third) == cards.load("imdb_films").examples["imdb"] and max(third.editions) == 2005
