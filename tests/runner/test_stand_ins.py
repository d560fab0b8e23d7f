"""Made-up files: the real loaders read them, and find as many examples as asked."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from fl_utils.data import cards, handwriting, imagenette, images, ratings, text, traffic
from fl_utils.runner import stand_ins


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("BODIES", 20), ("LABELLED", 90), ("SMALLER", 50), ("KINDS", 2)):
        monkeypatch.setattr(stand_ins, name, value)


def made(folder: Path, name: str, **examples: int) -> Path:
    (folder / name).mkdir()
    stand_ins.MAKERS[name](folder / name, examples)
    return folder


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_digits_and_clothes(tmp_path: Path, name: str):
    found = images.load(name, made(tmp_path, name, train=60, test=20))
    assert [tuple(part.x.shape) for part in found.values()] == [(60, 1, 28, 28), (20, 1, 28, 28)]
    assert set(found["train"].y.tolist()) == set(range(10))


def test_colour_pictures(tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its batches are not the official ones
        found = images.load("cifar10", made(tmp_path, "cifar10", train=1, test=1))
    assert [tuple(part.x.shape) for part in found.values()] == [(250, 3, 32, 32), (50, 3, 32, 32)]
    found = images.load("catsdogs", made(tmp_path, "catsdogs", cat=5, dog=6), size=20)["all"]
    assert found.x.shape == (11, 3, 20, 20) and found.y.tolist() == [0] * 5 + [1] * 6
    found = imagenette.load("imagenette", made(tmp_path, "imagenette", train=20, val=10), size=20)
    assert [tuple(part.x.shape) for part in found.values()] == [(20, 3, 20, 20), (10, 3, 20, 20)]


def test_a_file_system_without_links(tmp_path: Path, monkeypatch):
    def refuse(*_):
        raise OSError("no links")

    monkeypatch.setattr(stand_ins.os, "link", refuse)
    assert len(images.load("catsdogs", made(tmp_path, "catsdogs", cat=3, dog=3), size=8)["all"]) == 6


def test_characters_of_two_parties(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(stand_ins, "WRITERS", (2, 1))
    monkeypatch.setattr(stand_ins, "SUBJECTS", 2)
    for name in ("casia_hwdb", "hit_or3c"):
        made(tmp_path, name)
    found = handwriting.load("casia_hwdb+hit_or3c", tmp_path, size=8, classes=30)
    assert {party: len(part) for party, part in found.items()} == {"casia": 90, "hit": 60}
    assert len(found["casia"].groups.unique()) == 3 and len(found["hit"].y.unique()) == 30


def test_reviews_are_many_and_no_two_alike(tmp_path: Path):
    for name, examples, count in (("imdb", {"train": 30, "test": 30}, 60), ("amazon", {"all": "many"}, 90)):
        found = text.load(name, made(tmp_path, name, **examples))["all"]
        assert len(found) == len(set(found.x)) == count and found.y.sum() == count // 2
        assert len(text.tokens(found.x[0])) == stand_ins.WORDS + 1


def test_ratings(tmp_path: Path):
    found = ratings.load("movielens_1m", made(tmp_path, "movielens_1m", users=20, films=30, ratings=200))
    assert len(found.user_ids) <= 20 and len(found.rating) == 200


@pytest.mark.parametrize("name", ["metr_la", "pems_bay"])
def test_roads(tmp_path: Path, name: str):
    found = traffic.load(name, made(tmp_path, name, sensors=12, readings=300))
    assert found.speeds.shape == (300, 12) and found.minutes == 5 and (found.adjacency > 0).sum() > 12


@pytest.mark.parametrize(
    "name, needed",
    [
        ("mnist", ["train", "test"]),
        ("fashion_mnist", ["train", "test"]),
        ("catsdogs", ["cat", "dog"]),
        ("imagenette", ["train", "val"]),
        ("imdb", ["train", "test"]),
        ("movielens_1m", ["users", "films", "ratings"]),
        ("metr_la", ["sensors", "readings"]),
        ("pems_bay", ["sensors", "readings"]),
    ],
)
def test_the_cards_have_the_numbers_that_are_needed(name: str, needed: list[str]):
    examples = cards.load(name).examples
    assert set(needed) <= set(examples) and all(type(number) is int and number > 0 for number in examples.values())


def test_make_gives_each_its_folder(tmp_path: Path, monkeypatch):
    makers = {"mnist": lambda folder, examples: (folder / "made").write_text(str(examples["test"]))}
    monkeypatch.setattr(stand_ins, "MAKERS", makers)
    stand_ins.make(["mnist"], tmp_path / "new")
    assert (tmp_path / "new" / "mnist" / "made").read_text() == "10000"
