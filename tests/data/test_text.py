"""Texts out of the official layouts, and from texts to numbers."""

import csv
import gzip
import hashlib
import io
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_utils.data import cards, partition, text
from fl_utils.data.examples import concat

REAL = Path(__file__).resolve().parents[3] / "shared" / "real"


def write_imdb(folder, count=12):
    """aclImdb/<split>/<kind>/<id>_<rating>.txt; the texts say where they belong."""
    for split in ("train", "test"):
        for kind, rating in (("pos", 9), ("neg", 2)):
            (folder / "aclImdb" / split / kind).mkdir(parents=True)
            for number in range(count):
                review = f"A {kind} review, number {number} of {split}.<br /><br />Café, it's so."
                (folder / f"aclImdb/{split}/{kind}/{number}_{rating}.txt").write_text(review, encoding="utf-8")
        (folder / "aclImdb" / split / "unsup").mkdir()
        (folder / f"aclImdb/{split}/unsup/0_0.txt").write_text("no label")
    return folder


MOVIE = """product/productId: B00{0}
review/userId: A{1}
review/profileName: Jos\xe9
review/helpfulness: 0/1
review/score: {2}
review/time: 1182816000
review/summary: "Fine: really"
review/text: Review {0} by A{1}: caf\xe9, worth {2} stars.

"""


