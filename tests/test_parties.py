import numpy as np
import pytest
import torch

from fl_utils import parties
from fl_utils.data import text
from fl_utils.data.examples import Examples
from fl_utils.training import Trainer
from small import LOCAL, examples, mlp


def party(count: int, seed: int) -> parties.Party:
    x, y = examples(3 * count, seed)
    return parties.Party(*zip(x.split(count), y.split(count), strict=True))


@pytest.fixture
def task() -> parties.Task:
    return parties.Task({"first": party(30, 1), "second": party(12, 2)}, mlp)


def test_the_four_trainings_see_who_they_should(task):
    trainings = task.trainings()
    assert list(trainings) == ["first", "second", "combined", "fedavg"]
    assert [[len(client) for client in clients] for clients in trainings.values()] == [[30], [12], [42], [30, 12]]
    combined = trainings["combined"][0]
    assert torch.equal(combined.x, torch.cat([task.parties["first"].train[0], task.parties["second"].train[0]]))


def test_the_combined_test_set_weighs_every_example_alike(task):
    trainer = Trainer(mlp)
    scores = task.evaluate(trainer)
    x, y = parties.join([p.test for p in task.parties.values()])
    assert scores["combined"] == pytest.approx(100 * trainer.evaluate(x, y).accuracy)
    x, y = parties.join([p.validation for p in task.parties.values()])
    assert scores["validation_loss"] == pytest.approx(trainer.evaluate(x, y).loss)
    assert scores["second"] == pytest.approx(100 * trainer.evaluate(*task.parties["second"].test).accuracy)


def test_compare_evaluates_every_training_after_every_round(task, tmp_path):
    results = parties.compare(task, 2, LOCAL, seed=3, checkpoint=lambda name: tmp_path / name)
    assert {name: len(result.evaluations) for name, result in results.items()} == dict.fromkeys(task.trainings(), 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["combined-3", "fedavg-3", "first-3", "second-3"]
    again = parties.compare(task, 2, LOCAL, seed=3)
    assert all(torch.equal(again[name].vector, results[name].vector) for name in results)


def test_cards_are_told_apart():
    assert parties.split_cards("hanzi+snippets") == ("hanzi", "snippets")
    assert parties.split_cards("imdb+amazon") == ("", "imdb+amazon")
    assert parties.split_cards("casia_hwdb+hit_or3c+imdb") == ("casia_hwdb+hit_or3c", "imdb")


def test_sentiment_keeps_the_sentences_of_a_review_together(monkeypatch):
    words = ["good", "bad", "film", "book", "plot", "fine", "dull", "long"]

    def load(card, data_dir, limit, seed):
        random = np.random.default_rng(0)
        sets = {}
        for name, grouped in (("movies", False), ("amazon", True)):
            texts = [" ".join(random.choice(words, 6)) + f" {name}{n}" for n in range(200)]
            groups = torch.arange(200) // 4 if grouped else None
            sets[name] = Examples(texts, torch.arange(200) % 2, groups)
        return sets

    monkeypatch.setattr(text, "load", load)
    task = parties.sentiment(1, vocabulary_size=50, length=7, embedding=4, hidden=4)
    assert list(task.parties) == ["movies", "amazon"]
    assert [len(part[1]) for part in task.parties["movies"].__dict__.values()] == [160, 20, 20]
    assert all(len(part[1]) % 4 == 0 for part in task.parties["amazon"].__dict__.values())
    x, _ = task.parties["movies"].train
    assert x.shape == (160, 7) and int(x.max()) < 50
    assert 0 <= task.evaluate(Trainer(task.build))["combined"] <= 100


def test_writers_never_stand_on_two_sides():
    groups = torch.arange(10).repeat_interleave(6)
    sheet = Examples(torch.arange(60).view(60, 1, 1, 1).to(torch.uint8), torch.arange(60) % 6, groups)
    split = parties.by_writer("first", sheet, 0.2, 0.2, seed=5)
    writers = [set((x.flatten() // 6).tolist()) for x, _ in (split.train, split.validation, split.test)]
    assert [len(part) for part in writers] == [6, 2, 2]
    assert len(set.union(*writers)) == 10
    few = sheet.take(range(18))
    assert [len(part[1]) for part in parties.by_writer("few", few, 0.9, 0.9, 0).__dict__.values()] == [6, 6, 6]


def test_a_party_that_cannot_be_split_is_named():
    x = torch.zeros(8, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match="party first has one class"):
        parties.by_writer("first", Examples(x, torch.zeros(8).long(), torch.arange(8)), 0.2, 0.2, 0)
    with pytest.raises(ValueError, match="party first has 2 writers: want at least 3"):
        parties.by_writer("first", Examples(x, torch.arange(8), torch.arange(8) % 2), 0.2, 0.2, 0)
    with pytest.raises(ValueError, match="party first: its examples do not say who wrote them"):
        parties.by_writer("first", Examples(x, torch.arange(8)), 0.2, 0.2, 0)
