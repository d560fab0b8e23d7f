"""Paillier (1999) by phe: one ciphertext per number, as FATE's hetero-NN has it. The paper's baseline, and slow.

Numbers are fixed-point integers with 32 fractional bits, products have 64. Masks are uniform over +-2^32 down to the
last of these bits, as wide as those of CKKS; what is opened is rounded to float64, about 2^-20 beside such a mask.
Every result is multiplied by a fresh encryption of zero before it leaves: its owner sees nothing of how it was made.
"""

from __future__ import annotations

import json
import secrets
from hashlib import sha256

import numpy as np

from fl_utils.vertical.encryption import Evaluator, Owner, Sealed, fresh_key_name, matrix, packed

BITS = (2048, 3072, 4096)  # of the modulus: 2048 is about 112 bits of security, 3072 about 128
FRACTION = 32
LARGEST = 1 << (2 * FRACTION + 20)  # more than any sum of products within the limits, as an integer
MASK = 1 << (2 * FRACTION + 32)


class _Paillier:
    """What owner and evaluator share: numbers and ciphertexts as bytes."""

    scheme = "paillier"

    def named(self, bits: int) -> None:
        self.bits, self.width = bits, bits // 4  # a ciphertext is a number below n^2
        self.parameters = sha256(json.dumps([bits, FRACTION, LARGEST, MASK]).encode()).hexdigest()[:16]

    def parts_of(self, kind: str, shape: tuple[int, int], rows: int) -> int:
        return 1  # all numbers of a matrix in a row

    def cells(self, sealed: Sealed) -> np.ndarray:
        """The encrypted numbers of ``sealed``, an object array of its shape. Raises ValueError on a damaged one."""
        from phe import EncryptedNumber

        (data,), count = sealed.parts, sealed.shape[0] * sealed.shape[1]
        if len(data) != count * self.width:
            raise ValueError(f"sealed {sealed.kind} of {len(data)} bytes: want {count} numbers of {self.width} bytes")
        numbers = [int.from_bytes(data[at : at + self.width], "big") for at in range(0, len(data), self.width)]
        if not all(0 < number < self.public_key.nsquare for number in numbers):
            raise ValueError(f"sealed {sealed.kind}: a number that is no ciphertext under this key")
        cells = np.empty(count, dtype=object)
        cells[:] = [EncryptedNumber(self.public_key, number) for number in numbers]
        return cells.reshape(sealed.shape)

    def joined(self, cells: list) -> list[bytes]:
        """Encrypted numbers as one part; each is made anew by a fresh encryption of zero, unless it is fresh."""
        return [b"".join(cell.ciphertext().to_bytes(self.width, "big") for cell in cells)]


