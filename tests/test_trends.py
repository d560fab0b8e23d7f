"""Catalogues joined, split by a date, learned from: each party alone, all together, and with gaps."""

import sys
from pathlib import Path

import numpy as np
import pytest

from fl_utils import trends
from fl_utils.data import cards
from fl_utils.data.films import Catalogue

sys.path.insert(0, str(Path(__file__).parent / "data"))
import test_films
import test_games


def task(count=900, gaps=0.3, seed=0):
    """The score is a sum of what two parties know, one half each; "late" lacks some works."""
    draw = np.random.default_rng(seed)
    early, late = draw.normal(size=(2, count, 3)).astype(np.float32)
    score = 50 + 10 * early[:, 0] + 10 * late[:, 1] + draw.normal(size=count)
    held = draw.random(count) >= gaps
    blocks = {"early": early, "late": np.where(held[:, None], late, np.float32("nan"))}
    present = {"early": np.ones(count, bool), "late": held}
    return trends.Task(blocks, present, score.astype(np.float32), np.linspace(1990, 2001, count), "points", ())


def catalogue(name, titles, editions, score=None, features=None):
    count = len(titles)
    features = np.arange(count, dtype=np.float32)[:, None] if features is None else features
    score = None if score is None else np.float32(score)
    ids = tuple(f"{name}-{row}" for row in range(count))
    return Catalogue(
        name, ids, tuple(titles), tuple(editions), np.arange(2000.0, 2000 + count), features, ("x",), score
    )


def test_a_join_is_that_of_a_plain_join_and_counts_what_is_sent():
    first, second = [f"work number {n}" for n in range(30)], [f"work number {n}" for n in range(20, 120)]
    for one, other, client in ((first, second, "a"), (second, first, "b")):
        found = trends.join("a", "b", "title", one, other)
        assert [one[row] for row in found.first_rows] == [other[row] for row in found.second_rows]
        assert len(found.first_rows) == 10 and found.exact and found.contained and found.client == client
        assert [message.sender == client for message in found.messages] == [True, False, True, False]
        assert (
            found.messages[2].bytes == 320 and found.messages[3].bytes == 10 and found.sizes == (len(one), len(other))
        )


def test_a_join_that_showed_another_identifier_would_be_seen(monkeypatch):
    def tell_all(self, reply):
        self._announced = np.arange(len(self._ids))
        digests = sorted((trends._digest(id), row) for row, id in enumerate(self._ids))
        self._announced = np.array([row for _, row in digests])
        return b"".join(digest for digest, _ in digests)

    monkeypatch.setattr(trends.psi.Client, "announce", tell_all)
    found = trends.join("a", "b", "title", ["shared title", "a secret title"], ["shared title", "b", "c"])
    assert found.exact and not found.contained


def test_games_meet_on_title_and_platform():
    ign = catalogue(
        "ign", ["The Alpha", "Beta", "Beta", "Gamma", "Delta"], ["PC", "PC", "DS", "PC", "PC"], [1, 2, 3, np.nan, 5]
    )
    sales = catalogue("vgsales", ["Alpha, The", "beta", "Delta", "Delta"], ["PC", "DS", "PC", "PC"])
    found = trends._games({"ign": ign, "vgsales": sales})
    assert found.parties == ("ign", "vgsales") and found.score.tolist() == [1, 2, 3, 5]
    assert found.present["vgsales"].tolist() == [True, False, True, False]  # Delta stands twice: neither is meant
    np.testing.assert_array_equal(found.blocks["vgsales"][:, 0], np.float32([0, np.nan, 1, np.nan]))
    np.testing.assert_array_equal(found.everywhere, [True, False, True, False])


def test_films_of_three_parties_out_of_their_files(tmp_path):
    test_films.write_database(tmp_path)
    test_films.write_csv(tmp_path, [test_films.imdb("BETA!", 1995, length="77"), test_films.imdb("Beta", 1996)])
    found = trends.load("films+imdb_films", tmp_path)
    assert found.parties == ("tomatoes", "omdb", "imdb") and found.score.tolist() == [80, 0]
    assert found.present["imdb"].tolist() == [True, False] and found.blocks["imdb"][0, 0] == 77
    assert np.isnan(found.blocks["imdb"][1]).all() and all(join.exact and join.contained for join in found.joins)


