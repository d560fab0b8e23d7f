import math
from concurrent.futures import BrokenExecutor, Executor, Future
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from fl_utils import federation, wire
from fl_utils.data import images, partition
from fl_utils.executors import executor
from fl_utils.federation import Client, ClientDropped, FederationError
from fl_utils.schedules import asynchronous, client_seconds, gossip, mixing, neighbourhoods, staleness_weight
from fl_utils.schedules.asynchrony import timetable
from fl_utils.training import LocalTraining, Trainer, client_seed
from small import LOCAL, clients, mlp, with_batch_norm

CHAIN = [(0, 1), (1, 2), (2, 3)]
ASYNC = partial(asynchronous, mlp, updates=9, local=LOCAL)
GOSSIP = partial(gossip, mlp, graph="ring", rounds=3, local=LOCAL)


# --- both reach what synchronous FedAvg reaches, on real digits


class Digits(nn.Module):
    """784 pixels, 32 hidden units, ten digits."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, images):
        return self.layers(images.float() / 255)


@pytest.fixture(scope="module")
def digits():
    """Eight clients of 150 digits, 800 to test on, and what 30 rounds of synchronous FedAvg reach (%)."""
    everything = images.load("digits", limit=2000, seed=1)["mnist"]
    train, test = (everything.take(part) for part in partition.split(everything, [0.6, 0.4], 1))
    shares = map(train.take, partition.iid(len(train), 8, 3))
    parties = [Client(id, share.x, share.y) for id, share in enumerate(shares)]
    accuracy = lambda trainer: {"accuracy": 100 * trainer.evaluate(test.x, test.y).accuracy}  # noqa: E731
    how = {"local": LocalTraining(1, 20, 0.1), "evaluate": accuracy}
    together = federation.run(Digits, parties, rounds=30, evaluate_every=30, **how).evaluations[-1]["accuracy"]
    return parties, how, together


def test_a_client_alone_stays_far_below_federation_on_the_digits(digits):
    parties, how, together = digits
    for client in parties[:2]:
        alone = federation.run(Digits, [client], rounds=30, evaluate_every=30, **how)
        assert alone.evaluations[-1]["accuracy"] < together - 5
    assert together > 80


def test_asynchronous_reaches_synchronous_fedavg_on_the_digits_within_three_points(digits):
    parties, how, together = digits
    result = asynchronous(Digits, parties, updates=240, evaluate_every=240, **how)
    assert max(update.staleness for update in result.updates) > 5
    assert result.evaluations[-1]["accuracy"] > together - 3


def test_gossip_reaches_synchronous_fedavg_on_the_digits_within_three_points_at_every_client(digits):
    parties, how, together = digits
    result = gossip(Digits, parties, "ring", rounds=30, evaluate_every=30, **how)
    assert result.evaluations[-1]["accuracy"] > together - 3
    trainer = Trainer(Digits)
    for vector in result.vectors.values():
        trainer.vector.copy_(vector)
        assert how["evaluate"](trainer)["accuracy"] > together - 3


# --- asynchronous


def add_one_more(trainer, client, local, seed):
    """No training: the client's state is the one it began from plus (id + 1)."""
    trainer.vector += client.id + 1
    return 0.0


def naive_asynchronous(start, seconds, updates, alpha, exponent):
    """The staleness-weighted mean of :func:`add_one_more`, for one value, from the list of all arrivals."""
    arrivals = sorted((n * s, k) for k, s in seconds.items() for n in range(1, updates + 1))[:updates]
    value, began = start, dict.fromkeys(seconds, (start, 0))
    for version, (_, k) in enumerate(arrivals):
        a = alpha * (version - began[k][1] + 1) ** -exponent
        value = (1 - a) * value + a * (began[k][0] + k + 1)
        began[k] = (value, version + 1)
    return value


