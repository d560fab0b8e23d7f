import logging
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from fl_utils import federation, together, training_choice
from fl_utils.federation import Client, FederationError
from fl_utils.models.vision import SmallCNN, two_nn
from fl_utils.recording import CannotRecord, record
from fl_utils.training import LocalTraining, Trainer
from small import LOCAL, clients, mlp, plain_mlp, with_batch_norm

NEAR = {"atol": 1e-5, "rtol": 1e-5}  # how far the two ways may be apart, by rounding
EQUAL = (24, 24, 24, 24)


def never(*_):
    raise AssertionError("a client trained by turns")


def both(build, parties, **settings) -> federation.Result:
    """A federation by turns and one together, which must agree; the second."""
    settings = {"rounds": 2, "local": LOCAL, "seed": 3, **settings}
    by_turns = federation.run(build, parties, **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_choice, "_inline", never)  # nor does a group that fails fall back unseen
        at_once = federation.run(build, parties, together="always", **settings)
    assert at_once.training == {"how": "together", "why": "asked for"}
    assert all(r.together for r in at_once.rounds)
    assert not any(r.together for r in by_turns.rounds)
    torch.testing.assert_close(at_once.vector, by_turns.vector, **NEAR)
    assert (by_turns.vector - federation.begin(build, "cpu", settings["seed"])[1]).abs().max() > 1e-3
    for one, other in zip(by_turns.rounds, at_once.rounds, strict=True):
        assert one.cohort == other.cohort
        assert (one.bytes_up, one.bytes_down) == (other.bytes_up, other.bytes_down)
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-5)
    return at_once


def images(sizes) -> list[Client]:
    generator = torch.Generator().manual_seed(0)
    return [
        Client(
            id,
            torch.randint(0, 256, (size, 1, 28, 28), generator=generator, dtype=torch.uint8),
            torch.randint(0, 10, (size,), generator=generator),
        )
        for id, size in enumerate(sizes)
    ]


# --- the same result


@pytest.mark.parametrize("sizes", [(24, 24, 24), (26, 26, 9, 1)])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"momentum": 0.9},
        {"weight_decay": 0.1},
        {"clip_norm": 0.2},
        {"momentum": 0.5, "weight_decay": 0.1, "clip_norm": 0.2},
        {"batch_size": 0},
        {"local_epochs": 3, "batch_size": 5},
    ],
    ids=lambda settings: "-".join(map(str, settings)) or "plain",
)
def test_weights_and_losses_are_those_of_training_by_turns(sizes, settings):
    local = LocalTraining(**{"local_epochs": 2, "batch_size": 8, "learning_rate": 0.1, **settings})
    both(plain_mlp, clients(sizes), local=local)


@pytest.mark.parametrize("build", [two_nn, partial(SmallCNN, 10, 4, 16)], ids=["2NN", "CNN"])
def test_networks_of_images(build):
    both(build, images((24, 24, 13, 13, 24)), local=LocalTraining(1, 10, 0.05))


def test_part_of_the_clients_in_each_round_in_the_cohorts_order():
    parties = clients((16, 16, 16, 20, 20, 16, 16, 9))
    both(plain_mlp, parties, client_fraction=0.5, rounds=4)
    both(plain_mlp, parties, client_fraction=0.5, rule=federation.polyak_rule)

    def rule_that_keeps_its_vectors(old, updates):
        return torch.stack([vector for vector, _ in list(updates)]).median(0).values

    both(plain_mlp, parties, rule=rule_that_keeps_its_vectors)


class Tied(nn.Module):
    """A weight used twice, one frozen, one without dimensions, one that no output depends on."""

    def __init__(self):
        super().__init__()
        self.first, self.scale, self.last = nn.Linear(6, 6), nn.Parameter(torch.tensor(1.5)), nn.Linear(6, 3)
        self.unused, self.norm = nn.Parameter(torch.ones(4)), nn.LayerNorm(6)
        self.last.weight.requires_grad_(False)

    def forward(self, x):
        return self.last(self.norm(self.first(self.first(x).relu_()).tanh() * self.scale))


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_shared_frozen_scalar_and_unused_parameters(momentum):
    both(Tied, clients(), local=LocalTraining(2, 8, 0.1, momentum=momentum))


