"""Authenticated averaging: SPDZ over Z_2^64 (SPDZ2k, Cramer et al. 2018), with a dealer for the offline phase.

n parties with vectors x_0 .. x_(n-1) of d numbers learn y = x_0 + ... + x_(n-1) and nothing else. All arithmetic is
modulo 2^64; the low k bits carry values (fixed point), the upper ones give room to s bits of statistical security,
k + s <= 64. [v] means shares: party i holds v^i, and v = v^0 + ... + v^(n-1). A value is authenticated where the
parties also hold [alpha v], under a key alpha = alpha^0 + ... + alpha^(n-1) that nobody knows. Masks and their shares
are words of AES-CTR keystreams. The vectors go through in chunks; every chunk goes through steps 2 to 6 by itself.

 1. deal    Party i gets from the dealer: a key for its share R^i of a random [R] that nobody knows, a key for its share
            of [alpha R], alpha^i (s random bits), and one key Z_ij with every other party j. The last party gets, in
            place of its second key, words that make the shares of alpha R add up, chunk by chunk.
 2. input   Party i sends everybody eps_i = x_i - R^i. E = eps_0 + ... + eps_(n-1) is then public, and
            [y] = [R] + E (party 0 adds E), [alpha y]^i = [alpha R]^i + alpha^i E.
 3. open    Party i makes its share new, y^i + sum_(j>i) Z_ij - sum_(j<i) Z_ji (R^i alone would tell its input; the sum
            stays), and sends everybody the low half. Their sum has the low k bits of y (k <= 32), and its upper bits
            repeat the sign: an honest y is a small number. (For k > 32 whole words are sent.)
 4. coin    Party i commits to 16 random bytes, then all open. Their hash keys a keystream of words; chi_t are s bits
            of each.
 5. check   Party i computes h^i = sum_t chi_t E_t and
            z^i = sum_t chi_t [alpha R]^i_t + alpha^i sum_t chi_t (E_t - y_t),
            commits to both, then all open. The sum of all z^i must be 0, and all h^i equal; otherwise everybody aborts.
 6.         Only now does y_t become a result: its low k bits, signed.
 7. confirm After the last chunk all tell all that they are content. A party that hears otherwise gives nothing out.

The whole of y must stand before the coin falls, which is why step 3 wants the upper bits fixed: could a party still
choose them afterwards, a shift by 2^(k-1) would pass with every even chi_t (2^(k+2s) would be the ring to allow that).

Commitments are SHA-256 over session, step, chunk, party, message and 16 random bytes.

What it has: security with abort against n - 1 actively corrupted parties. An opened y that differs from the sum in its
low k bits passes with probability at most 2^(-s + log2(s + 1)) (Cramer et al. 2018, theorem 1; 2^-27 at s = 32), and a
party that sends different eps_i to different parties with at most 2^-s, where they differ in their low k bits (above
these a difference that passes changes neither the sum nor the check). Nothing about an honest vector beyond the average
is seen before or after.
What it has not: the dealer is trusted (it is PySyft's "crypto provider": with one party it could read and forge);
whoever aborts may already have seen a chunk of the result, and honest parties may end without it (no fairness); a
party may put in any vector it likes (poisoning), and the average itself speaks about its inputs: of two parties each
learns the other's vector exactly.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from fl_utils.links import LinkError, Mesh, view
from fl_utils.secure.fixed_point import FixedPoint
from fl_utils.secure.keystream import KEY_BYTES, Keystream, new_key

HELLO, SEEDS, CORRECTION, INPUT, OPEN, COIN_COMMIT, COIN_OPEN, CHECK_COMMIT, CHECK_OPEN, CONFIRM = range(1, 11)
SALT = 16
MODULUS = 1 << 64


@dataclass(frozen=True)
class Terms:
    """What all parties must agree in. ``num_examples``: one public count per party; ``length``: d of the vectors."""

    num_examples: tuple[int, ...]
    length: int
    fraction_bits: int = 20
    value_bits: int = 32
    security_bits: int = 32
    chunk: int = 1 << 18
    protocol: str = "spdz"

    def __post_init__(self) -> None:
        FixedPoint(self.value_bits, self.fraction_bits)  # raises on impossible bits
        if len(self.num_examples) < 2:
            raise ValueError(f"{len(self.num_examples)} parties: an encrypted average needs at least 2")
        if min(self.num_examples) < 1:
            raise ValueError(f"num_examples holds {min(self.num_examples)}: each party's count must be positive")
        if self.length < 1 or self.chunk < 1:
            raise ValueError(f"length is {self.length}, chunk {self.chunk}: want whole numbers from 1 up")
        if not 1 <= self.security_bits <= 64 - self.value_bits:
            raise ValueError(
                f"security_bits is {self.security_bits}: with {self.value_bits} value bits want 1 to "
                f"{64 - self.value_bits}, for the ring has 64"
            )

    @property
    def numbers(self) -> FixedPoint:
        """The fixed-point numbers in use."""
        return FixedPoint(self.value_bits, self.fraction_bits)

    @property
    def parties(self) -> int:
        """How many there are."""
        return len(self.num_examples)

    def weight(self, id: int) -> float:
        """The share of all examples that party ``id`` has."""
        return self.num_examples[id] / sum(self.num_examples)

    def check(self, vector: np.ndarray, id: int) -> None:
        """Raise ValueError where party ``id``'s ``vector`` is not float32 [d], or holds what the bits do not."""
        if vector.shape != (self.length,) or vector.dtype != np.float32:
            raise ValueError(f"vector is {vector.dtype} {vector.shape}: the terms say float32 ({self.length},)")
        self.numbers.check(vector, self.weight(id), self.parties)

    def chunks(self) -> list[slice]:
        """The parts of a vector that go through the protocol one after the other."""
        return [slice(at, min(at + self.chunk, self.length)) for at in range(0, self.length, self.chunk)]