@pytest.mark.parametrize(("alpha", "exponent"), [(0.6, 0.5), (1.0, 0.0), (0.9, 2.0)])
def test_the_server_weighs_each_update_by_its_staleness(alpha, exponent):
    seconds = {0: 1.0, 1: 2.5, 2: 0.7, 3: 4.1}
    result = asynchronous(
        mlp,
        clients(),
        updates=17,
        local=LOCAL,
        alpha=alpha,
        staleness_exponent=exponent,
        durations=seconds,
        train=add_one_more,
        initial=torch.zeros(163),
    )
    wanted = naive_asynchronous(0.0, seconds, 17, alpha, exponent)
    torch.testing.assert_close(result.vector, torch.full((163,), wanted), atol=1e-5, rtol=1e-5)
    for update in result.updates:
        assert update.weight == pytest.approx(alpha / (update.staleness + 1) ** exponent)
    assert {update.staleness for update in result.updates} > {0, 1, 2}
    assert [round(staleness_weight(0.6, s, 0.5), 3) for s in (0, 3, 8)] == [0.6, 0.3, 0.2]


def test_arrivals_are_in_the_order_of_virtual_time_and_ties_in_that_of_the_clients():
    assert timetable({5: 2.0, 3: 1.0, 4: 2.0}, 6) == [(1.0, 3), (2.0, 5), (2.0, 3), (2.0, 4), (3.0, 3), (4.0, 5)]
    times = [update.time for update in ASYNC(clients()).updates]
    assert times == sorted(times) and times[0] > 0


def test_seconds_follow_the_examples_with_a_spread_of_their_own():
    parties = clients((30, 60, 90))
    assert client_seconds(parties, 3, spread=0) == pytest.approx({0: 0.5, 1: 1.0, 2: 1.5})
    drawn = client_seconds(parties, 3)
    assert drawn == client_seconds(parties[::-1], 3) != client_seconds(parties, 4)
    logarithms = [math.log(client_seconds(clients((9,)), seed)[0]) for seed in range(200)]
    assert 0.2 < np.std(logarithms) < 0.3


def test_with_one_client_and_all_weight_it_is_that_client_training_on():
    (party,) = clients((40,))
    result = asynchronous(mlp, [party], updates=3, local=LOCAL, alpha=1.0, seed=5)
    alone = federation.run(mlp, [party], rounds=3, local=LOCAL, seed=5)
    assert torch.equal(result.vector, alone.vector)
    assert [u.train_loss for u in result.updates] == [r.train_loss for r in alone.rounds]


def test_each_training_of_a_client_has_a_seed_of_its_own():
    seen = []
    asynchronous(mlp, clients(), updates=12, local=LOCAL, seed=7, train=lambda t, c, s, seed: seen.append(seed) or 0.0)
    assert len(set(seen)) == 12
    assert set(seen) < {client_seed(7, number, id) for number in range(12) for id in range(4)}


def test_asynchronous_counts_all_that_is_sent():
    result = ASYNC(clients())
    state = wire.size(wire.frame(result.vector, kind="state", version=0, client=0))
    assert result.updates[0].bytes_down == state
    assert result.bytes_down == sum(u.bytes_down for u in result.updates) + result.unanswered
    assert result.unanswered // state == 4 and result.bytes_down // state == 9 + 4
    assert all(state < u.bytes_up < state + 60 for u in result.updates)


# --- gossip