class PaillierOwner(_Paillier, Owner):
    """The key's owner. bits: of the modulus."""

    def __init__(self, bits: int = 2048) -> None:
        from phe import generate_paillier_keypair

        if bits not in BITS:
            raise ValueError(f"bits is {bits}: want one of {', '.join(map(str, BITS))}")
        super().__init__()
        self.public_key, self._secret_key = generate_paillier_keypair(n_length=bits)
        self.named(bits)
        self.key = fresh_key_name()

    def public(self) -> bytes:
        about = {"scheme": self.scheme, "parameters": self.parameters, "key": self.key}
        return packed(about, [self.public_key.n.to_bytes(self.bits // 8, "big")])

    def _encrypted(self, values: np.ndarray) -> list[bytes]:
        self.counts.encryptions += values.size
        return self.joined([self.public_key.encrypt(number) for number in _fixed(values).ravel().tolist()])

    def seal_rows(self, rows: np.ndarray) -> Sealed:
        rows = matrix(rows, "rows", (None, None), "rows")
        return self.sealed("rows", rows.shape, len(rows), self._encrypted(rows))

    def seal_weights(self, weights: np.ndarray, rows: int) -> Sealed:
        weights = matrix(weights, "weights", (None, None), "weights")
        return self.sealed("weights", weights.shape, rows, self._encrypted(weights))

    def open(self, sealed: Sealed) -> np.ndarray:
        self.check_product(sealed)
        cells = self.cells(sealed)
        self.counts.decryptions += cells.size
        try:
            numbers = [self._secret_key.decrypt(cell) for cell in cells.ravel()]
        except OverflowError:
            numbers = [2 * MASK]
        if max(map(abs, numbers)) > MASK + LARGEST:
            raise ValueError(
                f"sealed {sealed.kind} opens to values beyond what the parameters hold: another key's ciphertext, "
                "or one that was altered"
            )
        return np.array([number / (1 << 2 * FRACTION) for number in numbers]).reshape(sealed.shape)


class PaillierEvaluator(_Paillier, Evaluator):
    """The side without a key."""

    def __init__(self, about: dict[str, str], parts: list[bytes]) -> None:
        from phe import PaillierPublicKey

        super().__init__()
        bits = 8 * len(parts[0]) if len(parts) == 1 else 0
        modulus = int.from_bytes(parts[0], "big")
        if bits not in BITS or modulus.bit_length() != bits:
            raise ValueError(f"a Paillier modulus of {modulus.bit_length()} bits: want one of {BITS}")
        self.named(bits)
        if about.get("parameters") != self.parameters:
            raise ValueError(f"public parameters {about.get('parameters')}: this side has paillier {self.parameters}")
        self.public_key = PaillierPublicKey(modulus)
        self.key = str(about.get("key"))

    def products(self, rows: Sealed, weights: np.ndarray) -> tuple[Sealed, np.ndarray]:
        self.check(rows, "rows")
        weights = matrix(weights, "weights", (rows.shape[1], None), "weights")
        return self._masked("products", rows.rows, self._times(self.cells(rows), _fixed(weights)))

    def gradient(self, rows: Sealed, slopes: np.ndarray) -> tuple[Sealed, np.ndarray]:
        self.check(rows, "rows")
        slopes = matrix(slopes, "slopes", (rows.shape[0], None), "slopes")
        return self._masked("gradient", rows.rows, self._times(self.cells(rows).T, _fixed(slopes)))

    def slopes(self, weights: Sealed, own: np.ndarray, slopes: np.ndarray) -> Sealed:
        self.check(weights, "weights")
        slopes = matrix(slopes, "slopes", (weights.rows, weights.shape[1]), "slopes")
        own = _fixed(matrix(own, "own weights", weights.shape, "weights"))
        cells = self.cells(weights)
        self.counts.additions += cells.size
        found = self._times(cells + own, _fixed(slopes).T).T
        return self.sealed("slopes", found.shape, weights.rows, self.joined(found.ravel().tolist()))

    def _times(self, cells: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Encrypted [a, b] times plain integers [b, c]: encrypted [a, c]."""
        (height, inner), width = cells.shape, numbers.shape[1]
        self.counts.products += height * inner * width
        self.counts.additions += height * (inner - 1) * width
        found = np.empty((height, width), dtype=object)
        for row in range(height):
            for column in range(width):
                total = cells[row, 0] * numbers[0, column]
                for index in range(1, inner):
                    total = total + cells[row, index] * numbers[index, column]
                found[row, column] = total
        return found

    def _masked(self, kind: str, rows: int, cells: np.ndarray) -> tuple[Sealed, np.ndarray]:
        masks = [secrets.randbelow(2 * MASK) - MASK for _ in range(cells.size)]
        self.counts.additions += cells.size
        parts = self.joined([cell + mask for cell, mask in zip(cells.ravel().tolist(), masks, strict=True)])
        values = np.array([mask / (1 << 2 * FRACTION) for mask in masks])
        return self.sealed(kind, cells.shape, rows, parts), values.reshape(cells.shape)


def _fixed(values: np.ndarray) -> np.ndarray:
    """Numbers as integers with :data:`FRACTION` fractional bits, an object array of Python's own."""
    found = np.empty(values.shape, dtype=object)
    found.ravel()[:] = [round(value * (1 << FRACTION)) for value in values.ravel().tolist()]
    return found