class Binary(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 1)

    def forward(self, x):
        return self.linear(x).squeeze(1)


@pytest.mark.parametrize("loss", ["binary_cross_entropy", "masked_absolute"])
def test_the_other_losses(loss):
    parties = [
        Client(c.id, c.x, (c.y == 1) * 1.0 if loss == "binary_cross_entropy" else c.x[:, 0].relu()) for c in clients()
    ]
    both(Binary, parties, local=LocalTraining(2, 8, 0.1, loss=loss))


def test_a_label_to_be_ignored_counts_as_in_training_by_turns():
    parties = clients((16, 16))
    parties[1].y[::3] = -100
    both(plain_mlp, parties)


def test_a_rate_that_falls_holds_for_a_step_recorded_before():
    terraces = federation.Terraces(LOCAL, factor=0.1, lowerings=2, patience=1, metric="train_loss", margin=10.0)
    result = both(plain_mlp, clients(EQUAL), local=terraces, rounds=4)
    assert len({round(r.train_loss, 6) for r in result.rounds}) == 4


@pytest.mark.parametrize("bytes_of_state", [1, 4 * 163 * 3, 1 << 20])
def test_chunks_of_any_size_give_the_same_result(bytes_of_state, monkeypatch):
    monkeypatch.setattr(together, "CHUNK_BYTES", bytes_of_state)
    parties = clients((12,) * 7)
    most = together.Cohort(Trainer(plain_mlp), LOCAL).most
    assert most == {1: 1, 4 * 163 * 3: 3, 1 << 20: together.CHUNK_CLIENTS}[bytes_of_state]
    assert [len(group) for group in together.groups(parties, most)] == {1: [1] * 7, 3: [3, 3, 1]}.get(most, [7])
    both(plain_mlp, parties)


def test_only_the_last_recordings_are_kept(monkeypatch):
    monkeypatch.setattr(together, "KEPT", 2)
    both(plain_mlp, clients((30, 17, 25, 9)))


def test_nothing_is_left_in_the_random_state():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for how in ("auto", "always"):
        federation.run(plain_mlp, clients(EQUAL), rounds=2, local=LOCAL, together=how)
        assert torch.equal(torch.get_rng_state(), before)


# --- what cannot train together


def doubled(x, generator):
    return 2 * x


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"build": mlp}, "draws random numbers"),
        ({"build": with_batch_norm}, "buffers that training changes"),
        ({"local": LocalTraining(1, 8, optimizer="adam")}, "the optimizer is 'adam'"),
        ({"local": LocalTraining(1, 8, augment=doubled)}, "augment"),
        ({"train": lambda *arguments: federation.train_locally(*arguments)}, "train is a function of its own"),
    ],
)
def test_what_cannot_is_refused_or_trains_by_turns(arguments, reason):
    arguments = {"build": plain_mlp, "clients": clients(EQUAL), "rounds": 2, "local": LOCAL, "seed": 3, **arguments}
    with pytest.raises(ValueError, match=f"together is 'always', but .*{reason}"):
        federation.run(**arguments, together="always")
    result = federation.run(**arguments, together="auto")
    assert result.training["how"] == "sequential"
    assert reason in result.training["why"]
    assert torch.equal(result.vector, federation.run(**arguments).vector)


def test_an_executor_is_refused():
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="'always', but an executor"):
        federation.run(plain_mlp, clients(), rounds=1, local=LOCAL, together="always", executor=pool)


@pytest.mark.parametrize("wanted", ["", "sometimes", True])
def test_an_unknown_way_is_refused(wanted):
    with pytest.raises(ValueError, match=r"together is .*: want 'never', 'auto' or 'always'"):
        federation.run(plain_mlp, clients(), rounds=1, local=LOCAL, together=wanted)


