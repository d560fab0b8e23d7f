"""Hu et al. 2020, sections 3.4 and 4.1: parties with data of their own, and the four ways to train on it.

Each party alone, all data in one place ("combined"), and federated averaging; every model is tested on each party's
test set and on all of them together. A party alone and the combined data are federations of one client, so that all
see the same code, the same seeds and the same number of epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fl_utils import federation
from fl_utils.data import partition, text
from fl_utils.data.examples import Examples, concat
from fl_utils.models.text import SentimentLSTM
from fl_utils.training import LocalTraining, Trainer

Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Party:
    """One party's examples, each part a pair (inputs [N, ...], labels [N])."""

    train: Pair
    validation: Pair
    test: Pair


@dataclass(frozen=True)
class Task:
    """What the parties learn: their data by name, ``build()`` for the model, and the loss (:data:`training.LOSSES`)."""

    parties: dict[str, Party]
    build: Callable[[], nn.Module]
    loss: str = "cross_entropy"

    def clients(self) -> list[federation.Client]:
        """One client per party, in order, with its training examples."""
        return [federation.Client(id, *party.train) for id, party in enumerate(self.parties.values())]

    def trainings(self) -> dict[str, list[federation.Client]]:
        """The clients of each training: every party's name, "combined" and "fedavg"."""
        clients = self.clients()
        alone = {name: [client] for name, client in zip(self.parties, clients, strict=True)}
        together = [federation.Client(0, *join([party.train for party in self.parties.values()]))]
        return {**alone, "combined": together, "fedavg": clients}

    def evaluate(self, trainer: Trainer) -> dict[str, float]:
        """Accuracy (%) on each party's test set and on all of them ("combined"); loss on all validation sets."""
        scores = {name: trainer.evaluate(*party.test, self.loss) for name, party in self.parties.items()}
        hits = sum(score.accuracy * score.num_examples for score in scores.values())
        joint = {"combined": 100 * hits / sum(score.num_examples for score in scores.values())}
        validation = join([party.validation for party in self.parties.values()])
        loss = trainer.evaluate(*validation, self.loss).loss
        return {**joint, **{name: 100 * score.accuracy for name, score in scores.items()}, "validation_loss": loss}


def join(pairs: Sequence[Pair]) -> Pair:
    """Several (inputs, labels) as one."""
    inputs, labels = zip(*pairs, strict=True)
    return torch.cat(inputs), torch.cat(labels)


def compare(
    task: Task,
    rounds: int | Sequence[int],
    local: LocalTraining,
    seed: int,
    device: str = "cpu",
    checkpoint: Callable[[str], Path | None] | None = None,
) -> dict[str, federation.Result]:
    """Each of ``task.trainings()``, from the same initial weights, evaluated after every round (section 4.1).

    rounds, local: as :func:`federation.run` takes them. checkpoint: makes a path of "<training>-<seed>"
    (:func:`paths.checkpoint`), so that a killed run goes on from there.
    """
    return {
        name: federation.run(
            task.build,
            clients,
            rounds=rounds,
            local=local,
            seed=seed,
            device=device,
            evaluate=task.evaluate,
            checkpoint=checkpoint(f"{name}-{seed}") if checkpoint else None,
        )
        for name, clients in task.trainings().items()
    }


def split_cards(dataset: str) -> tuple[str, str]:
    """The cards of characters and those of texts among "hanzi+snippets", each joined by + again, "" where none."""
    cards = [card for card in dataset.split("+") if card]
    texts = [card for card in cards if card in text.NAMES]
    return "+".join(card for card in cards if card not in texts), "+".join(texts)


