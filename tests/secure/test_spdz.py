"""The protocol against an honest run, a man in the middle, a lying party, and parties that vanish."""

import itertools
import os
import socket
import time

import numpy as np
import pytest

from fl_utils import links
from fl_utils.links import LinkError
from fl_utils.secure import spdz
from fl_utils.secure.certificates import make_certificates
from fl_utils.secure.spdz import Terms
from parties_at_work import Middle, kind_of, run

LENGTH, CHUNK = 50, 32
COUNTS = (30, 20, 50)
KINDS = {
    "hello": spdz.HELLO,
    "seeds": spdz.SEEDS,
    "correction": spdz.CORRECTION,
    "input": spdz.INPUT,
    "open": spdz.OPEN,
    "coin commitment": spdz.COIN_COMMIT,
    "coin": spdz.COIN_OPEN,
    "check commitment": spdz.CHECK_COMMIT,
    "check": spdz.CHECK_OPEN,
    "confirm": spdz.CONFIRM,
}
BETWEEN_PARTIES = [name for name in KINDS if name not in ("seeds", "correction")]
PLACES = {"magic": 1, "kind": 4, "sequence": 12, "length": 20, "payload": 21, "tag": -3}


def vectors(parties: int = 3, length: int = LENGTH) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.normal(0, 0.5, length).astype(np.float32) for _ in range(parties)]


def plain(given, counts) -> np.ndarray:
    return sum(v.astype(np.float64) * c for v, c in zip(given, counts, strict=True)) / sum(counts)


def assert_nobody_was_fooled(outcome, given, counts) -> None:
    """Whoever gives an average out gives the right one; at least one party stops, and says who and where."""
    assert outcome.errors, "nobody noticed"
    for error in outcome.errors.values():
        assert isinstance(error, LinkError) and error.party and error.phase, error
    for id, out in enumerate(outcome.out):
        if id not in outcome.errors:
            np.testing.assert_allclose(out, plain(given, counts), atol=1e-5)
        else:
            assert np.isnan(out).all()


@pytest.mark.parametrize("parties", [2, 3, 5])
@pytest.mark.parametrize(("fraction_bits", "value_bits", "security_bits"), [(20, 32, 32), (16, 32, 20), (24, 40, 24)])
def test_the_average_is_the_plain_one_within_the_bound(parties, fraction_bits, value_bits, security_bits):
    given, counts = vectors(parties, 101), [7 * (id + 1) for id in range(parties)]
    bits = {"fraction_bits": fraction_bits, "value_bits": value_bits, "security_bits": security_bits}
    outcome = run(given, counts, chunk=40, **bits)
    assert not outcome.errors
    bound = parties * 2.0 ** -(fraction_bits + 1) + 2e-7
    for out in outcome.out:
        assert np.abs(out - plain(given, counts)).max() <= bound
        np.testing.assert_array_equal(out, outcome.out[0])


def test_extreme_values_come_through():
    given = vectors()
    edge = Terms(COUNTS, LENGTH).numbers.largest(3)
    given[2][:3] = [edge / 0.5 * 0.999, -edge / 0.5 * 0.999, 0]
    given[0][:2] = [edge / 0.3 * 0.999, -edge / 0.3 * 0.999]
    outcome = run(given, COUNTS)
    assert not outcome.errors
    np.testing.assert_allclose(outcome.out[1], plain(given, COUNTS), rtol=1e-6, atol=2e-6)


FLIPS = [
    *itertools.product(BETWEEN_PARTIES, ((0, 1), (1, 0), (2, 0), (1, 2)), PLACES),
    *itertools.product(("hello", "seeds"), ((3, 0), (3, 2)), PLACES),
    *itertools.product(("correction",), ((3, 2),), PLACES),
]


@pytest.mark.parametrize(
    ("kind", "way", "place"), FLIPS, ids=lambda v: v if isinstance(v, str) else "to".join(map(str, v))
)
def test_one_flipped_bit_is_noticed(kind, way, place):
    speaker, hearer = way
    bit = hash((kind, way, place)) % 8

    def flip(number: int, frame: bytes) -> list[bytes]:
        if kind_of(frame) != KINDS[kind]:
            return [frame]
        spoiled = bytearray(frame)
        spoiled[PLACES[place]] ^= 1 << bit
        return [bytes(spoiled)]

    assert_spoiling_stops_all(speaker, hearer, flip, kind)


def repeated(number, frame):
    return [frame, frame]


def left_out(number, frame):
    return []