class Counting(nn.Module):
    """Does something else in every step, unseen by whoever records one."""

    def __init__(self):
        super().__init__()
        self.linear, self.steps = nn.Linear(6, 3), 0

    def forward(self, x):
        self.steps += 1
        return self.linear(x) * self.steps


class Looking(nn.Module):
    """Goes by a value."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x):
        return self.linear(x) if x.sum() > 0 else -self.linear(x)


class Remembering(nn.Module):
    """Changes a tensor that is not among its state."""

    def __init__(self):
        super().__init__()
        self.linear, self.seen = nn.Linear(6, 3), torch.zeros(())

    def forward(self, x):
        self.seen += 1
        return self.linear(x) / self.seen


@pytest.mark.parametrize(
    ("build", "reason"),
    [(Counting, "depend on more than weights and minibatch"), (Looking, "vmap"), (Remembering, "outlives the step")],
)
def test_a_step_that_is_not_the_same_every_time_is_refused(build, reason):
    with pytest.raises(ValueError, match=f"together is 'always', but .*{reason}"):
        federation.run(build, clients(EQUAL), rounds=1, local=LOCAL, together="always")


# --- clients that fail


@pytest.mark.parametrize("bad", [0, 2])
def test_a_client_that_fails_is_named_and_the_others_count(bad, caplog):
    parties = clients((16, 16, 16, 16))
    parties[bad].y[3] = 7
    run = partial(federation.run, plain_mlp, parties, rounds=1, local=LOCAL, seed=3)
    with pytest.raises(FederationError, match=f"round 0: client {bad} failed: IndexError"):
        run(together="always")
    skipped = run(together="always", on_failure="skip")
    assert list(skipped.rounds[0].left_out) == [bad]
    torch.testing.assert_close(skipped.vector, run(on_failure="skip").vector, **NEAR)
    assert "train by turns" in caplog.text


def test_a_client_whose_weights_become_infinite_is_left_out_alone():
    parties = clients((16, 16, 16, 16))
    parties[1].x[3] = float("inf")
    run = partial(federation.run, plain_mlp, parties, rounds=1, local=LOCAL, seed=3, on_failure="skip")
    result = run(together="always")
    assert list(result.rounds[0].left_out) == [1]
    torch.testing.assert_close(result.vector, run().vector, **NEAR)


# --- the choice


@pytest.mark.parametrize(("times", "how"), [((2e-3, 1e-3, 0.0), "together"), ((1e-3, 2e-3, 0.0), "sequential")])
def test_auto_takes_the_faster_way_and_says_so(times, how, monkeypatch, caplog):
    monkeypatch.setattr(training_choice, "measure", lambda *_: times)
    with caplog.at_level(logging.INFO, "fl_utils.federation"):
        result = federation.run(plain_mlp, clients(EQUAL), rounds=2, local=LOCAL, seed=3, together="auto")
    assert result.training["how"] == how
    assert (result.training["sequential_s"], result.training["together_s"]) == times[:2]
    assert [record.getMessage() for record in caplog.records] == [f"clients train {how}: {result.training['why']}"]
    assert [r.together for r in result.rounds] == [how == "together"] * 2
    other = federation.run(plain_mlp, clients(EQUAL), rounds=2, local=LOCAL, seed=3)
    torch.testing.assert_close(result.vector, other.vector, **NEAR)
    assert torch.equal(result.vector, other.vector) == (how == "sequential")


def test_recordings_count_by_the_steps_that_use_them(monkeypatch):
    monkeypatch.setattr(training_choice, "measure", lambda *_: (2e-3, 1e-3, 0.1))
    run = partial(federation.run, plain_mlp, clients(EQUAL), local=LOCAL, together="auto", progress=None)
    few, many = run(rounds=1).training, run(rounds=20).training
    assert (few["how"], many["how"]) == ("sequential", "together")
    assert few["together_s"] == pytest.approx(1e-3 + 0.1 / (2 * 4 * 3))  # 2 epochs, 4 clients, 3 steps, one shape


def test_the_probe_measures_both_ways_and_leaves_no_trace():
    trainer = Trainer(plain_mlp)
    before, random = trainer.vector.clone(), torch.get_rng_state()
    times = training_choice.measure(
        together.Cohort(trainer, LOCAL), clients(EQUAL), torch.zeros_like(before), LOCAL, seed=0, number=0
    )
    assert all(0 <= seconds < 60 for seconds in times)
    assert torch.equal(trainer.vector, before)
    assert torch.equal(torch.get_rng_state(), random)


def test_auto_without_equal_sizes_and_batches_trains_by_turns():
    local = LocalTraining(1, 0, 0.1)
    assert federation.run(plain_mlp, clients(), rounds=1, local=local, together="auto").training["how"] == "sequential"


@pytest.mark.parametrize("how", ["together", "sequential"])
def test_a_resumed_run_goes_on_as_it_began(how, tmp_path, monkeypatch):
    times = {"together": (2.0, 1.0, 0.0), "sequential": (1.0, 2.0, 0.0)}
    monkeypatch.setattr(training_choice, "measure", lambda *_: times[how])
    run = partial(federation.run, plain_mlp, clients(EQUAL), local=LOCAL, seed=3, together="auto")
    unbroken = run(rounds=4)
    run(rounds=2, checkpoint=tmp_path / "state")
    monkeypatch.setattr(training_choice, "measure", never)
    resumed = run(rounds=4, checkpoint=tmp_path / "state")
    assert torch.equal(resumed.vector, unbroken.vector)
    assert resumed.training == {"how": how, "why": "the rounds before were"}
    other = {"together": "never", "sequential": "always"}[how]
    with pytest.raises(ValueError, match=f"together is '{other}', but the checkpoint's rounds trained"):
        run(rounds=4, checkpoint=tmp_path / "state", together=other)


# --- recordings


def linear_step(parameters, x, y):
    leaves = [parameter.detach().requires_grad_() for parameter in parameters]
    loss = torch.func.vmap(lambda w, x, y: functional.mse_loss(x @ w, y))(*leaves, x, y)
    return loss.detach(), list(torch.autograd.grad(loss.sum(), leaves))


@pytest.mark.parametrize("fuse", [False, True])
def test_a_recording_is_its_step(fuse):
    torch.manual_seed(0)
    weight, x, y = torch.randn(3, 4, 2), torch.randn(3, 5, 4), torch.randn(3, 5, 2)
    replay, left = record(linear_step, [weight], [x, y], fuse)
    assert left == (() if fuse else (0,))
    x, y = torch.randn(3, 5, 4), torch.randn(3, 5, 2)
    before = weight.clone()
    loss, (gradient,) = linear_step([weight], x, y)
    found, *gradients = replay(x, y, alpha=-0.1, beta=0.9)
    torch.testing.assert_close(found, loss)
    if fuse:
        torch.testing.assert_close(weight, 0.9 * before - 0.1 * gradient)
    else:
        torch.testing.assert_close(gradients[0], gradient)
        assert torch.equal(weight, before)


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (lambda p, x: (torch.rand(3), [x]), "random numbers"),
        (lambda p, x: (x * x.sum().item(), [x]), "Python number"),
        (lambda p, x: (x[x > 0], [x]), "shape depends on the data"),
        (lambda p, x: (p[0].add_(1), [x]), "outlives the step"),
        (lambda p, x: (x.add_(1), [x]), "outlives the step"),
        (lambda p, x: (torch.add(x, 1, out=p[0]), [x]), "outlives the step"),
        (lambda p, x: (x, torch._foreach_mul_([x * 2, p[0]], 2.0) or [x]), "outlives the step"),
    ],
)
def test_what_a_recording_cannot_repeat_is_refused(step, reason):
    with pytest.raises(CannotRecord, match=reason):
        record(step, [torch.ones(3)], [torch.ones(3)], fuse=False)
