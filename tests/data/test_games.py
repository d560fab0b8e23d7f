"""Games out of the two official tables: platforms matched, features known before release, damaged cells named."""

import csv
from pathlib import Path

import numpy as np
import pytest

from fl_utils.data import cards, games

REAL = Path(__file__).resolve().parents[3] / "shared" / "real" / "games"
SALES = ["Rank", "Name", "Platform", "Year", "Genre", "Publisher"]
SALES += ["NA_Sales", "EU_Sales", "JP_Sales", "Other_Sales", "Global_Sales"]
IGN = ["", "score_phrase", "title", "url", "platform", "score", "genre", "editors_choice"]
IGN += ["release_year", "release_month", "release_day"]


def sale(rank, name, platform, year="2008", publisher="Sega", genre="Racing", sold="1.5"):
    return dict(zip(SALES, [rank, name, platform, year, genre, publisher, *[sold] * 5], strict=True))


def review(number, title, platform, score="8.5", genre="Racing, Action", day=(2008, 9, 12), **others):
    row = [number, "Great", title, "/games/x", platform, score, genre, "N", *day]
    return {**dict(zip(IGN, row, strict=True)), **others}


TOLD = [sale(1, "Alpha", "PS3", "2006"), sale(2, "Beta", "GB", "2008"), sale(3, "Gamma", "X360", "N/A", "N/A", "Misc")]
SEEN = [
    review(0, "Alpha", "PlayStation 3"),
    review(1, "Beta", "Game Boy Color", score="6", genre="RPG", day=(1999, 1, 1)),
    review(2, "Gamma", "iPhone"),
    review(3, 'Delta, "D"', "Xbox 360", genre=""),
]


def write(folder, told=TOLD, seen=SEEN):
    for name, columns, rows in (("vgsales.csv", SALES, told), ("ign.csv", IGN, seen)):
        with (folder / name).open("w", encoding="utf-8", newline="") as handle:
            writer = csv.DictWriter(handle, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
    return folder


def column(party, name):
    return party.features[:, party.feature_names.index(name)]


def test_the_two_tables_as_published(tmp_path):
    found = games.load(write(tmp_path))
    sales, ign = found["vgsales"], found["ign"]
    assert sales.titles == ("Alpha", "Beta", "Gamma") and sales.editions == ("PS3", "GB", "X360")
    assert ign.titles == ("Alpha", "Beta", 'Delta, "D"')  # no iPhone among VGChartz's platforms
    assert ign.editions == ("PS3", "GB", "X360") and sales.score is None
    np.testing.assert_array_equal(ign.score, np.float32([8.5, 6, 8.5]))
    np.testing.assert_array_equal(column(ign, "month"), np.float32([9, 1, 9]))
    np.testing.assert_array_equal(column(ign, "genre=Action"), np.float32([1, 0, np.nan]))
    np.testing.assert_array_equal(column(ign, "platform=GB"), np.float32([0, 1, 0]))
    np.testing.assert_array_equal(column(sales, "publisher=Sega"), np.float32([1, 1, np.nan]))
    np.testing.assert_array_equal(column(sales, "publisher's earlier games"), np.float32([0, 1, np.nan]))
    np.testing.assert_array_equal(column(sales, "genre=Racing"), np.float32([1, 1, 0]))
    assert np.isclose(ign.released[0], 2008 + 255 / 366) and np.isnan(sales.released[2])


def test_neither_sales_nor_what_says_the_score_again_are_features(tmp_path):
    before = games.load(write(tmp_path))
    told = [{**row, **dict.fromkeys((*games.REGIONS, "Global_Sales"), "99")} for row in TOLD]
    seen = [{**row, "score_phrase": "Bad", "score": "1", "editors_choice": "Y"} for row in SEEN]
    (tmp_path / "b").mkdir()
    again = games.load(write(tmp_path / "b", told, seen))
    for name in before:
        np.testing.assert_array_equal(before[name].features, again[name].features)
    after = games.load(tmp_path, after_release=True)["vgsales"]
    np.testing.assert_allclose(column(after, "log JP_Sales"), np.log1p(1.5), rtol=1e-6)


def test_every_platform_has_one_name_at_the_other():
    assert len(set(games.PLATFORMS.values())) >= 29
    assert {"GB", "DS", "3DS", "WS"} == {
        n for n in games.PLATFORMS.values() if list(games.PLATFORMS.values()).count(n) > 1
    }
    assert set(games.PLATFORMS_OF_SALES) <= set(games.PLATFORMS.values())


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("vgsales.csv", {"Year": "soon"}, r"vgsales\.csv, line 2: Year is 'soon'; want a number"),
        ("vgsales.csv", {"Name": " "}, r"vgsales\.csv, line 2: Name is empty"),
        ("ign.csv", {"score": "high"}, r"ign\.csv, line 2: score is 'high'"),
        ("ign.csv", {"score": "11"}, r"ign\.csv, line 2: score is 11; want 0 to 10"),
        ("ign.csv", {"release_month": "13"}, r"ign\.csv, line 2: released '2008-13-12'"),
        ("ign.csv", {"title": ""}, r"ign\.csv, line 2: title is empty"),
    ],
)
def test_a_damaged_cell_is_named(tmp_path, file, change, says):
    told = [{**TOLD[0], **change}, *TOLD[1:]] if file == "vgsales.csv" else TOLD
    seen = [{**SEEN[0], **change}, *SEEN[1:]] if file == "ign.csv" else SEEN
    with pytest.raises(ValueError, match=says) as error:
        games.load(write(tmp_path, told, seen))
    assert "\n" not in str(error.value)


def test_other_damage_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"ign\.csv: no game for a platform that VGChartz counts"):
        games.load(write(tmp_path, seen=[review(0, "A", "iPhone")]))
    write(tmp_path)
    content = (tmp_path / "ign.csv").read_text()
    (tmp_path / "ign.csv").write_text(content.replace("platform", "console", 1))
    with pytest.raises(ValueError, match=r"ign\.csv, line 1: no column platform"):
        games.load(tmp_path)
    (tmp_path / "ign.csv").write_text(content[:-12])
    with pytest.raises(ValueError, match=r"ign\.csv, line 5: not 11 cells"):
        games.load(tmp_path)
    (tmp_path / "ign.csv").unlink()
    with pytest.raises(cards.DataNotFound, match=r"lacks ign\.csv"):
        games.load(tmp_path)
    with pytest.raises(cards.DataNotFound, match="kaggle"):
        games.load("")


@pytest.mark.skipif(not REAL.exists(), reason="no real data on this machine")
def test_the_real_tables():
    found = games.load(REAL)
    assert len(found["vgsales"]) == 16_598 and len(found["ign"]) == 16_400
    assert all(np.isfinite(found["ign"].score)) and set(found["ign"].editions) <= set(found["vgsales"].editions)
