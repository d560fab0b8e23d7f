"""Populations: clients that are made when they are drawn, and never walked."""

from __future__ import annotations

import time
import tracemalloc
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_utils import federation
from fl_utils.data import partition
from fl_utils.executors import executor
from fl_utils.federation import Client
from fl_utils.populations import Draws, Population, Slices
from small import LOCAL, examples, plain_mlp

X, Y = examples(400)


def listed(population: Population) -> list[Client]:
    return [Client(client.id, client.x.clone(), client.y.clone()) for client in population]


class Watched(Population):
    """Notes which clients are made."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.made = []

    def _make(self, id):
        self.made.append(id)
        return super()._make(id)


def test_clients_hold_what_their_parts_say():
    parts = partition.dirichlet_labels(Y.numpy(), 7, 0.5, 0)
    population = Population.of(X, Y, parts)
    assert (len(population), list(population.ids)) == (7, list(range(7)))
    for number, (part, client) in enumerate(zip(parts, population, strict=True)):
        assert (client.id, len(client)) == (number, len(part))
        assert torch.equal(client.x, X[torch.from_numpy(part)])
        assert torch.equal(client.y, Y[torch.from_numpy(part)])
    assert population[-1].id == 6
    assert [client.id for client in population[2:5]] == [2, 3, 4]
    for beyond in (7, -8):
        with pytest.raises(IndexError):
            population[beyond]


@given(st.lists(st.lists(st.integers(0, 399), min_size=1, max_size=20), min_size=1, max_size=12))
def test_slices_hold_any_parts(parts):
    slices = Slices.of(parts)
    assert [slices[number].tolist() for number in range(len(parts))] == parts
    assert slices.indices.dtype == np.int32
    assert slices.highest == max(map(max, parts))
    assert [slices.owner(int(place)) for place in slices.offsets[:-1]] == list(range(len(parts)))


def test_drawn_clients_are_a_function_of_seed_and_id():
    draws = Draws(clients=1_000_000, per_client=50, total=400, seed=3)
    one = draws[999_999]
    assert (one.dtype, len(set(one.tolist())), one.max() < 400) == (np.int64, 50, True)
    assert np.array_equal(one, Draws(1_000_000, 50, 400, 3)[999_999])
    assert not np.array_equal(one, draws[999_998])
    assert not np.array_equal(one, Draws(1_000_000, 50, 400, 4)[999_999])
    assert len({tuple(draws[number]) for number in range(100)}) == 100
    held = np.bincount(np.concatenate([draws[number] for number in range(800)]), minlength=400)
    assert abs(held - 100).max() < 50  # binomial: standard deviation 9.4


@pytest.mark.parametrize("fraction", [0.3, 1.0])
def test_a_population_gives_the_result_of_its_list_to_the_bit(fraction):
    for population in (
        Population.of(X, Y, partition.iid(len(X), 10, 0)),
        Population.drawn(X, Y, clients=10, per_client=20, seed=1),
    ):
        run = partial(federation.run, plain_mlp, rounds=2, local=LOCAL, client_fraction=fraction, seed=5)
        ours, list_s = run(population), run(listed(population))
        assert torch.equal(ours.vector, list_s.vector)
        assert [r.cohort for r in ours.rounds] == [r.cohort for r in list_s.rounds]
        assert ours.bytes_up == list_s.bytes_up


def test_a_population_trains_in_worker_processes():
    population = Population.drawn(X, Y, clients=100_000, per_client=20)
    run = partial(federation.run, plain_mlp, population, rounds=2, local=LOCAL, client_fraction=3e-5)
    with executor("pool:1") as pool:
        assert torch.equal(run(executor=pool).vector, run().vector)


def test_only_the_cohorts_clients_are_ever_made(tmp_path):
    population = Watched(X, Y, Draws(1_000_000, 20, len(X), 0))
    file = tmp_path / "state.safetensors"
    run = partial(federation.run, plain_mlp, population, local=LOCAL, client_fraction=1e-5, seed=2)
    tracemalloc.start()
    started = time.process_time()
    result = run(rounds=2, checkpoint=file)
    seconds, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    cohorts = [r.cohort for r in result.rounds]
    assert [len(set(cohort)) for cohort in cohorts] == [10, 10]
    assert set(population.made) == set().union(*cohorts)
    assert max(map(max, cohorts)) > 100_000
    assert seconds < 5  # a walk over a million clients takes half a minute
    assert peak < 10e6  # a list of a million ids takes 40 MB
    longer = run(rounds=3, checkpoint=file)
    assert torch.equal(longer.vector, run(rounds=3).vector)


def test_another_populations_checkpoint_is_refused(tmp_path):
    file = tmp_path / "state.safetensors"
    run = partial(federation.run, plain_mlp, rounds=1, local=LOCAL, client_fraction=0.1, checkpoint=file)
    parts = partition.iid(len(X), 20, 0)
    run(Population.of(X, Y, parts))
    run(Population.of(X, Y, parts))
    for other in (
        Population.of(X, Y, partition.iid(len(X), 20, 1)),
        Population.of(X + 1, Y, parts),
        Population.of(X, 2 - Y, parts),
        Population.of(X, Y, [np.concatenate(parts[:2]), *parts[2:], parts[0]]),
        Population.drawn(X, Y, clients=20, per_client=20),
    ):
        with pytest.raises(ValueError, match="different: clients"):
            run(other)
    drawn = partial(Population.drawn, X, Y, clients=20, per_client=20)
    file.unlink()
    run(drawn(seed=1))
    with pytest.raises(ValueError, match="different: clients"):
        run(drawn(seed=2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Population.of(X, Y, []), "parts is empty"),
        (lambda: Population.of(X, Y, [[0], []]), "client 1 has no examples"),
        (lambda: Population.of(X, Y, [[0], [1, -1]]), "client 1 has the index -1"),
        (lambda: Population.of(X, Y, [[0], [400]]), "parts holds the index 400: there are 400 examples"),
        (lambda: Population.of(X, Y[:-1], [[0]]), "400 examples and 399 labels"),
        (lambda: Population.of(X, Y, [[0.5]]), "part 0 is float64"),
        (lambda: Slices(np.zeros(3), np.array([0, 3])), "indices is float64"),
        (lambda: Slices(np.zeros(3, int), np.array([0])), "offsets has 1 values"),
        (lambda: Slices(np.zeros(3, int), np.array([0, 2])), "offsets runs from 0 to 2: want 0 to 3"),
        (lambda: Slices(np.zeros(3, int), np.array([0, 2, 2, 3])), "client 1 has no examples"),
        (lambda: Population.drawn(X, Y, clients=0, per_client=1), "clients is 0"),
        (lambda: Population.drawn(X, Y, clients=2.0, per_client=1), "clients is 2.0"),
        (lambda: Population.drawn(X, Y, clients=1, per_client=0), "per_client is 0"),
        (lambda: Population.drawn(X, Y, clients=1, per_client=401), "per_client is 401: there are 400"),
        (lambda: Population.drawn(X, Y, clients=1, per_client=1, seed=-1), "seed is -1"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