def test_games_out_of_their_files(tmp_path):
    found = trends.load("games", test_games.write(tmp_path))
    assert found.score.tolist() == [6, 8.5, 8.5] and found.present["vgsales"].tolist() == [True, True, False]


def test_what_is_not_there_is_said_first(tmp_path):
    with pytest.raises(ValueError, match=r"dataset is 'songs'; want films\+imdb_films or games"):
        trends.load("songs")
    test_films.write_database(tmp_path)
    with pytest.raises(cards.DataNotFound, match="imdb_films"):
        trends.load("films+imdb_films", tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dataset": "films"}, "dataset is 'films'"),
        ({"first_test_year": 2006}, "first_test_year is 2006, last_year 2005"),
        ({"share": 0.0}, "share is 0.0"),
        ({"share": 1.5}, "share is 1.5"),
        ({"repeats": 0}, "repeats is 0; want at least 1"),
        ({"dataset": "games"}, "games: .*vgsales"),
    ],
)
def test_parameters_are_checked_before_any_work(tmp_path, change, says):
    test_films.write_database(tmp_path)
    test_films.write_csv(tmp_path, [test_films.imdb("Beta", 1995)])
    fine = {"dataset": "films+imdb_films", "data_dir": tmp_path, "first_test_year": 2000, "last_year": 2005}
    fine |= {"share": 0.8, "repeats": 1}
    trends.check(**fine)
    with pytest.raises((ValueError, cards.DataNotFound), match=says):
        trends.check(**{**fine, **change})


def test_the_split_is_by_the_day_of_release():
    works = task()
    train, test = trends.split(works, 1998, 1999)
    assert works.released[train].max() < 1998 <= works.released[test].min() and works.released[test].max() < 2000
    assert (train | test).sum() == (works.released < 2000).sum()
    for first, last in ((1980, 1999), (2005, 2010), (1998, 1997)):
        with pytest.raises(ValueError, match=f"split at {first}, last year {last}"):
            trends.split(works, first, last)


@pytest.mark.parametrize("model", trends.MODELS)
def test_columns_of_both_parties_explain_more_than_those_of_one(model):
    works = task()
    train, test = trends.split(works, 1998, 2001)
    rows, tested = train & works.everywhere, test & works.everywhere
    errors = {
        parties: trends.error(works, trends.predict(model, works, parties, rows, tested, 0), tested)
        for parties in (("early",), ("late",), ("early", "late"))
    }
    assert errors["early", "late"] < 0.6 * min(errors["early",], errors["late",])


@pytest.mark.parametrize("model", trends.MODELS)
def test_a_gap_leaves_the_other_partys_columns_at_work(model):
    works = task()
    train, test = trends.split(works, 1998, 2001)
    tested = test & ~works.everywhere
    predicted = trends.predict(model, works, works.parties, train, tested, 0)
    assert np.isfinite(predicted).all() and predicted.shape == (tested.sum(),)
    assert trends.error(works, predicted, tested) < 0.95 * works.score[tested].std()


@pytest.mark.parametrize("model", trends.MODELS)
def test_a_seed_decides_and_the_test_rows_do_not(model):
    works = task(300)
    train, test = trends.split(works, 1998, 2001)
    first, again, other = (trends.predict(model, works, works.parties, train, test, s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    works.score[test] = 0  # the future is not looked at
    works.blocks["early"][test & (np.arange(300) % 2 == 0)] = 1e6
    kept = (np.arange(300) % 2 == 1)[test]
    np.testing.assert_allclose(
        trends.predict(model, works, works.parties, train, test, 0)[kept], first[kept], rtol=1e-5
    )


def test_unknown_models_and_parties_are_refused():
    works = task(50)
    everything = np.ones(50, bool)
    with pytest.raises(ValueError, match="model is 'forest'; want trees or network"):
        trends.predict("forest", works, works.parties, everything, everything, 0)
    for parties in ((), ("early", "nobody")):
        with pytest.raises(ValueError, match="want some of early, late"):
            trends.predict("trees", works, parties, everything, everything, 0)