def agree(mesh: Mesh, terms: Terms) -> None:
    """All parties (and the dealer) compare their terms. Raises LinkError naming who differs, and in what."""
    mine = json.dumps(asdict(terms), sort_keys=True).encode()
    heard = mesh.exchange("hello", HELLO, dict.fromkeys(mesh.links, mine), dict.fromkeys(mesh.links))
    for peer, text in heard.items():
        if text == mine:
            continue
        try:
            theirs, ours = json.loads(text), json.loads(mine)
            differing = [
                f"{key} {theirs.get(key)!r} instead of {ours[key]!r}" for key in ours if theirs.get(key) != ours[key]
            ]
        except (ValueError, AttributeError):
            differing = ["nothing that can be read"]
        raise LinkError(mesh.names[peer], "hello", f"has other terms: {', '.join(differing) or 'unknown ones'}")


def confirm(mesh: Mesh, others: Sequence[int], at: Callable[[str, int], None]) -> None:
    """All tell all that they are content: what stops one party before this stops every one."""
    at("confirm", 0)
    rooms = {peer: view(np.empty(4, np.uint8)) for peer in others}
    mesh.exchange("confirm", CONFIRM, dict.fromkeys(others, b"done"), rooms)
    for peer, room in rooms.items():
        if bytes(room) != b"done":
            raise LinkError(mesh.names[peer], "confirm", "is not content")


def deal(mesh: Mesh, terms: Terms) -> None:
    """The dealer's side (step 1): party ids 0 .. n-1 on ``mesh``. It sees no input and no result."""
    agree(mesh, terms)
    parties, last = range(terms.parties), terms.parties - 1
    share_keys, mac_keys = ([new_key() for _ in parties] for _ in range(2))
    pair_keys = {pair: new_key() for pair in itertools.combinations(parties, 2)}
    alphas = [int.from_bytes(os.urandom(8), "big") >> (64 - terms.security_bits) for _ in parties]
    seeds = {}
    for i in parties:
        own = share_keys[i] + (bytes(KEY_BYTES) if i == last else mac_keys[i])
        pairs = b"".join(pair_keys[min(i, j), max(i, j)] for j in parties if j != i)
        seeds[i] = own + pairs + struct.pack(">Q", alphas[i])
    mesh.exchange("deal", SEEDS, seeds, {})
    shares, macs = ([Keystream(key) for key in keys] for keys in (share_keys, mac_keys))
    alpha = np.uint64(sum(alphas) % MODULUS)
    size = min(terms.chunk, terms.length)
    words, totals = np.empty((2, size), np.uint64)
    for part in terms.chunks():
        word, total = words[: part.stop - part.start], totals[: part.stop - part.start]
        total.fill(0)
        for share in shares:
            np.add(total, share.words(word), out=total)
        np.multiply(total, alpha, out=total)
        for mac in macs[:last]:
            np.subtract(total, mac.words(word), out=total)
        mesh.exchange("deal", CORRECTION, {last: view(total)}, {})


