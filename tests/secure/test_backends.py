"""All backends of ``encrypted_average`` against a slow, exact reference: random, extreme and trained vectors."""

from __future__ import annotations

import re
import subprocess
from contextlib import ExitStack
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fl_utils.data import images, partition
from fl_utils.models.vision import two_nn
from fl_utils.secure.average import BACKENDS, Parties, encrypted_average
from fl_utils.secure.fixed_point import FixedPoint
from fl_utils.training import LocalTraining, Trainer

OWN = ("additive", "spdz")  # this package's protocols; both in fixed point of 32 bits, 20 of them behind the point
SMALLEST = float(np.finfo(np.float32).smallest_subnormal)


@pytest.fixture(scope="module")
def parties():
    """Parties of a backend, by (backend, count, fraction bits): started when first asked for, kept for the module."""
    with ExitStack() as stack:
        started: dict[tuple, Parties] = {}

        def find(backend: str, count: int, fraction_bits: int = 20) -> Parties:
            wanted = (backend, count, fraction_bits)
            if wanted not in started:
                made = Parties(count, backend, fraction_bits=fraction_bits, timeout=20, chunk=50_000)
                started[wanted] = stack.enter_context(made)
            return started[wanted]

        yield find


def exact(vectors, counts) -> list[Fraction]:
    """The weighted average without any rounding, number by number."""
    total = sum(counts)
    return [
        sum(Fraction(value) * count for value, count in zip(row, counts, strict=True)) / total
        for row in zip(*(vector.tolist() for vector in vectors), strict=True)
    ]


def assert_within(found: torch.Tensor, vectors, counts, bound: float, relative: float = 2.0**-24) -> None:
    """|found - exact| <= bound, and what rounding the result to float32 adds (``relative`` to its size)."""
    for at, (got, want) in enumerate(zip(found.tolist(), exact(vectors, counts), strict=True)):
        largest = max(abs(Fraction(vector[at].item())) for vector in vectors)
        size = abs(want) if relative == 2.0**-24 else largest
        allowed = Fraction(bound) + size * Fraction(relative) + Fraction(SMALLEST)
        assert abs(Fraction(got) - want) <= allowed, f"number {at}: {got} instead of {float(want)}"


def largest_allowed(counts: list[int], id: int, fraction_bits: int = 20) -> float:
    """The largest float32 that party ``id`` may put in: one step more and the bound is left."""
    weight, bound = counts[id] / sum(counts), FixedPoint(32, fraction_bits).largest(len(counts))
    value = np.float32(min(bound / weight, np.finfo(np.float32).max))
    while float(value) * weight > bound:
        value = np.nextafter(value, np.float32(0))
    return float(value)


@st.composite
def averages(draw, count: int, fraction_bits: int = 20, longest: int = 30):
    """(vectors, counts) that the bound allows, often at its very edge, at zero or among the denormals."""
    counts = draw(st.lists(st.sampled_from([1, 2, 7, 100, 60_000, 10**9]), min_size=count, max_size=count))
    length = draw(st.integers(1, longest))
    vectors = []
    for id in range(count):
        edge = largest_allowed(counts, id, fraction_bits)
        values = st.one_of(
            st.floats(-edge, edge, width=32),
            st.floats(-min(1.0, edge), min(1.0, edge), width=32),
            st.sampled_from([0.0, -0.0, SMALLEST, -SMALLEST, 1e-38, edge, -edge]),
        )
        vectors.append(torch.tensor(draw(st.lists(values, min_size=length, max_size=length))))
    return vectors, counts


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("backend", OWN)
def test_own_backends_are_exact_within_the_stated_bound(parties, backend, count):
    running = parties(backend, count)

    @settings(max_examples=25, deadline=None)
    @given(averages(count))
    def compare(case):
        vectors, counts = case
        assert_within(running.average(vectors, counts), vectors, counts, count * 2.0**-21)

    compare()


