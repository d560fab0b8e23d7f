"""MovieLens out of its official files, and damaged rows named by file and line."""

import numpy as np
import pytest

from fl_utils.data import cards, fetch, ratings

USERS = [(1, 24, "M", "technician", "85711"), (2, 53, "F", "other", "94043"), (5, 33, "F", "writer", "T8H1N")]
FILMS = [
    (1, "Toy Story (1995)", "01-Jan-1995", ("Animation", "Children's", "Comedy")),
    (2, "Misérables, Les (1994)", "12-Mar-1995", ("Drama",)),
    (4, "unknown", "", ("unknown",)),
    (9, "Land (1995) (V)", "01-Jan-1996", ("Western",)),
]
DATA = [(5, 2, 3, 881250949), (1, 9, 5, 891717742), (1, 1, 1, 878887116), (2, 4, 2, 880606923)]


def lines(rows, between):
    return "".join(between.join(map(str, row)) + "\n" for row in rows)


def write_100k(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "u.data").write_text(lines(DATA, "\t"))
    (folder / "u.user").write_text(lines(USERS, "|"))
    genres = ratings.GENRES_100K
    (folder / "u.genre").write_text(lines(zip(genres, range(19), strict=True), "|") + "\n")
    films = [(id, title, date, "", "http://x", *(int(g in own) for g in genres)) for id, title, date, own in FILMS]
    (folder / "u.item").write_text(lines(films, "|"), encoding="latin-1")
    return folder


def write_recbole(folder):
    folder.mkdir(parents=True, exist_ok=True)
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    (folder / "ml-100k.inter").write_text(header + lines(DATA, "\t"))
    header = "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
    (folder / "ml-100k.user").write_text(header + lines(USERS, "\t"))
    rows = [
        (1, "Toy Story", 1995, "Animation Children's Comedy"),
        (2, "Misérables, Les", 1994, "Drama"),
        (4, "unkonwn", "unkonwn", "unknown"),
        (9, "Land (1995)", "V", "Western"),
    ]
    header = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    (folder / "ml-100k.item").write_text(header + lines(rows, "\t"), encoding="utf-8")
    return folder


def write_1m(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072\n4::M::45::0::02460-1234\n")
    films = "1::Toy Story (1995)::Animation|Children's|Comedy\n3::Misérables, Les (1995)::Drama\n"
    films += "7::Never rated (1950)::War\n"
    (folder / "movies.dat").write_text(films, encoding="latin-1")
    (folder / "ratings.dat").write_text("1::3::5::978300760\n4::1::3::978302109\n1::1::4::978301968\n")
    return folder


def test_100k_in_its_official_layout(tmp_path):
    found = ratings.load("movielens_100k", write_100k(tmp_path / "ml-100k"))
    assert found.user_ids.tolist() == [1, 2, 5] and found.item_ids.tolist() == [1, 2, 4, 9]
    assert found.user_ids[found.user].tolist() == [5, 1, 1, 2] and found.item_ids[found.item].tolist() == [2, 9, 1, 4]
    assert found.rating.tolist() == [3, 5, 1, 2] and found.timestamp[0] == 881250949
    kinds = {name: getattr(found, name).dtype for name in ("user", "item", "timestamp", "user_ids", "item_ids")}
    assert set(kinds.values()) == {np.dtype(np.int64)}
    assert found.rating.dtype == found.user_features.dtype == found.item_features.dtype == np.float32
    assert found.user_features.shape == (3, 23) == (3, len(found.user_feature_names))
    assert found.item_features.shape == (4, 20) == (4, len(found.item_feature_names))
    user = dict(zip(found.user_feature_names, found.user_features[1], strict=True))
    assert user["age"] == np.float32(0.53) and user["gender=F"] == 1 and user["occupation=other"] == 1
    assert found.user_features[:, 2:].sum(1).tolist() == [1, 1, 1]
    film = dict(zip(found.item_feature_names, found.item_features[0], strict=True))
    assert film["year"] == np.float32(0.95) and film["genre=Comedy"] == 1 and found.item_features[0, 1:].sum() == 3
    assert found.item_features[1, 0] == np.float32(0.94)  # the title's year, not that of the American release
    assert found.item_features[3, 0] == np.float32(0.95)
    assert np.isclose(found.item_features[2, 0], (0.95 + 0.94 + 0.95) / 3)  # unknown: the mean


def test_the_official_files_and_recboles_say_the_same(tmp_path):
    official = ratings.load("movielens_100k", write_100k(tmp_path / "official"))
    theirs = ratings.load("movielens_100k", write_recbole(tmp_path / "recbole"))
    for name in official.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(official, name), getattr(theirs, name), err_msg=name)


def test_1m_in_its_official_layout(tmp_path):
    write_1m(tmp_path / "data" / "ml-1m")
    found = ratings.load("movielens_1m", tmp_path / "data")
    assert found.user_ids.tolist() == [1, 2, 4] and found.item_ids.tolist() == [1, 3, 7]  # films without ratings too
    assert found.user.tolist() == [0, 2, 0] and found.item.tolist() == [1, 0, 0] and found.rating.tolist() == [5, 3, 4]
    assert found.user_features.shape == (3, 23) and found.item_features.shape == (3, 19)
    user = dict(zip(found.user_feature_names, found.user_features[0], strict=True))
    assert user["age"] == np.float32(0.01) and user["gender=F"] == 1 and user["occupation=K-12 student"] == 1
    film = dict(zip(found.item_feature_names, found.item_features[2], strict=True))
    assert film["year"] == np.float32(0.5) and film["genre=War"] == 1