def party(
    mesh: Mesh,
    dealer: int,
    terms: Terms,
    vector: np.ndarray,
    out: np.ndarray,
    at: Callable[[str, int], None] = lambda phase, chunk: None,
) -> None:
    """A party's side: its ``vector`` (float32 [d]) goes in, the weighted average comes into ``out`` (float32 [d]).

    ``out`` may be ``vector`` itself. dealer: the dealer's id on ``mesh``. at: called at the beginning of each step with
    the phase and the chunk's number.
    Raises ValueError before anything is sent where the vector does not fit the terms, and LinkError, naming party and
    phase, where the protocol stops; ``out`` then holds no average (it is filled with NaN).
    """
    terms.check(vector, mesh.id)
    try:
        at("hello", 0)
        agree(mesh, terms)
        _Party(mesh, dealer, terms, at).run(vector, out)
    except BaseException:
        out.fill(np.nan)
        raise


class _Party:
    """One party's state through the chunks: its streams, its part of the key, and buffers that are used again."""

    def __init__(self, mesh: Mesh, dealer: int, terms: Terms, at: Callable[[str, int], None]):
        self.mesh, self.dealer, self.terms, self.at = mesh, dealer, terms, at
        self.others = [peer for peer in range(terms.parties) if peer != mesh.id]
        self.last = mesh.id == terms.parties - 1
        at("deal", 0)
        seeds = np.empty((1 + terms.parties) * KEY_BYTES + 8, np.uint8)
        mesh.exchange("deal", SEEDS, {}, {dealer: view(seeds)})
        keys = [Keystream(bytes(key)) for key in seeds[:-8].reshape(-1, KEY_BYTES)]
        self.share, self.mac, self.zeros = keys[0], keys[1], dict(zip(self.others, keys[2:], strict=True))
        self.alpha = struct.unpack(">Q", bytes(seeds[-8:]))[0]
        size = min(terms.chunk, terms.length)
        self.real = np.empty(size)
        self.words = np.empty((5, size), np.uint64)
        self.received = np.empty((len(self.others), size), np.uint64)
        self.half = np.empty((2 + len(self.others), size), np.uint32 if terms.value_bits <= 32 else np.uint64)

    def run(self, vector: np.ndarray, out: np.ndarray) -> None:
        for number, part in enumerate(self.terms.chunks()):
            opened = self._chunk(number, vector[part])
            self.terms.numbers.decode(opened, out[part])
        confirm(self.mesh, self.others, self.at)

    def _chunk(self, number: int, values: np.ndarray) -> np.ndarray:
        """Steps 2 to 5 for ``values`` (float32 [m]); the opened and checked numbers, signed, as words [m]."""
        length = len(values)
        sent, masked, share, mac, chi = self.words[:, :length]
        received = self.received[:, :length]
        low, zero, *lows = self.half[:, :length]
        self._dealt(number, share, mac)

        self.at("input", number)
        self.terms.numbers.encode(values, self.terms.weight(self.mesh.id), sent, self.real[:length])
        np.subtract(sent, share, out=sent)
        self._to_all("input", INPUT, sent, received)
        np.copyto(masked, sent)  # E
        for row in received:
            np.add(masked, row, out=masked)

        self.at("open", number)
        if self.mesh.id == 0:
            np.add(share, masked, out=share)
        np.copyto(low, share, casting="unsafe")
        for peer, stream in self.zeros.items():
            (np.add if peer > self.mesh.id else np.subtract)(low, stream.words(zero), out=low)
        self._to_all("open", OPEN, low, lows)
        for row in lows:
            np.add(low, row, out=low)
        opened = share  # its room: only the sum is needed from here on
        np.copyto(opened.view(np.int64), self.terms.numbers.sign(low).view(f"i{low.itemsize}"))

        Keystream(self._coin(number)).words(chi)
        np.right_shift(chi, np.uint64(64 - self.terms.security_bits), out=chi)
        self._check(number, *(int(np.dot(chi, words)) for words in (masked, opened, mac)))
        return low

    def _dealt(self, number: int, share: np.ndarray, mac: np.ndarray) -> None:
        self.share.words(share)
        if not self.last:
            self.mac.words(mac)
            return
        self.at("deal", number)
        self.mesh.exchange("deal", CORRECTION, {}, {self.dealer: view(mac)})

    def _to_all(self, phase: str, kind: int, words: np.ndarray, received: Sequence[np.ndarray]) -> None:
        rows = zip(self.others, received, strict=True)
        self.mesh.exchange(
            phase, kind, dict.fromkeys(self.others, view(words)), {peer: view(row) for peer, row in rows}
        )

    def _coin(self, number: int) -> bytes:
        """Step 4: a key that no party could choose or foresee."""
        self.at("coin", number)
        opened = self._committed("coin", number, os.urandom(16), COIN_COMMIT, COIN_OPEN)
        return hashlib.sha256(b"".join(opened)).digest()[:KEY_BYTES]

    def _check(self, number: int, masked: int, opened: int, mac: int) -> None:
        """Step 5, of the sums over chi_t times E, y and [alpha R]^i."""
        self.at("check", number)
        z = (mac + self.alpha * (masked - opened)) % MODULUS
        opened = self._committed("check", number, struct.pack(">QQ", z, masked), CHECK_COMMIT, CHECK_OPEN)
        values = [struct.unpack(">QQ", message) for message in opened]
        if len({masked for _, masked in values}) > 1:
            raise LinkError(self._suspects(), "input", "parties heard different inputs: somebody sent two versions")
        if sum(z for z, _ in values) % MODULUS:
            raise LinkError(self._suspects(), "check", "the MAC check failed: somebody opened a wrong share")

    def _suspects(self) -> str:
        return f"one of {', '.join(self.mesh.names[: self.terms.parties])}"

    def _committed(self, phase: str, number: int, message: bytes, commit: int, reveal: int) -> list[bytes]:
        """Everybody's messages, in the parties' order: none could be chosen after another was seen."""
        mine, salt = self.mesh.id, os.urandom(SALT)
        pledges = {peer: np.empty(32, np.uint8) for peer in self.others}
        pledge = self._pledge(phase, number, mine, message, salt)
        self.mesh.exchange(phase, commit, dict.fromkeys(self.others, pledge), {p: view(a) for p, a in pledges.items()})
        shown = {peer: np.empty(len(message) + SALT, np.uint8) for peer in self.others}
        both = message + salt
        self.mesh.exchange(phase, reveal, dict.fromkeys(self.others, both), {p: view(a) for p, a in shown.items()})
        found = {mine: message}
        for peer in self.others:
            text, proof = bytes(shown[peer][: len(message)]), bytes(shown[peer][len(message) :])
            if not hmac.compare_digest(self._pledge(phase, number, peer, text, proof), bytes(pledges[peer])):
                raise LinkError(self.mesh.names[peer], phase, "opened something other than it had committed to")
            found[peer] = text
        return [found[peer] for peer in sorted(found)]

    def _pledge(self, phase: str, number: int, peer: int, message: bytes, salt: bytes) -> bytes:
        about = f"{phase} {number} {peer} {len(message)} ".encode()
        return hashlib.sha256(about + message + salt).digest()


def names(parties: int) -> Sequence[str]:
    """What parties and dealer are called: party 0, party 1, ..., dealer."""
    return [*(f"party {i}" for i in range(parties)), "dealer"]