def sentiment(
    seed: int,
    dataset: str = "snippets",
    data_dir: str | Path = "",
    limit: int = 0,
    vocabulary_size: int = 4000,
    length: int = 20,
    embedding: int = 32,
    hidden: int = 32,
    layers: int = 2,
    dropout: float = 0.3,
) -> Task:
    """Sentiment analysis (section 3.4): reviews of two parties, split 80/10/10 by ``seed``, for an LSTM.

    dataset: "snippets" (parties movies, amazon) or "imdb+amazon". limit: reviews per party, 0 = all.
    vocabulary_size: words numbered, the most frequent ones of all parties' training texts. length: words read of each.
    Identical texts never fall on different sides, nor do two sentences of one review where the data says so.
    """
    parties = {}
    for card in dataset.split("+"):
        loaded = text.load(card, data_dir, limit=limit or None, seed=seed)
        if card == "snippets":
            parties.update(loaded)
        else:  # an official train/test split is put together again: the paper cuts 80/10/10 of everything
            parties[card] = concat(list(loaded.values()))
    cut = {}
    for name, reviews in parties.items():
        parts = partition.split(reviews, [0.8, 0.1, 0.1], seed, by_group=reviews.groups is not None)
        cut[name] = [reviews.take(part) for part in parts]
    words = text.vocabulary([train.x for train, _, _ in cut.values()], vocabulary_size)
    encoded = {
        name: Party(*((text.encode(part.x, words, length), part.y) for part in parts)) for name, parts in cut.items()
    }
    build = partial(SentimentLSTM, vocabulary_size, embedding, hidden, layers, dropout)
    return Task(encoded, build, "binary_cross_entropy")


def characters(
    seed: int,
    dataset: str = "hanzi",
    data_dir: str | Path = "",
    classes: int = 40,
    writers: int = 0,
    size: int = 32,
    width: float = 0.25,
    norm: str = "batch",
) -> Task:
    """Chinese character recognition (section 3.4): 20 % of each party's writers test; of the others 20 % validate.

    dataset: "hanzi", "hanzi_hands" (drawn, parties strokes and fonts), "chinese_mnist" (two parties of disjoint
    writers) or "casia_hwdb+hit_or3c". classes: the first so many characters, 0 = all. writers: at most so many per
    party, 0 = all. size: pixels. width: of the network, 1 = the paper's. norm: its normalisation.
    Raises ValueError where a party has too few writers for the split.
    """
    from fl_utils.data import drawn, handwriting
    from fl_utils.models.characters import CharacterCNN

    cards = dataset.split("+")
    parties: dict[str, Examples] = {}
    for card in (card for card in cards if card in drawn.NAMES):
        parties.update(drawn.load(card, size, classes, writers, seed))
    if given := "+".join(card for card in cards if card not in drawn.NAMES):  # together: they share one numbering
        parties.update(handwriting.load(given, data_dir, size, classes, writers, seed))
    labels = 1 + max(int(examples.y.max()) for examples in parties.values())
    build = partial(CharacterCNN, labels, width=width, image_size=size, norm=norm)
    return Task({name: by_writer(name, examples, 0.2, 0.2, seed) for name, examples in parties.items()}, build)


def by_writer(name: str, examples: Examples, test: float, validation: float, seed: int) -> Party:
    """Split a party's examples by who wrote them: a share ``test`` of the writers, ``validation`` of the remaining.

    Each part has at least one writer. Raises ValueError where there are fewer than three writers or one class.
    """
    if examples.groups is None:
        raise ValueError(f"party {name}: its examples do not say who wrote them (groups), so writers cannot be split")
    if len(examples.y.unique()) < 2:
        raise ValueError(f"party {name} has one class: want at least two, or there is nothing to learn")
    writers = np.random.default_rng(seed).permutation(examples.groups.unique().numpy())
    if len(writers) < 3:
        raise ValueError(f"party {name} has {len(writers)} writers: want at least 3, to train, validate and test on")
    tested = min(max(1, round(test * len(writers))), len(writers) - 2)
    validated = max(1, round(validation * (len(writers) - tested)))
    validated = min(validated, len(writers) - tested - 1)
    parts = np.split(writers, [tested, tested + validated])
    indices = [np.flatnonzero(np.isin(examples.groups.numpy(), part)) for part in parts]
    test_part, validation_part, train_part = (examples.take(part) for part in indices)
    return Party(*((part.x, part.y) for part in (train_part, validation_part, test_part)))