@pytest.mark.parametrize("fraction_bits", [8, 16, 24])
def test_the_bound_follows_the_bits_behind_the_point(parties, fraction_bits):
    running = parties("spdz", 2, fraction_bits)

    @settings(max_examples=10, deadline=None)
    @given(averages(2, fraction_bits))
    def compare(case):
        vectors, counts = case
        found = running.average(vectors, counts)
        assert_within(found, vectors, counts, 2 * 2.0 ** -(fraction_bits + 1))

    compare()


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 5).flatmap(lambda count: averages(count, longest=12)))
@example(([torch.tensor([3.0])] * 2, [1, 10**9]))
def test_plain_is_float32s_own_average(case):
    vectors, counts = case
    steps = len(vectors)  # FedAvg rounds once or twice for every vector that it takes in
    found = encrypted_average(vectors, counts, "plain")
    assert_within(found, vectors, counts, 0.0, relative=4 * steps * 2.0**-24)


@pytest.mark.parametrize("backend", OWN)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("counts", [[1, 1], [1, 6], [1, 14], [1, 10**9], [1, 1, 1], [3, 5, 9], [1, 2, 3, 4, 10**6]])
def test_all_parties_at_the_edge_of_the_bound_do_not_turn_the_sign(parties, backend, sign, counts):
    vectors = [torch.tensor([sign * largest_allowed(counts, id), 0.0]) for id in range(len(counts))]
    found = parties(backend, len(counts)).average(vectors, counts)
    assert_within(found, vectors, counts, len(counts) * 2.0**-21)


@pytest.mark.parametrize("backend", OWN)
def test_a_single_number_through_the_front_door(backend):
    found = encrypted_average([torch.tensor([0.25]), torch.tensor([-1.0])], [3, 1], backend)
    assert found.dtype == torch.float32 and found.tolist() == [-0.0625]


@pytest.mark.parametrize("counts", [[3, 1], [1, 2, 3, 4, 10**6]])
def test_crypten_is_exact_within_its_sixteen_bits(counts):
    """CrypTen cuts off where ``spdz`` rounds: a whole unit of the last place for each party."""
    random = np.random.default_rng(0)
    length = 1 if len(counts) == 2 else 60
    table = random.normal(0, 10.0 ** random.integers(-6, 3, length), (len(counts), length)).astype(np.float32)
    if length > 1:
        table[:, :4], table[:, 4], table[0, 5] = [0.0, -0.0, SMALLEST, 1e-38], 1000.0, -1000.0
    vectors = [torch.from_numpy(row) for row in table]
    found = encrypted_average(vectors, counts, "crypten")
    assert_within(found, vectors, counts, len(counts) * 2.0**-16, relative=4 * 2.0**-24)


@pytest.fixture(scope="module")
def federation():
    """Three clients' vectors after two epochs on their own digits, their counts, and digits to be recognised."""
    digits = images.load("digits")["mnist"]
    train, test = (digits.take(part) for part in partition.split(digits, [0.8, 0.2], seed=0))
    counts, vectors = [1200, 600, 100], []
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    for id, indices in enumerate(order[: sum(counts)].split(counts)):
        own = train.take(indices)
        torch.manual_seed(0)
        trainer = Trainer(two_nn)
        trainer.train(own.x, own.y, LocalTraining(2, 20, 0.1), seed=id)
        vectors.append(trainer.vector.clone())
    trainer = Trainer(two_nn)

    def scores(vector):
        trainer.vector.copy_(vector)
        return trainer.outputs(test.x)

    return vectors, counts, test.y, scores


def test_encrypted_averages_of_a_trained_network_recognise_the_same_digits(parties, federation):
    vectors, counts, labels, scores = federation
    expected = scores(encrypted_average(vectors, counts, "plain"))
    assert (expected.argmax(1) == labels).float().mean() > 0.6, "the network has learned too little for a test"
    reference = sum(vector.double() * count for vector, count in zip(vectors, counts, strict=True)) / sum(counts)
    for backend in OWN:
        found = parties(backend, 3).average(vectors, counts)
        assert (found.double() - reference).abs().max() <= 3 * 2.0**-21 + float(reference.abs().max()) * 2.0**-24
        assert torch.equal(scores(found).argmax(1), expected.argmax(1)), backend
    found = encrypted_average(vectors, counts, "crypten")
    assert (found.double() - reference).abs().max() <= 3 * 2.0**-16
    # CrypTen's coarser weights may turn an answer whose two best scores nearly tie, and no other.
    change = float((scores(found) - expected).abs().max())
    best, second = expected.topk(2).values.T
    clear = best - second > 2 * change
    assert change < 0.05 and clear.float().mean() > 0.95
    assert torch.equal(scores(found).argmax(1)[clear], expected.argmax(1)[clear])