def test_windows_line_ends_are_no_damage(tmp_path):
    plain = ratings.load("movielens_1m", write_1m(tmp_path))
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    again = ratings.load("movielens_1m", tmp_path)
    np.testing.assert_array_equal(plain.item_features, again.item_features)
    np.testing.assert_array_equal(plain.timestamp, again.timestamp)


DAMAGE_100K = [
    ("u.data", 2, "1\t9\t5", "line 2: 3 fields .*want 4"),
    ("u.data", 3, "1\t1\tgood\t878887116", "line 3: rating is 'good'; want a whole number, 1 to 5"),
    ("u.data", 1, "5\t2\t6\t881250949", "line 1: rating is '6', .*want 1 to 5"),
    ("u.data", 4, "2\t77\t2\t880606923", "line 4: film 77 is not among the 4 films"),
    ("u.data", 4, "3\t4\t2\t880606923", "line 4: user 3 is not among the 3 users"),
    ("u.data", 4, "5\t2\t2\t880606923", "line 4: user 5 rated film 2 in an earlier line"),
    ("u.data", 4, "2\t4\t2\t-1", "line 4: rating is '2', timestamp '-1'"),
    ("u.data", 4, f"2\t4\t2\t{10**30}", "line 4: .*timestamp"),
    ("u.user", 2, "1|53|F|other|94043", "line 2: user 1 is listed twice"),
    ("u.user", 1, "1|24|X|technician|85711", "line 1: gender is 'X'; want F or M"),
    ("u.user", 1, "1|24|M|wizard|85711", "line 1: occupation is 'wizard'"),
    ("u.user", 1, "1|old|M|technician|85711", "line 1: age is 'old'"),
    ("u.user", 3, "x|33|F|writer|1", "line 3: user is 'x'"),
    ("u.item", 2, "2|Cut off", "line 2: 2 fields"),
    ("u.item", 1, "1|Nameless|January||x|" + "|".join("0" * 19), "line 1: release date is 'January'"),
    ("u.item", 4, "9|Land (1995)|01-Jan-1995||x|" + "|".join("2" * 19), "line 4: genre unknown is '2'; .*0 to 1"),
    ("u.item", 4, "1|Land (1995)|01-Jan-1995||x|" + "|".join("0" * 19), "line 4: film 1 is listed twice"),
    ("u.genre", 2, "Action|5", "line 2: place is 5; want 1"),
]
DAMAGE_1M = [
    ("ratings.dat", 2, "4::1::3", "line 2: 3 fields .*want 4 between '::'"),
    ("ratings.dat", 2, "4::1::0::978302109", "line 2: rating is '0'"),
    ("ratings.dat", 3, "1::2::4::978301968", "line 3: film 2 is not among the 3"),
    ("users.dat", 1, "1::F::7::10::48067", "line 1: age is '7'; want one of the codes 1, 18, 25"),
    ("users.dat", 1, "1::F::1::21::48067", "line 1: occupation is '21'; want a whole number, 0 to 20"),
    ("movies.dat", 1, "1::Toy Story::Comedy", "line 1: title is 'Toy Story'; want one that ends in its year"),
    ("movies.dat", 2, "3::Toy (1995)::Comedy|Cookery", "line 2: genres are 'Comedy Cookery'"),
    ("movies.dat", 2, "3::Toy (1995)::", "line 2: genres are ''"),
]


@pytest.mark.parametrize(("file", "line", "text", "says"), DAMAGE_100K + DAMAGE_1M)
def test_a_damaged_row_is_named_by_file_and_line(tmp_path, file, line, text, says):
    write_100k(tmp_path)
    write_1m(tmp_path)
    content = (tmp_path / file).read_text(encoding="latin-1").split("\n")
    content[line - 1] = text
    (tmp_path / file).write_text("\n".join(content), encoding="latin-1")
    with pytest.raises(ValueError, match=says) as error:
        ratings.load("movielens_1m" if file.endswith(".dat") else "movielens_100k", tmp_path)
    assert file in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("file", ["u.data", "u.user", "u.item", "u.genre"])
def test_an_empty_file_is_named(tmp_path, file):
    (write_100k(tmp_path) / file).write_text("\n")
    with pytest.raises(ValueError, match=f"{file}: empty"):
        ratings.load("movielens_100k", tmp_path)


def test_a_recbole_file_of_other_columns_is_named(tmp_path):
    write_recbole(tmp_path)
    (tmp_path / "ml-100k.user").write_text("user_id:token\tage:token\n1\t5\n")
    with pytest.raises(ValueError, match=r"ml-100k\.user, line 1: columns user_id, age; want user_id, age, gender"):
        ratings.load("movielens_100k", tmp_path)


def test_what_is_not_there_is_said_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="'movielens_20m' is not a data set of ratings"):
        ratings.load("movielens_20m")
    write_100k(tmp_path).joinpath("u.genre").unlink()
    with pytest.raises(cards.DataNotFound, match=r"lacks u\.genre"):
        ratings.load("movielens_100k", tmp_path)
    with pytest.raises(cards.DataNotFound, match="grouplens"):
        ratings.load("movielens_1m")


def test_the_fetched_100k_is_what_its_authors_count():
    if set(fetch.status("movielens_100k")["files"].values()) != {"ok"}:
        pytest.skip("not fetched on this machine")
    found = ratings.load("movielens_100k")
    assert (len(found.rating), len(found.user_ids), len(found.item_ids)) == (100_000, 943, 1_682)
    assert np.bincount(found.rating.astype(int), minlength=6)[1:].tolist() == [6110, 11370, 27145, 34174, 21201]
    assert np.bincount(found.user).min() >= 20 and found.user_features[:, 1].sum() == 273  # women
    assert np.isfinite(found.item_features).all() and np.isfinite(found.user_features).all()