def movies(count=30, copies=1):
    numbers = [number // copies for number in range(count)]
    return "".join(MOVIE.format(number, number % 7, number % 5 + 1.0) for number in numbers).encode("latin-1")


def review(body, writer="Bo"):
    fields = {"rating": "1.0", "reviewer": writer, "review_text": body}
    inside = "".join(f"<{field}>\n{value}\n</{field}>\n" for field, value in fields.items())
    return f"<review>\n{inside}</review>\n"


def write_domains(folder, count=20):
    for domain in ("dvd", "kitchen_&_housewares"):
        (folder / "sorted_data_acl" / domain).mkdir(parents=True)
        for kind in ("positive", "negative"):
            about = [f"{kind} {domain} {number % (count - 3)} \xe9" for number in range(count)]  # the first three recur
            reviews = [review(body, f"W{number % 20}") for number, body in enumerate(about)]
            path = folder / f"sorted_data_acl/{domain}/{kind}.review"
            path.write_bytes("".join(reviews).encode("latin-1"))
    return folder


def test_snippets_are_two_parties():
    parties = text.load("snippets")
    movies, amazon = parties["movies"], parties["amazon"]
    assert movies.y.bincount().tolist() == [5326, 5242] and amazon.y.bincount().tolist() == [1482, 2128]
    assert movies.x[0].startswith("The Rock is destined") and any("Jirí" in line for line in movies.x)
    assert not any("Ã" in line or "\r" in line for line in movies.x + amazon.x)
    assert len(amazon.groups.unique()) == 299 and len(movies.groups.unique()) == len(movies)
    assert amazon.groups[:3].tolist() == [0, 0, 0]


def test_a_damaged_line_of_snippets_is_named(tmp_path):
    (tmp_path / "movies.tsv").write_text("1\t2.5\tgood\n2\t-1\tbad\n3\t0.0\tneither\n")
    (tmp_path / "amazon.tsv").write_text("1_1\t2.5\tgood\n1_2\tbad")
    with pytest.raises(ValueError, match=r"amazon\.tsv: line 2: want id, rating and text"):
        text.load("snippets", tmp_path)
    (tmp_path / "amazon.tsv").write_text("1_1\t2.5\tso\x85good\n")
    assert text.load("snippets", tmp_path)["amazon"].x == ["so\x85good"]
    assert text.load("snippets", tmp_path)["movies"].y.tolist() == [1, 0]


@pytest.mark.parametrize("form", ["folder", "inside", "archive", "archive as data_dir"])
def test_imdb_as_it_comes(tmp_path, form):
    write_imdb(tmp_path / "own")
    where = tmp_path / "own"
    if form == "inside":
        where = where / "aclImdb"
    elif form.startswith("archive"):
        (tmp_path / "packed").mkdir()
        where = tmp_path / "packed"
        with tarfile.open(where / "aclImdb_v1.tar.gz", "w:gz") as tar:
            tar.add(tmp_path / "own/aclImdb", "aclImdb")
        if "data_dir" in form:
            where = where / "aclImdb_v1.tar.gz"
    splits = text.load("imdb", where)
    for split in ("train", "test"):
        assert splits[split].y.tolist() == [0] * 12 + [1] * 12 and splits[split].groups is None
        assert splits[split].x[2].startswith(f"A neg review, number 2 of {split}")
        assert splits[split].x[23].endswith("Café, it's so.")


def test_imdb_as_a_table(tmp_path):
    texts = [f'No. {number}, "so"\nit is' for number in range(6)]
    rows = [{"id": number, "rating": 9, "label": number % 2, "text": line} for number, line in enumerate(texts)]
    stream = io.StringIO()
    table = csv.DictWriter(stream, ["id", "rating", "label", "text"])
    table.writeheader()
    table.writerows(rows)
    packed = gzip.compress(stream.getvalue().encode())
    (tmp_path / "imdb_small.csv.gz").write_bytes(packed)
    found = text.load("imdb", tmp_path)["all"]
    assert found.x == texts and found.y.tolist() == [0, 1] * 3
    for broken, said in (
        (packed[:-30], "truncated or damaged"),
        (gzip.compress(b"id,text\n1,x\n"), "want label and text"),
        (gzip.compress(b"label,text\n7,x\n"), "line 2: label '7'"),
        (gzip.compress(b'label,text\n1,"x'), "truncated or damaged"),
        (gzip.compress(b"label,text\n1,\xff\n"), "truncated or damaged"),
        (gzip.compress(b"label,text\n"), "no labelled text"),
    ):
        (tmp_path / "imdb_small.csv.gz").write_bytes(broken)
        with pytest.raises(ValueError, match=said) as error:
            text.load("imdb", tmp_path)
        assert "imdb_small.csv.gz" in str(error.value)


def test_damaged_imdb_is_named(tmp_path):
    write_imdb(tmp_path)
    with tarfile.open(tmp_path / "whole.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "aclImdb", "aclImdb")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/aclImdb_v1.tar.gz").write_bytes((tmp_path / "whole.tar.gz").read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"aclImdb_v1\.tar\.gz: truncated or damaged"):
        text.load("imdb", tmp_path / "other")
    (tmp_path / "aclImdb/test/neg/3_2.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"neg/3_2\.txt: not UTF-8"):
        text.load("imdb", tmp_path)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_amazon_movies(tmp_path, packed, line_end):
    data = movies().replace(b"\n", line_end)
    (tmp_path / ("movies.txt.gz" if packed else "movies.txt")).write_bytes(gzip.compress(data) if packed else data)
    found = text.load("amazon", tmp_path)["all"]
    kept = [number for number in range(30) if number % 5 != 2]  # 3 stars are neither
    assert found.x == [f"Review {number} by A{number % 7}: café, worth {number % 5 + 1.0} stars." for number in kept]
    assert found.y.tolist() == [int(number % 5 > 2) for number in kept]
    writers = {}
    assert found.groups.tolist() == [writers.setdefault(number % 7, len(writers)) for number in kept]


def test_amazon_movies_without_a_last_empty_line_and_damaged(tmp_path):
    (tmp_path / "movies.txt").write_bytes(movies(2).rstrip())
    assert len(text.load("amazon", tmp_path)["all"]) == 2
    (tmp_path / "movies.txt").write_bytes(movies(2).replace(b"score: 2.0", b"score: good"))
    with pytest.raises(ValueError, match=r"movies\.txt: before line 18: review/score 'good'"):
        text.load("amazon", tmp_path)
    (tmp_path / "movies.txt").unlink()
    (tmp_path / "movies.txt.gz").write_bytes(gzip.compress(movies(200))[:-9])
    with pytest.raises(ValueError, match=r"movies\.txt\.gz: truncated or damaged after line \d+"):
        text.load("amazon", tmp_path)


def test_a_limit_is_a_fair_draw_in_order(tmp_path):
    (tmp_path / "movies.txt").write_bytes(movies(500))
    whole = text.load("amazon", tmp_path)["all"].x
    part = text.load("amazon", tmp_path, limit=40, seed=1)["all"].x
    assert part == text.load("amazon", tmp_path, limit=40, seed=1)["all"].x
    assert part != text.load("amazon", tmp_path, limit=40, seed=2)["all"].x
    places = [whole.index(line) for line in part]
    assert places == sorted(places) and len(set(places)) == 40 and max(places) > 300
    assert text.load("amazon", tmp_path, limit=10_000)["all"].x == whole
    drawn = np.zeros(20)
    for seed in range(400):
        for _, label, _ in text._reservoir([("", number, "") for number in range(20)], 5, seed):
            drawn[label] += 1
    assert (np.abs(drawn - 100) < 45).all()  # 5 of 20 in 400 draws: 100 +- 8.7 each


@pytest.mark.parametrize("form", ["parent", "inside"])
def test_amazon_domains(tmp_path, form):
    write_domains(tmp_path)
    where = tmp_path if form == "parent" else tmp_path / "sorted_data_acl"
    found = text.load("amazon", where)["all"]
    assert found.y.tolist() == [0] * 20 + [1] * 20 and found.x[0] == "negative dvd 0 é"
    assert found.groups[18:22].tolist() == [18, 19, 0, 1]
    assert text.load("amazon", where, domain="kitchen_&_housewares")["all"].x[20] == "positive kitchen_&_housewares 0 é"
    with pytest.raises(ValueError, match=r"domain 'toys'.*there are dvd, kitchen_&_housewares"):
        text.load("amazon", where, domain="toys")
    file = tmp_path / "sorted_data_acl/dvd/positive.review"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"positive\.review: review 20 of 20 is truncated"):
        text.load("amazon", where)
    file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"positive\.review: no <review>"):
        text.load("amazon", where)


