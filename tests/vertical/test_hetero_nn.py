"""Two processes against one: the same weights after every step; and what happens when the parties do not fit."""

import json
import queue
import threading
import time
from functools import cache

import numpy as np
import pytest
import torch

from fl_utils.data.ratings import Ratings
from fl_utils.links import LinkError
from fl_utils.vertical import channel, encryption, hetero_nn, recommendation, session
from fl_utils.vertical.joint import Adam, FeatureSide, Joint, RatingSide, Terms

FEATURES = 7
NAMES = ("feature party", "rating party")
MODEL = {"users": 12, "items": 15, "embedding": 4, "hidden": 5, "mean": 3.2}


def draw(rows=80, test=20, seed=0):
    """Both parties' small data."""
    random = np.random.default_rng(seed)
    pairs = np.stack(
        [random.integers(0, MODEL["users"], rows + test), random.integers(0, MODEL["items"], rows + test)], 1
    )
    of_user, of_item = random.normal(size=(MODEL["users"], 3)), random.normal(size=(MODEL["items"], FEATURES - 3))
    x = np.concatenate([of_user[pairs[:, 0]], of_item[pairs[:, 1]]], 1).astype(np.float32)
    y, ids = random.integers(1, 6, rows).astype(np.float32), np.arange(rows + test)
    return (
        session.FeatureData(x[:rows], x[rows:], ids),
        session.RatingData(pairs[:rows], y, pairs[rows:], ids, MODEL),
    )


def joint_of(terms, features, ratings):
    side = FeatureSide.draw(terms, FEATURES, features.seed)
    return Joint(terms, RatingSide.draw(terms, seed=ratings.seed, **ratings.model), side)


def tensors(features, ratings):
    return [torch.from_numpy(part) for part in (ratings.train, ratings.ratings, features.train)]


@cache
def trained():
    """One training by two processes, with its trace, and what it was given."""
    terms, given = Terms(width=5, outputs=4, batch_size=32, interactive_rate=0.1, epochs=4), draw()
    files = {}

    def look(role, job):
        assert ("model" in job) == (role == "ratings")
        with np.load(job["data"], allow_pickle=False) as file:
            files[role] = {name: file[name].shape for name in file.files}

    found = session.train(terms, *given, trace=True, timeout=60, interference=look)
    assert files["features"] == {"train": (80, FEATURES), "test": (20, FEATURES), "ids": (100,)}  # no rating among them
    assert files["ratings"] == {"train": (80, 2), "ratings": (80,), "test": (20, 2), "ids": (100,)}  # and no feature
    return terms, given, found


def test_two_processes_have_the_weights_of_the_plain_training_after_every_step():
    terms, (features, ratings), found = trained()
    joint = joint_of(terms, features, ratings)
    pairs, y, x = tensors(features, ratings)
    batches = list(terms.batches(len(pairs)))
    assert len(batches) == len(found.losses) == 12
    start = {name: value.clone() for name, value in joint.model.state_dict().items()}
    for step, rows in enumerate(batches):
        loss = joint.step(pairs[rows], y[rows], x[rows])
        assert abs(loss - found.losses[step]) < 1e-3
        ours = session.joined_state(found.trace["features"][step], found.trace["ratings"][step])
        plain = joint.model.state_dict()
        assert ours.keys() == plain.keys()
        for name, value in plain.items():
            assert (ours[name] - value).abs().max() < 1e-3, (step, name)
    moved = {name: (value - start[name]).abs().max().item() for name, value in plain.items()}
    assert min(moved.values()) > 2e-3  # there was something to compare: everything has moved
    expected = joint.predict(torch.from_numpy(ratings.test), torch.from_numpy(features.test))
    assert np.abs(found.predicted - expected.numpy()).max() < 1e-3


def test_neither_share_is_the_weights_and_both_walk():
    """What B holds differs from W_A, and changes at every step by far more than the training does."""
    terms, _, found = trained()
    share = np.stack([state["share"] for state in found.trace["features"]])
    own = np.stack([state["share"] for state in found.trace["ratings"]])
    assert np.abs(share).mean() > 0.1
    jumps, learned = np.abs(np.diff(own, axis=0)).mean(), np.abs(np.diff(share + own, axis=0)).mean()
    assert jumps > 0.4 * terms.share_step / 2 and learned < jumps / 5