def cut(number, frame):
    return [frame[: len(frame) // 2]]


def closed(number, frame):
    return None


def garbage(number, frame):
    return [os.urandom(len(frame))]


DISTURBANCES = [repeated, left_out, cut, closed, garbage]


@pytest.mark.parametrize("disturbance", DISTURBANCES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_a_disturbed_message_stops_everybody(kind, disturbance):
    speaker, hearer = (3, 2) if kind in ("seeds", "correction") else (2, 0)
    seen = []

    def spoil(number: int, frame: bytes) -> list[bytes] | None:
        if kind_of(frame) != KINDS[kind] or seen:
            return [frame]
        seen.append(number)
        return disturbance(number, frame)

    last = kind == "confirm" and disturbance is repeated  # one frame too many after the end: nobody reads on
    assert_spoiling_stops_all(speaker, hearer, spoil, kind, nothing_due=last)


@pytest.mark.parametrize("kind", [name for name in KINDS if name not in ("seeds", "confirm")])
def test_messages_out_of_order_are_noticed(kind):
    speaker, hearer = (3, 2) if kind == "correction" else (1, 0)
    kept = []

    def swap(number: int, frame: bytes) -> list[bytes]:
        if kept and kept != ["done"]:
            first = kept.pop()
            kept.append("done")
            return [frame, first]
        if not kept and kind_of(frame) == KINDS[kind]:
            kept.append(frame)
            return []
        return [frame]

    assert_spoiling_stops_all(speaker, hearer, swap, kind)


def assert_spoiling_stops_all(speaker, hearer, spoil, kind, nothing_due=False) -> None:
    given, middles = vectors(), []
    caller, callee = max(speaker, hearer), min(speaker, hearer)

    def route(who, whom, address):
        if (who, whom) != (caller, callee):
            return address
        middles.append(Middle(address, from_caller=speaker == caller, spoil=spoil))
        return middles[0].listener.getsockname()

    started = time.monotonic()
    outcome = run(given, COUNTS, timeout=1.0, route=route, chunk=CHUNK)
    assert middles[0].spoiled, "the fault was never injected"
    if nothing_due:
        return
    assert_nobody_was_fooled(outcome, given, COUNTS)
    if kind != "confirm":  # before that no party may give anything out
        assert all(outcome.silent(id) for id in range(3))
    assert time.monotonic() - started < 15


class Liar(spdz._Party):
    """An insider: it speaks with valid tags, and lies in one place."""

    def __init__(self, lie, mesh, terms):
        self.lie = lie
        super().__init__(mesh, terms.parties, terms, lambda phase, chunk: None)

    def _to_all(self, phase, kind, words, received):
        sent = dict.fromkeys(self.others, words)
        if self.lie[0] == phase:
            _, whom, bit = self.lie
            lied = words if whom is None and phase == "input" else words.copy()  # the same to all: also to itself
            lied[3] ^= np.asarray(1 << bit, words.dtype)
            sent |= dict.fromkeys(whom if whom else self.others, lied)
        out = {peer: links.view(part) for peer, part in sent.items()}
        rows = {peer: links.view(row) for peer, row in zip(self.others, received, strict=True)}
        self.mesh.exchange(phase, kind, out, rows)

    def _committed(self, phase, number, message, commit, reveal):
        if self.lie[0] == f"wrong {phase}":
            changed = bytearray(message)
            changed[self.lie[1]] ^= 1
            message = bytes(changed)
        if self.lie[0] == f"breaks its word in {phase}":
            pledge = self._pledge
            self._pledge = lambda phase, number, peer, text, salt: (
                bytes(32) if peer == self.mesh.id else pledge(phase, number, peer, text, salt)
            )
        return super()._committed(phase, number, message, commit, reveal)


LIES = [
    *(("open", None, bit) for bit in range(0, 32)),  # every bit of an opened share
    ("open", (0,), 7),  # two versions of a share
    *(("input", (0,), bit) for bit in range(0, 32, 3)),  # two versions of an input
    *(("wrong check", byte) for byte in range(8)),  # z
    *(("wrong check", byte) for byte in range(8, 16)),  # h
    ("breaks its word in coin",),
    ("breaks its word in check",),
]


@pytest.mark.parametrize("lie", LIES, ids=str)
@pytest.mark.parametrize("who", [0, 2])
def test_a_lying_party_is_noticed(who, lie):
    if lie[0] in ("input", "open") and lie[1] == (0,) and who == 0:
        lie = (lie[0], (1,), lie[2])
    given = vectors()

    def insider(mesh, terms, vector, out):
        spdz.agree(mesh, terms)
        Liar(lie, mesh, terms).run(vector, out)

    outcome = run(given, COUNTS, timeout=5.0, insider={who: insider}, chunk=CHUNK)
    honest = [id for id in range(3) if id != who]
    assert all(outcome.silent(id) for id in honest), outcome.errors
    for id in honest:
        error = outcome.errors[id]
        assert f"party {who}" in error.party and error.phase in ("input", "open", "coin", "check")


def test_a_lie_about_the_own_input_is_only_another_input():
    """What the protocol does not give: a party may put in what it likes, the same to all."""
    given = vectors()

    def insider(mesh, terms, vector, out):
        spdz.agree(mesh, terms)
        Liar(("input", None, 20), mesh, terms).run(vector, out)

    outcome = run(given, COUNTS, insider={1: insider})
    assert not outcome.errors
    shifted = [v.copy() for v in given]
    assert np.abs(outcome.out[0] - plain(shifted, COUNTS)).max() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("absent", [0, 1, 2, 3])
def test_a_party_that_never_appears_is_named(absent):
    outcome = run(vectors(), COUNTS, timeout=0.7, takes_part=lambda id: id != absent)
    name = spdz.names(3)[absent]
    others = [id for id in range(4) if id != absent]
    assert sorted(outcome.errors) == others
    assert all(error.phase == "connect" for error in outcome.errors.values())
    assert any(name in error.party for error in outcome.errors.values())


@pytest.mark.parametrize("steps", range(0, 9))
def test_a_party_that_falls_silent_is_named(steps):
    """It stays connected and says nothing more after some steps: the others give up after the time-out."""

    class Asleep(Exception):
        pass

    def insider(mesh, terms, vector, out):
        left, exchange = [steps], mesh.exchange

        def until_asleep(*arguments):
            if not left[0]:
                raise Asleep
            left[0] -= 1
            return exchange(*arguments)

        mesh.exchange = until_asleep
        try:
            spdz.party(mesh, 3, terms, vector, out)
        except Asleep:
            time.sleep(2.5)
            raise LinkError("party 1", "?", "slept") from None

    started = time.monotonic()
    outcome = run(vectors(), COUNTS, timeout=1.0, insider={1: insider}, chunk=CHUNK)
    assert time.monotonic() - started < 15
    for id in (0, 2):
        assert outcome.silent(id) and "party 1" in str(outcome.errors[id])


def test_a_stranger_who_calls_is_turned_away_and_the_average_goes_on():
    given, strangers = vectors(), []

    def route(caller, callee, address):
        if (caller, callee) == (2, 0):
            stranger = socket.create_connection(address)
            stranger.sendall(os.urandom(200))
            strangers.append(stranger)
        return address

    outcome = run(given, COUNTS, route=route)
    assert not outcome.errors
    np.testing.assert_allclose(outcome.out[0], plain(given, COUNTS), atol=1e-5)


def test_who_does_not_know_the_secret_stays_outside():
    outcome = run(vectors(), COUNTS, timeout=1.0, secrets={1: os.urandom(32)})
    assert all(outcome.silent(id) for id in range(3))
    assert all(error.phase == "connect" for error in outcome.errors.values())


def test_other_terms_are_named():
    terms = {1: Terms(COUNTS, LENGTH, fraction_bits=16)}
    outcome = run(vectors(), COUNTS, terms=terms)
    assert all(outcome.silent(id) for id in range(3))
    error = outcome.errors[0]
    assert (error.party, error.phase) == ("party 1", "hello")
    assert "fraction_bits 16 instead of 20" in error.reason


def test_mutual_tls(tmp_path):
    names = spdz.names(3)
    make_certificates(tmp_path, names)

    def files(name, folder=tmp_path):
        return links.Tls(folder / "authority.pem", folder / f"{name}.pem", folder / f"{name}.key")

    given = vectors(length=40_000)
    tls = {id: files(name) for id, name in enumerate(names)}
    outcome = run(given, COUNTS, tls=tls)
    assert not outcome.errors
    np.testing.assert_allclose(outcome.out[2], plain(given, COUNTS), atol=1e-5)
    (tmp_path / "other").mkdir()
    make_certificates(tmp_path / "other", names)
    for wrong in (files("party 1", tmp_path / "other"), files("party 2")):  # another authority; another's certificate
        outcome = run(vectors(), COUNTS, timeout=1.5, tls=tls | {1: wrong})
        assert all(outcome.silent(id) for id in range(3))
        assert all(error.phase == "connect" for error in outcome.errors.values())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_examples": (5,)}, "1 parties: an encrypted average needs at least 2"),
        ({"num_examples": (5, 0)}, "num_examples holds 0"),
        ({"length": 0}, "length is 0"),
        ({"security_bits": 40}, "security_bits is 40: with 32 value bits want 1 to 32"),
        ({"fraction_bits": 32}, "fraction_bits is 32, value_bits 32"),
    ],
)
def test_impossible_terms_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Terms(**{"num_examples": (1, 1), "length": 10, **wrong})


def test_a_vector_that_does_not_fit_is_refused_before_anything_is_sent():
    given = vectors()
    given[1][7] = -5000.0
    outcome = run(given, COUNTS, timeout=1.0)
    assert isinstance(outcome.errors[1], ValueError)
    assert "largest weight, 5000" in str(outcome.errors[1]) and "3 parties" in str(outcome.errors[1])
    assert all(outcome.silent(id) for id in range(3))


def test_masked_inputs_and_shares_look_like_noise(monkeypatch):
    """What a party sends of its input and of the sum does not depend on the input in any bit."""
    seen = {"input": [], "open": []}
    honest = spdz._Party._to_all

    def listening(self, phase, kind, words, received):
        if self.mesh.id == 0:
            seen[phase].append(words.copy())
        honest(self, phase, kind, words, received)

    monkeypatch.setattr(spdz._Party, "_to_all", listening)
    run([np.zeros(4096, np.float32)] * 3, COUNTS)
    for words in map(np.concatenate, seen.values()):
        ones = np.unpackbits(words.view(np.uint8)).mean()
        assert abs(ones - 0.5) < 5 * 0.5 / np.sqrt(8 * words.nbytes)
        assert len(np.unique(words)) > 0.99 * len(words)