def test_bad_arguments_are_named():
    for arguments, said in (
        ({"name": "digits"}, "'digits' is not a data set of texts"),
        ({"name": "snippets", "limit": 0}, "limit is 0"),
        ({"name": "snippets", "domain": "books"}, "only amazon has domains"),
    ):
        with pytest.raises(ValueError, match=said):
            text.load(**arguments)
    with pytest.raises(cards.DataNotFound, match="aclImdb_v1"):
        text.load("imdb")


def test_tokens():
    line = "It's GREAT!<br /><br />''Don't'' miss R.O.T.O.R. (2 < 3) naïve rock'n'roll\u2014the players’ 9/10_a"
    want = "it's great don't miss r o t o r 2 3 naïve rock'n'roll the players 9 10 a"
    assert text.tokens(line) == want.split()
    assert text.tokens("") == [] and text.tokens("<br/> ' '' !") == []


@given(st.text(alphabet=st.sampled_from("aB9'’ _-.<>/\t\né\x1c"), max_size=30))
def test_the_fast_way_finds_the_words_that_the_pattern_finds(line):
    assert text.tokens(line) == text.WORD.findall(text.MARKUP.sub(" ", line).lower().replace("’", "'"))


def test_vocabulary_is_the_same_in_whatever_order():
    first, second = ["b a a c", "d d"], ["a b e"]
    words = text.vocabulary([first, second], 6)
    assert words == {"a": 2, "b": 3, "d": 4, "c": 5}
    assert words == text.vocabulary([second, first[::-1]], 6)
    assert text.vocabulary([first, second], 100) == {"a": 2, "b": 3, "d": 4, "c": 5, "e": 6}
    with pytest.raises(ValueError, match="size is 2"):
        text.vocabulary([first], 2)
    with pytest.raises(ValueError, match="one list of texts per party"):
        text.vocabulary(first, 10)