def test_what_was_sent_is_listed_and_counted():
    terms, _, found = trained()
    steps = len(found.losses)
    often = {what: count for (_, what), (count, _) in found.messages.items()}
    assert set(found.messages) == {
        *(("features", what) for what in ("agree", "key", "rows", "weights", "activations", "weights' gradient")),
        *(("ratings", what) for what in ("agree", "products", "gradient", "slopes")),
    }
    assert often["weights"] == often["gradient"] == 2 * steps  # announced, then sent
    assert often["rows"] == 2 * (steps + 1) and often["weights' gradient"] == steps
    assert sum(found.bytes_sent.values()) > found.counts.bytes > 0
    assert found.counts.encryptions == steps * (1 + terms.outputs)
    assert found.counts.decryptions == steps * (2 * terms.outputs + 1)


class Recorded:
    """A channel between two parties in one process, which keeps all that passes."""

    def __init__(self, id, boxes, log):
        self.boxes, self.id, self.log = boxes, id, log

    def send(self, what, value):
        self.log.append((self.id, what, value))
        self.boxes[1 - self.id].put(value)

    def receive(self):
        return self.boxes[self.id].get(timeout=30)

    def __getattr__(self, name):
        if name == "send_sealed":
            return lambda sealed: self.send(sealed.kind, sealed)
        return self.send if name.startswith("send") else lambda *_: self.receive()


def one_step(terms, features, ratings, log):
    """One step between two threads, all rows as one batch; both parties."""
    boxes = [queue.Queue(), queue.Queue()]
    pairs, y, x = tensors(features, ratings)
    sides = FeatureSide.draw(terms, FEATURES, 1), RatingSide.draw(terms, seed=2, **MODEL)
    parties = {}

    def feature():
        parties["a"] = hetero_nn.FeatureParty(Recorded(0, boxes, log), terms, sides[0], encryption.owner(terms.scheme))
        parties["a"].step(x)

    thread = threading.Thread(target=feature)
    thread.start()
    parties["b"] = hetero_nn.RatingParty(Recorded(1, boxes, log), terms, sides[1], encryption.evaluator)
    parties["b"].step(pairs, y)
    thread.join(30)
    return parties


def test_nothing_in_the_clear_says_what_it_must_not():
    """A opens noise; what goes back in the clear is masked by A's own numbers, different each time."""
    terms, (features, ratings) = Terms(width=5, outputs=4, batch_size=80), draw()
    logs = [], []
    owners = [one_step(terms, features, ratings, log)["a"].owner for log in logs]
    opened = []
    for log, owner in zip(logs, owners, strict=True):
        assert [(who, what) for who, what, _ in log if what != "send_bytes"][1:] == [
            (0, "rows"),
            (0, "weights"),
            (1, "products"),
            (0, "activations"),
            (1, "gradient"),
            (1, "slopes"),
            (0, "weights' gradient"),
        ]
        said = {what: value for _, what, value in log}
        opened.append([owner.open(said["products"]), owner.open(said["gradient"])])
        for masked in (*opened[-1], said["activations"]):
            assert np.median(np.abs(masked)) > 2.0**28
        assert np.abs(said["weights' gradient"] - opened[-1][1]).min() > 0
        assert np.abs(said["activations"] - opened[-1][0]).mean() > 0.05  # alpha E lies upon it from the first step on
    for first, second in zip(*opened, strict=True):
        assert np.abs(first - second).min() > 1