GOOD = {"vectors": [torch.zeros(3), torch.ones(3)], "num_examples": [1, 2]}
BAD = {
    "not a number": ({"vectors": [torch.zeros(3), torch.tensor([0, torch.nan, 0])]}, "party 1: vector holds values"),
    "infinite": ({"vectors": [torch.tensor([0, torch.inf, 0]), torch.zeros(3)]}, "party 0: vector holds values"),
    "minus infinite": ({"vectors": [torch.tensor([0, -torch.inf, 0]), torch.zeros(3)]}, "party 0: vector holds values"),
    "empty vectors": ({"vectors": [torch.empty(0), torch.empty(0)]}, "vector is empty"),
    "unequal lengths": ({"vectors": [torch.zeros(3), torch.zeros(4)]}, "want float32 [d], all alike"),
    "wrong dtype": ({"vectors": [torch.zeros(3, dtype=torch.float64)] * 2}, "want float32 [d], all alike"),
    "one of another dtype": ({"vectors": [torch.zeros(3), torch.zeros(3).half()]}, "want float32 [d], all alike"),
    "matrices": ({"vectors": [torch.zeros(3, 2)] * 2}, "want float32 [d], all alike"),
    "count of zero": ({"num_examples": [1, 0]}, "num_examples holds 0"),
    "negative count": ({"num_examples": [-5, 1]}, "num_examples holds -5"),
    "fraction of an example": ({"num_examples": [1, 2.5]}, "num_examples holds 2.5"),
    "too few counts": ({"num_examples": [1]}, "2 vectors and 1 counts"),
    "no vectors": ({"vectors": [], "num_examples": []}, "0 vectors"),
}  # fmt: skip


@pytest.fixture
def no_process(monkeypatch):
    """Any process that is started is an error of its own."""

    def refuse(*arguments, **options):
        raise AssertionError("a process was started before the input was looked at")

    monkeypatch.setattr(subprocess, "Popen", refuse)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_the_same_error_before_any_process_starts(no_process, backend, name):
    change, message = BAD[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        encrypted_average(**{**GOOD, **change}, backend=backend)


@pytest.mark.parametrize("backend", ["additive", "spdz", "crypten"])
def test_weights_that_do_not_fit_are_named_before_any_process_starts(no_process, backend):
    given = [torch.zeros(3), torch.tensor([0.0, -1e30, 1.0])]
    with pytest.raises(ValueError, match=re.escape("party 1: the largest weight, 1e+30")):
        encrypted_average(given, [1, 1], backend)


@pytest.mark.parametrize("backend", ["additive", "spdz", "crypten"])
def test_one_vector_is_nothing_to_hide_among(no_process, backend):
    with pytest.raises(ValueError, match="at least 2 parties"):
        encrypted_average([torch.zeros(3)], [1], backend)


def test_an_unknown_backend_is_named_with_those_that_exist(no_process):
    with pytest.raises(ValueError, match="backend is 'rot13': want one of plain, additive, spdz, crypten"):
        encrypted_average(**GOOD, backend="rot13")


def test_running_parties_refuse_bad_input_and_go_on(parties):
    """What the front door refuses, parties that run already refuse too, and the next average is not harmed by it."""
    running = parties("spdz", 2)
    for change, message in BAD.values():
        with pytest.raises(ValueError, match=re.escape(message)):
            running.average(**{**GOOD, **change})
    assert running.average(**GOOD).tolist() == pytest.approx([2 / 3] * 3, abs=2.0**-20)
