"""The front door, with the parties' real processes behind it."""

import re
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from fl_utils import federation
from fl_utils.aggregation import fedavg
from fl_utils.secure.average import AverageFailed, Cost, Parties, encrypted_average
from small import LOCAL, clients, mlp

COUNTS = [30, 20, 50]


def vectors(parties=3, length=5000, scale=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(length, generator=generator) for _ in range(parties)]


@pytest.fixture(scope="module")
def spdz():
    with Parties(3, "spdz", timeout=20, chunk=2000) as parties:
        yield parties


def test_every_backend_agrees_with_plain(spdz):
    given = vectors()
    expected = encrypted_average(given, COUNTS, "plain")
    assert torch.equal(expected, fedavg(given, COUNTS))
    bound = 3 * 2.0**-21 + 1e-7
    assert (spdz.average(given, COUNTS) - expected).abs().max() <= bound
    cost = Cost()
    assert (encrypted_average(given, COUNTS, "additive", cost=cost) - expected).abs().max() <= bound
    assert len(cost.bytes_up) == 3 and min(cost.bytes_up) > 2 * 4 * 5000


@pytest.mark.parametrize("scale", [0.0, 1e-7, 1.0, 300.0])
def test_random_and_extreme_vectors(spdz, scale):
    for seed in range(3):
        given = vectors(scale=scale, seed=seed)
        expected = sum(v.double() * c for v, c in zip(given, COUNTS, strict=True)) / sum(COUNTS)
        assert (spdz.average(given, COUNTS).double() - expected).abs().max() <= 3 * 2.0**-21 + 1200 * 2.0**-24 * scale


def test_a_federation_under_encryption_ends_where_the_plain_one_does(spdz):
    three = clients((30, 17, 25))
    run = partial(federation.run, mlp, three, rounds=3, local=LOCAL, seed=1)
    encrypted = run(rule=spdz.rule)
    assert (encrypted.vector - run().vector).abs().max() < 1e-4
    assert not torch.equal(encrypted.vector, run().vector)


KILLS = [("hello", 0), ("deal", 0), ("input", 0), ("open", 1), ("coin", 1), ("check", 2), ("confirm", 0)]


@pytest.mark.parametrize(
    ("victim", "phase", "chunk"), [*((2, *place) for place in KILLS), (0, "open", 0), (1, "check", 1)]
)
def test_a_party_killed_at_any_step_is_named_and_no_average_comes_out(spdz, victim, phase, chunk):
    def kill(id, job):
        if id == victim:
            job["die_at"] = [phase, chunk]

    given = vectors()
    spdz.interference = kill
    started = time.monotonic()
    try:
        with pytest.raises(AverageFailed, match=f"party {victim}") as failure:
            spdz.average(given, COUNTS)
    finally:
        spdz.interference = lambda id, job: None
    assert time.monotonic() - started < 60
    for id in {0, 1, 2} - {victim}:
        report = failure.value.reports[f"party {id}"]
        assert not report["ok"] and f"party {victim}" in report["error"] and report["phase"]
    assert (spdz.average(given, COUNTS) - fedavg(given, COUNTS)).abs().max() < 1e-5  # and everybody starts anew


def test_larger_integers_hold_larger_weights_at_the_same_precision():
    given, cost = vectors(2, scale=3000.0), Cost()
    with pytest.raises(ValueError, match="at most 17 fraction bits"):
        encrypted_average(given, [1, 1], fraction_bits=24)
    found = encrypted_average(given, [1, 1], fraction_bits=24, value_bits=40, cost=cost)
    exact = (given[0].double() + given[1].double()) / 2
    assert (found.double() - exact).abs().max() <= 2 * 2.0**-25 + 2.0**-24 * exact.abs().max()
    assert 16 * 5000 < cost.bytes_up[0] < 17 * 5000


def test_with_tls_the_same_average_comes_out():
    given = vectors(2)
    with Parties(2, "spdz", tls=True) as parties:
        assert (parties.average(given, [1, 3]) - fedavg(given, [1, 3])).abs().max() < 3e-6


def test_crypten_agrees_within_its_sixteen_bits():
    given, cost = vectors(2, 3000), Cost()
    found = encrypted_average(given, [1, 3], "crypten", cost=cost)
    assert (found - fedavg(given, [1, 3])).abs().max() < 2 * 2.0**-15
    assert len(cost.cpu_seconds) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backend": "rot13"}, "backend is 'rot13': want one of plain, additive, spdz, crypten"),
        ({"num_examples": [1, 2]}, "3 vectors and 2 counts"),
        ({"num_examples": [1, 2, 0]}, "num_examples holds 0"),
        ({"fraction_bits": 40}, "fraction_bits is 40"),
        ({"value_bits": 64}, "value_bits 64"),
        ({"value_bits": 40, "backend": "additive"}, "value_bits is 40: the backend 'additive' has 32"),
        ({"timeout": 0}, "timeout is 0"),
        ({"vectors": vectors(1), "num_examples": [1]}, "at least 2 parties"),
        ({"vectors": [torch.zeros(3), torch.zeros(4)], "num_examples": [1, 1]}, "want float32 [d], all alike"),
        ({"vectors": [torch.zeros(3), torch.full((3,), 9e3)], "num_examples": [1, 1]}, "1: the largest weight, 9000"),
        ({"vectors": [torch.zeros(3), torch.full((3,), torch.nan)], "num_examples": [1, 1]}, "1: vector holds values"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_anything_is_sent(change, message):
    given = {"vectors": vectors(), "num_examples": COUNTS} | change
    with pytest.raises(ValueError, match=re.escape(message)):
        encrypted_average(**given)


def test_the_vectors_files_are_gone_afterwards():
    with Parties(2, "additive") as parties:
        folder = parties._folder.name
        parties.average(vectors(2), [1, 1])
    assert not Path(folder).exists()