def test_under_paillier_a_step_is_the_plain_one_too():
    terms, (features, ratings) = Terms(width=3, outputs=2, batch_size=4, scheme="paillier"), draw(4, 1)
    parties = one_step(terms, features, ratings, [])
    joint = Joint(terms, RatingSide.draw(terms, seed=2, **MODEL), FeatureSide.draw(terms, FEATURES, 1))
    joint.step(*tensors(features, ratings))
    a, b = parties["a"].side, parties["b"].side
    assert ((a.share + b.share).T - joint.model.interactive.weight).abs().max() < 1e-5
    for ours, plain in ((a.bottom, joint.model.auxiliary), (b.bottom, joint.model.bottom), (b.top, joint.model.top)):
        for first, second in zip(ours.parameters(), plain.parameters(), strict=True):
            assert (first - second).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": np.arange(5)[::-1]}, "as many rows, but not the same ones in the same order"),
        ({"terms": Terms(batch_size=16)}, "batch_size is 256 at feature party and 16 at rating party"),
        ({"counts": {"training": 4, "test": 2}}, "feature party has 4 training rows, rating party has 5: align"),
    ],
)
def test_parties_that_do_not_agree_stop_both(change, message):
    logs, boxes, errors = [], [queue.Queue(), queue.Queue()], {}

    def play(id):
        mine = {"terms": Terms(), "counts": {"training": 4, "test": 2}, "ids": np.arange(5)}
        if id == 1:
            mine |= {"counts": {"training": 5, "test": 2}} if "counts" in change else change
        link = Recorded(id, boxes, logs)
        link.mesh = type("Mesh", (), {"id": id, "names": NAMES})
        link.peer = 1 - id
        try:
            hetero_nn.agree(link, NAMES[id], **mine)
        except ValueError as error:
            errors[id] = str(error)

    threads = [threading.Thread(target=play, args=(id,)) for id in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert set(errors) == {0, 1}
    assert message in errors[0]


def test_a_party_that_dies_ends_the_other():
    features, ratings = draw()

    def kill(role, job):
        if role == "features":
            job["die_at"] = 1

    started = time.monotonic()
    with pytest.raises(session.SessionFailed, match="party of features stopped: its process ended") as failure:
        session.train(Terms(width=5, outputs=4, batch_size=20), features, ratings, timeout=30, interference=kill)
    assert time.monotonic() - started < 120
    assert "feature party" in failure.value.reports["ratings"]["error"]


def test_a_batch_of_another_size_is_refused():
    """B's own check, where A's batch is not the one that is due."""
    terms, (features, ratings) = Terms(width=5, outputs=4), draw()
    pairs, y, _ = tensors(features, ratings)
    owner = encryption.owner("ckks")

    class Feeds:
        def __init__(self, rows):
            self.sealed = {
                "rows": owner.seal_rows(np.zeros((rows, 5))),
                "weights": owner.seal_weights(np.zeros((5, 4)), 7),
            }

        def receive_bytes(self, what):
            return owner.public()

        def receive_sealed(self, kind):
            return self.sealed[kind]

    for rows, message in [(7, r"of shape \[7, 5\] came where \[80, 5\] is due"), (80, "laid out for 7 rows")]:
        party = hetero_nn.RatingParty(Feeds(rows), terms, RatingSide.draw(terms, seed=2, **MODEL), encryption.evaluator)
        with pytest.raises(ValueError, match=message):
            party.step(pairs, y)


class _Mesh:
    """A link whose peer says what it is given to say."""

    names, bytes_up = ("feature party", "rating party"), 0

    def __init__(self, *said):
        self.said = list(said)

    def exchange(self, phase, kind, outgoing, incoming):
        return {peer: self.said.pop(0) for peer in incoming}


@pytest.mark.parametrize(
    "said", [b"[]", b"{", b'{"what": "rows"}', b'{"what": "rows", "bytes": -1}', b'{"what": "key", "bytes": 5}']
)
def test_announcements_that_make_no_sense(said):
    with pytest.raises(LinkError, match="rating party in phase 'rows'"):
        channel.Channel(_Mesh(said), 1).receive_bytes("rows")


def test_an_announcement_beyond_any_message():
    said = json.dumps({"what": "rows", "bytes": channel.LARGEST + 1}).encode()
    with pytest.raises(LinkError, match="want 'rows' of up to 134217728 bytes"):
        channel.Channel(_Mesh(said), 1).receive_bytes("rows")


def test_adam_is_torchs():
    torch.manual_seed(0)
    ours, theirs = torch.randn(4, 3), torch.nn.Parameter(torch.zeros(4, 3))
    theirs.data.copy_(ours)
    adam = Adam([ours], 0.01, [0.1])
    reference = torch.optim.Adam([theirs], lr=0.01, weight_decay=0.1)
    for _ in range(5):
        gradient = torch.randn(4, 3)
        adam.step([gradient])
        theirs.grad = gradient
        reference.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_batches_are_a_function_of_the_terms():
    terms = Terms(batch_size=7, epochs=2, seed=3)
    batches = list(terms.batches(20))
    assert [len(rows) for rows in batches] == [7, 7, 6, 7, 7, 6]
    assert sorted(torch.cat(batches[:3]).tolist()) == list(range(20)) and not torch.equal(batches[0], batches[3])
    assert all(torch.equal(a, b) for a, b in zip(batches, terms.batches(20), strict=True))
    assert len(list(Terms(batch_size=7, epochs=2, steps=4).batches(20))) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "width is 0"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"share_step": 0.0}, "share_step must be above 0"),
        ({"scheme": "rsa"}, "scheme is 'rsa'"),
    ],
)
def test_terms_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        Terms(**change)


def test_a_share_that_would_outgrow_the_encryption_is_refused_before_any_work():
    with pytest.raises(ValueError, match=r"share_step is 0\.125: over 40000 steps .* take a share_step of"):
        Terms(batch_size=2, epochs=1).check_rows(80_000)
    Terms(batch_size=2, epochs=1, share_step=0.02).check_rows(80_000)