def graph_of(size, seed):
    """A random connected graph: a path through all, and some more edges."""
    generator = np.random.default_rng(seed)
    path = generator.permutation(size).tolist()
    more = [tuple(generator.choice(size, 2, replace=False).tolist()) for _ in range(size // 2)]
    return [*pairwise(path), *more]


@pytest.mark.parametrize("seed", range(5))
def test_averaging_with_neighbours_never_moves_the_weighted_mean_and_leads_to_it(seed):
    generator = np.random.default_rng(seed)
    examples = dict(enumerate(generator.integers(1, 100, 9).tolist()))
    rows = mixing(neighbourhoods(graph_of(9, seed), range(9)), examples)
    matrix = np.array([[rows[i].get(j, 0.0) for j in range(9)] for i in range(9)])
    share = np.array(list(examples.values())) / sum(examples.values())
    assert (matrix >= 0).all() and (matrix.diagonal() > 0).all()
    np.testing.assert_allclose(matrix.sum(1), 1)
    np.testing.assert_allclose(share[:, None] * matrix, (share[:, None] * matrix).T, atol=1e-15)
    np.testing.assert_allclose(np.linalg.matrix_power(matrix, 5000), np.tile(share, (9, 1)), atol=1e-6)


def test_equal_clients_have_the_usual_metropolis_weights():
    rows = mixing(neighbourhoods(CHAIN, range(4)), dict.fromkeys(range(4), 25))
    assert rows[1] == pytest.approx({0: 1 / 3, 1: 1 / 3, 2: 1 / 3})
    assert rows[0] == pytest.approx({0: 2 / 3, 1: 1 / 3})


@pytest.mark.parametrize(("build", "rounds"), [(mlp, 1), (mlp, 3), (with_batch_norm, 1)])
def test_on_a_complete_graph_gossip_is_fedavg(build, rounds):
    parties = clients((30, 18, 26, 10))
    together = federation.run(build, parties, rounds=rounds, local=LOCAL, seed=2)
    apart = gossip(build, parties, "complete", rounds=rounds, local=LOCAL, seed=2)
    for vector in [*apart.vectors.values(), apart.vector]:
        torch.testing.assert_close(vector, together.vector, atol=1e-6, rtol=1e-6)
    assert apart.rounds[-1].train_loss == pytest.approx(together.rounds[-1].train_loss, abs=1e-6)
    assert apart.rounds[-1].consensus < 1e-5


def test_on_a_sparse_graph_clients_differ_and_draw_near_once_they_stop_learning():
    parties = clients()
    result = gossip(mlp, parties, CHAIN, rounds=1, local=LOCAL)
    vectors = torch.stack(list(result.vectors.values()))
    share = torch.tensor([len(party) for party in parties]) / 81
    torch.testing.assert_close(result.vector, share @ vectors, atol=1e-6, rtol=1e-6)
    distance = (share @ (vectors - share @ vectors).square().sum(1)).sqrt().item()
    assert result.rounds[0].consensus == pytest.approx(distance, rel=1e-4) and distance > 0.1
    still = LocalTraining(1, 8, 0.0)  # one round of learning, then averages alone
    train = lambda t, c, local, seed: federation.train_locally(t, c, LOCAL if seed in first else still, seed)  # noqa: E731
    first = {client_seed(0, 0, id) for id in range(4)}
    agreed = gossip(mlp, parties, CHAIN, rounds=60, local=LOCAL, train=train)
    assert agreed.rounds[0].consensus == result.rounds[0].consensus
    assert agreed.rounds[-1].consensus < 1e-3 * distance
    torch.testing.assert_close(agreed.vector, result.vector, atol=1e-5, rtol=1e-5)


def test_rounds_may_have_local_epochs_of_their_own():
    parties = clients()
    one = gossip(mlp, parties, CHAIN, rounds=[1, 3], local=LOCAL)
    epochs = []
    gossip(mlp, parties, CHAIN, rounds=[1, 3], local=LOCAL, train=lambda t, c, s, _: epochs.append(s.local_epochs) or 0)
    assert len(one.rounds) == 2 and epochs == [1] * 4 + [3] * 4


def test_gossip_counts_what_goes_over_each_edge():
    result = gossip(mlp, clients(), [(0, 1), (1, 0), (2, 1), (2, 3)], rounds=2, local=LOCAL)
    header = {"kind": "state", "round": 0, "client": 0, "num_examples": 30, "around": 47}
    one = wire.size(wire.frame(result.vector, **header))
    assert set(result.bytes_by_edge) == {(0, 1), (1, 2), (2, 3)}
    assert all(abs(count - 2 * 2 * one) < 20 for count in result.bytes_by_edge.values())
    assert sum(result.bytes_by_edge.values()) == result.bytes_up == result.bytes_down
    assert [r.bytes_sent for r in result.rounds] == [result.bytes_up // 2] * 2


# --- what both promise


@pytest.mark.parametrize("schedule", [ASYNC, GOSSIP])
def test_a_result_is_a_function_of_the_seed_and_the_clients_alone(schedule):
    first, again, other = schedule(clients(), seed=4), schedule(clients(), seed=4), schedule(clients(), seed=5)
    assert torch.equal(first.vector, again.vector) and not torch.equal(first.vector, other.vector)
    evaluate = lambda trainer: {"sum": trainer.vector.sum().item()}  # noqa: E731
    seen = []
    watched = schedule(clients(), seed=4, evaluate=evaluate, evaluate_every=2, progress=seen.append)
    assert torch.equal(first.vector, watched.vector)
    assert watched.evaluations[-1] == {"sum": pytest.approx(first.vector.sum().item())}
    records = watched.rounds if schedule is GOSSIP else watched.updates
    assert seen == records and [r.evaluation is not None for r in records][:3] == [False, True, len(records) == 3]
    start = torch.full((163,), 0.01)
    assert not torch.equal(schedule(clients(), seed=4, initial=start).vector, first.vector)


def test_two_processes_give_the_same_to_the_bit():
    with executor("pool:2") as pool:
        for schedule in (ASYNC, GOSSIP):
            here, there = schedule(clients(), seed=4), schedule(clients(), seed=4, executor=pool)
            assert torch.equal(here.vector, there.vector)
            assert (here.bytes_up, here.bytes_down) == (there.bytes_up, there.bytes_down)
            if schedule is ASYNC:
                assert [u.train_loss for u in here.updates] == [u.train_loss for u in there.updates]
            else:
                assert all(torch.equal(here.vectors[id], there.vectors[id]) for id in here.vectors)


class Waiting(Executor):
    """Runs nothing until a result is asked for, and remembers how many were waiting then."""

    def __init__(self):
        self.under_way, self.most = 0, 0

    def submit(self, task, *arguments):
        outer = self
        self.under_way += 1

        class Lazy(Future):
            def result(self, timeout=None):
                outer.most = max(outer.most, outer.under_way)
                outer.under_way -= 1
                return task(*arguments)

        return Lazy()


@pytest.mark.parametrize("schedule", [ASYNC, GOSSIP])
def test_clients_under_way_at_the_same_time_are_handed_over_together(schedule):
    pool = Waiting()
    there = schedule(clients(), executor=pool)
    assert pool.most == 4
    assert torch.equal(schedule(clients()).vector, there.vector)
    pool = Waiting()
    pool._max_workers = 1
    assert torch.equal(schedule(clients(), executor=pool).vector, there.vector)
    assert pool.most == 3


class Dying(Executor):
    def submit(self, task, *arguments):
        future = Future()
        future.set_exception(BrokenExecutor("killed"))
        return future


class Silent(Executor):
    def submit(self, task, *arguments):
        return Future()


def failing(kind, trainer, client, local, seed):
    if client.id == 2 or kind == "everybody":
        if kind == "drop":
            raise ClientDropped("battery")
        if kind == "nan":
            trainer.vector[7] = float("nan")
            return 0.0
        raise ZeroDivisionError("bad example")
    return federation.train_locally(trainer, client, local, seed)


@pytest.mark.parametrize("schedule", [ASYNC, GOSSIP])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [("raise", "ZeroDivisionError: bad example"), ("drop", r"dropped out \(battery\)"), ("nan", "not finite")],
)
def test_a_client_that_fails_stops_the_run_or_is_left_out(schedule, kind, reason):
    train = partial(failing, kind)
    with pytest.raises(FederationError, match=rf"(update|round) \d: client 2 failed: .*{reason}"):
        schedule(clients(), train=train)
    result = schedule(clients(), train=train, on_failure="skip")
    assert torch.isfinite(result.vector).all()
    if schedule is ASYNC:
        failed = [u for u in result.updates if u.left_out]
        assert failed and {u.client for u in failed} == {2} and {u.weight for u in failed} == {0.0}
        assert {u.bytes_up for u in failed} == {0} and len(result.updates) == 9
    else:
        assert [list(r.left_out) for r in result.rounds] == [[2]] * 3
        begun = gossip(mlp, clients(), rounds=1, local=LocalTraining(1, 8, 0.0)).vectors[2]
        assert torch.allclose(result.vectors[2], begun) and set(result.bytes_by_edge) == {(0, 1), (0, 3)}


@pytest.mark.parametrize("schedule", [ASYNC, GOSSIP])
def test_nobody_left_always_stops(schedule):
    with pytest.raises(FederationError, match=r"4 failures in a row|no client is left"):
        schedule(clients(), train=partial(failing, "everybody"), on_failure="skip")
    with pytest.raises(FederationError, match="a worker process died while clients"):
        schedule(clients(), executor=Dying(), on_failure="skip")
    with pytest.raises(FederationError, match=r"client \d failed: dropped out \(silent for 0.01 s\)"):
        schedule(clients(), executor=Silent(), client_timeout=0.01)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"updates": 0}, "updates is 0"),
        ({"updates": 2.5}, "updates is 2.5: want a whole number"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"alpha": 1.1}, "alpha is 1.1"),
        ({"staleness_exponent": -1}, "staleness_exponent is -1"),
        ({"durations": {0: 1, 1: 1, 2: 1}}, r"durations: clients \[3\] have none, \[\] are unknown"),
        ({"durations": dict.fromkeys(range(5), 1)}, r"clients \[\] have none, \[4\] are unknown"),
        ({"durations": {0: 1, 1: 0, 2: 1, 3: 1}}, "client 1 has 0: want a positive"),
        ({"durations": [1, 1, 1, 1]}, "durations is a list: want {client id: seconds}"),
        ({"on_failure": "ignore"}, "on_failure is 'ignore'"),
        ({"evaluate_every": 0}, "evaluate_every is 0"),
        ({"clients": []}, "clients is empty"),
        ({"initial": torch.zeros(5)}, "5"),
    ],
)
def test_wrong_input_of_asynchronous_is_named_before_anything_is_trained(changed, message):
    def train(*_):
        raise AssertionError("trained")

    with pytest.raises(ValueError, match=message):
        ASYNC(**{"clients": clients(), "train": train} | changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"graph": "star"}, "graph is 'star': want 'ring', 'complete' or a list"),
        ({"graph": [(0, 1), (2, 3)]}, r"not connected: no path leads from client 0 to clients \[2, 3\]"),
        ({"graph": []}, "not connected"),
        ({"graph": [*CHAIN, (3, 4)]}, r"\(3, 4\) names client 4, which does not exist: there are \[0, 1, 2, 3\]"),
        ({"graph": [*CHAIN, (2, 2)]}, r"\(2, 2\) joins client 2 with itself"),
        ({"graph": [(0, 1, 2)]}, r"the edge \(0, 1, 2\) is no pair"),
        ({"graph": [0, 1]}, "the edge 0 is no pair"),
        ({"rounds": 0}, "rounds gives the local epochs"),
        ({"clients": clients()[:1]}, r"gossip among clients \[0\]: want at least two"),
        ({"on_failure": "ignore"}, "on_failure is 'ignore'"),
        ({"initial": torch.zeros(5)}, "5"),
    ],
)
def test_wrong_input_of_gossip_is_named_before_anything_is_trained(changed, message):
    def train(*_):
        raise AssertionError("trained")

    with pytest.raises(ValueError, match=message):
        GOSSIP(**{"clients": clients(), "train": train} | changed)


def test_a_ring_of_two_is_one_edge_and_ids_need_not_be_consecutive():
    assert neighbourhoods("ring", [7, 3]) == {7: [3], 3: [7]}
    assert neighbourhoods("ring", [7, 3, 9, 1]) == {7: [3, 1], 3: [7, 9], 9: [3, 1], 1: [7, 9]}
    assert neighbourhoods("complete", [7, 3, 9]) == {7: [3, 9], 3: [7, 9], 9: [7, 3]}