@given(st.lists(st.text(alphabet="ab '.", max_size=20), max_size=5), st.integers(1, 6))
def test_encoding_equals_the_naive_one(texts, length):
    words = {"a": 2, "b": 3}
    encoded = text.encode(texts, words, length)
    assert encoded.dtype == torch.int64 and encoded.shape == (len(texts), length)
    for row, line in zip(encoded.tolist(), texts, strict=True):
        numbers = [words.get(word, 1) for word in text.tokens(line)][:length]
        assert row == numbers + [0] * (length - len(numbers))


def test_encoding_a_vocabulary_stays_inside_its_embedding():
    parties = text.load("snippets")
    words = text.vocabulary([party.x for party in parties.values()], 2000)
    encoded = text.encode(parties["movies"].x, words, 40)
    assert int(encoded.max()) == 1999 and int(encoded.min()) == 0 and (encoded[:, 0] > 0).float().mean() > 0.99
    with pytest.raises(ValueError, match="length is 0"):
        text.encode(["a"], words, 0)


def test_encoding_is_fast_enough_for_long_reviews():
    texts = ["A long review, isn't it? It goes on and on. " * 25] * 2000
    start = time.process_time()
    text.encode(texts, {"long": 2, "review": 3}, 200)
    assert time.process_time() - start < 1.0  # 100,000 reviews in well under a minute; measured: 0.05 s


def keys(examples):
    return np.array([hashlib.sha256(line.encode()).hexdigest() for line in examples.x])


def check_data_set(name, data_dir, **options):
    """No text is in two parts of a split, neither by content nor, where asked, by group; official splits likewise."""
    found = text.load(name, data_dir, **options)
    whole = concat(found.values())
    hashes = keys(whole)
    for by_group in (False, True)[: 1 + (whole.groups is not None)]:
        parts = partition.split(whole, (0.8, 0.1, 0.1), seed=0, by_group=by_group)
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(whole)))
        for of in (hashes, whole.groups.numpy()) if by_group else (hashes,):
            seen = [set(of[part].tolist()) for part in parts]
            assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
        if not by_group:
            for part, share in zip(parts, (0.8, 0.1, 0.1), strict=True):
                assert abs(len(part) - share * len(whole)) <= 0.01 * len(whole) + 1
    if set(found) == {"train", "test"}:
        train = found["train"].take(partition.unseen(found["train"], found["test"]))
        assert not set(keys(train)) & set(keys(found["test"]))
    return whole


def test_no_snippet_is_in_train_and_test():
    whole = check_data_set("snippets", "")
    assert len(set(keys(whole))) < len(whole)  # there are snippets that occur twice: the test has something to find


@pytest.mark.parametrize("name", ["imdb", "amazon"])
def test_no_real_review_is_in_train_and_test(name):
    if not (REAL / name).is_dir():
        pytest.skip("no real data beside this checkout")
    whole = check_data_set(name, REAL)
    assert len(set(keys(whole))) < len(whole)


def test_no_tiny_review_is_in_train_and_test(tmp_path):
    write_imdb(tmp_path / "imdb", count=40)
    for number in range(10):
        copy = (tmp_path / f"imdb/aclImdb/train/pos/{number}_9.txt").read_bytes()
        (tmp_path / f"imdb/aclImdb/train/neg/{number}_2.txt").write_bytes(copy)
        (tmp_path / f"imdb/aclImdb/test/pos/{number}_9.txt").write_bytes(copy)
    check_data_set("imdb", tmp_path / "imdb")
    (tmp_path / "movies.txt").write_bytes(movies(300, copies=3))
    check_data_set("amazon", tmp_path)
    check_data_set("amazon", write_domains(tmp_path / "domains", count=200))