def test_data_of_the_wrong_shape():
    features, ratings = draw()
    with pytest.raises(ValueError, match=r"ratings: train has shape \[80, 7\]: want \[rows, 2\]"):
        session.train(Terms(), features, session.RatingData(features.train, *list(vars(ratings).values())[1:]))
    with pytest.raises(ValueError, match="features: 99 ids for 80 \\+ 20 rows"):
        session.train(Terms(), session.FeatureData(features.train, features.test, features.ids[1:]), ratings)


def test_scaled_columns():
    table = np.array([[20, 0, 1], [40, 1, 1], [60, 0, 0]], np.float32)
    found = recommendation.scaled(table)
    assert np.allclose(found[:, 0], [-1.2247, 0, 1.2247], atol=1e-4) and np.array_equal(found[:, 1:], table[:, 1:])
    assert np.array_equal(table[:, 0], [20, 40, 60])


@pytest.fixture
def films(monkeypatch):
    """A small table of ratings in the place of MovieLens: a user's first column and a film's say who they are."""
    random = np.random.default_rng(0)
    users, items, count = 30, 20, 400
    pairs = random.permutation(users * items)[:count]
    table = Ratings(
        user=pairs // items,
        item=pairs % items,
        rating=random.integers(1, 6, count).astype(np.float32),
        timestamp=np.arange(count),
        user_ids=np.arange(users) * 7 + 1,
        item_ids=np.arange(items) * 3 + 2,
        user_features=np.stack([np.arange(users), np.arange(users) % 2], 1).astype(np.float32),
        item_features=np.stack([np.arange(items), np.arange(items) % 2], 1).astype(np.float32),
        user_feature_names=("number", "odd"),
        item_feature_names=("number", "odd"),
    )
    monkeypatch.setattr(recommendation.ratings, "load", lambda name, data_dir="": table)
    return table


@pytest.mark.parametrize("known", [1.0, 0.8])
def test_aligned_columns_are_those_of_the_right_user_and_film(films, known):
    task = recommendation.prepare(known_users=known, fraction=0.5, seed=4)
    stars = {(u, i): r for u, i, r in zip(films.user, films.item, films.rating, strict=True)}
    numbers = [recommendation.scaled(part)[:, 0] for part in (films.user_features, films.item_features)]
    for features, pairs, given in (
        (task.features.train, task.ratings.train, task.ratings.ratings),
        (task.features.test, task.ratings.test, task.truth.numpy()),
    ):
        assert [stars[u, i] for u, i in pairs.tolist()] == given.tolist()
        assert np.allclose(features[:, 0], numbers[0][pairs[:, 0]]) and np.allclose(
            features[:, 2], numbers[1][pairs[:, 1]]
        )
        assert np.array_equal(features[:, 1], pairs[:, 0] % 2) and np.array_equal(features[:, 3], pairs[:, 1] % 2)
    seen = {tuple(pair) for pair in task.ratings.train.tolist()} & {tuple(pair) for pair in task.ratings.test.tolist()}
    assert not seen and np.array_equal(task.features.ids, task.ratings.ids)
    assert (len(task.users.first) == 30 and task.rows == 400) if known == 1 else len(task.users.first) < 24
    assert len(task.ratings.train) == (task.rows - int(0.2 * task.rows)) // 2


def test_training_in_the_clear_begins_where_the_parties_do(films):
    task, terms = recommendation.prepare(seed=1), Terms(width=5, outputs=4, batch_size=32, epochs=3)
    joint, error = recommendation.in_the_clear(task, terms, auxiliary=True)
    assert joint.model.auxiliary.linear.in_features == 4 and 0 < error < 10
    again, _ = recommendation.in_the_clear(task, terms, auxiliary=True)
    assert all(torch.equal(a, b) for a, b in zip(joint.model.parameters(), again.model.parameters(), strict=True))
    alone, _ = recommendation.in_the_clear(task, terms, auxiliary=False)
    assert alone.model.auxiliary is None


@pytest.mark.parametrize("wrong", [{"fraction": 0.0}, {"known_users": 1.5}, {"test": 0.95}])
def test_shares_out_of_range(films, wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is {next(iter(wrong.values()))}: want a share"):
        recommendation.prepare(**wrong)


def test_nobody_known_to_both(films):
    with pytest.raises(
        ValueError, match="0 ratings of users whom both parties know: want at least 10; raise known_users"
    ):
        recommendation.prepare(known_users=0.01, seed=3)
