"""Products under encryption between two parties, by two schemes behind one interface: CKKS (packed) and Paillier.

The owner of a key seals matrices; an evaluator, who holds no key, multiplies them by plain matrices of its own and adds
masks; the owner opens what comes back. Three products are all that a hetero-NN needs (n rows, i inputs, o outputs):

    owner                          evaluator                                          owner opens
    rows = seal_rows(a [n, i])     products(rows, w [i, o])    -> Sealed, r [n, o]     a w + r
                                   gradient(rows, d [n, o])    -> Sealed, q [i, o]     a^T d + q
    weights = seal_weights(e, n)   slopes(weights, w, d)       -> Sealed               d (e + w)^T   (e [i, o])

r and q are the masks' sums, known to the evaluator alone; the last product is the owner's to know and carries none.

Sealed matrices name their scheme, parameters, key and level, and travel as bytes; nothing is unpickled. Whatever does
not fit (another key, other parameters, a second multiplication where one is allowed, other rows) is a ValueError.
"""

from __future__ import annotations

import json
import os
import secrets
import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from itertools import pairwise

import numpy as np

SCHEMES = ("ckks", "paillier")
MAGIC = b"FLS1"
LEVELS = {"rows": 1, "weights": 1, "products": 0, "gradient": 0, "slopes": 0}  # multiplications that are left
LARGEST_HEADER = 1 << 16
LIMITS = {"rows": 2.0, "weights": 16.0, "slopes": 64.0}  # the largest absolute values; of slopes, a row's in sum


@dataclass
class Counts:
    """Operations upon ciphertexts: ``products`` are ciphertext times plaintext, ``bytes`` those of sealed matrices."""

    encryptions: int = 0
    products: int = 0
    additions: int = 0
    rotations: int = 0
    decryptions: int = 0
    bytes: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))


@dataclass(frozen=True)
class Sealed:
    """A matrix of ``shape`` under encryption, in ``parts``, one ciphertext each.

    level 1: not yet multiplied; 0: once. rows: the batch's, by which slots are laid out.
    """

    scheme: str
    parameters: str
    key: str
    kind: str
    shape: tuple[int, int]
    rows: int
    level: int
    parts: tuple[bytes, ...] = field(repr=False)

    def to_bytes(self) -> bytes:
        """Magic, length of the header, the header (JSON: all but the parts, and the parts' lengths), the parts."""
        about = {key: value for key, value in self.__dict__.items() if key != "parts"}
        header = json.dumps({**about, "lengths": [len(part) for part in self.parts]}).encode()
        return b"".join([MAGIC, struct.pack(">I", len(header)), header, *self.parts])

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> Sealed:
        """What :meth:`to_bytes` wrote. Raises ValueError where it did not."""
        data = bytes(data)
        try:
            if data[:4] != MAGIC:
                raise ValueError(f"it begins {data[:4]!r}, not {MAGIC!r}")
            (length,) = struct.unpack(">I", data[4:8])
            if length > LARGEST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            about = json.loads(data[8 : 8 + length])
            lengths = about.pop("lengths")
            about["shape"] = tuple(about["shape"])
            whole = all(type(part) is int and part > 0 for part in (*lengths, *about["shape"], about["rows"]))
            if not whole or len(about["shape"]) != 2 or about["kind"] not in LEVELS:
                raise ValueError("its header makes no sense")
            if 8 + length + sum(lengths) != len(data):
                raise ValueError(f"{len(data)} bytes where its header speaks of {8 + length + sum(lengths)}")
            ends = np.cumsum([8 + length, *lengths]).tolist()
            parts = tuple(data[start:end] for start, end in pairwise(ends))
            return cls(**about, parts=parts)
        except (ValueError, TypeError, KeyError, struct.error) as error:
            raise ValueError(f"not a sealed matrix: {error}; want what Sealed.to_bytes writes") from None

    @property
    def size(self) -> int:
        """Bytes of the ciphertexts."""
        return sum(map(len, self.parts))


class Side(ABC):
    """What both sides share: names of scheme, parameters and key, counts, and the checks of what comes in."""

    scheme: str
    parameters: str
    key: str

    def __init__(self) -> None:
        self.counts = Counts()

    def sealed(self, kind: str, shape: tuple[int, int], rows: int, parts: list[bytes]) -> Sealed:
        """``parts`` with all that names them; their bytes are counted."""
        names = self.scheme, self.parameters, self.key, kind
        made = Sealed(*names, tuple(map(int, shape)), int(rows), LEVELS[kind], tuple(parts))
        self.counts.bytes += made.size
        return made

    def check(self, sealed: Sealed, kind: str, shape: tuple[int, int] | None = None) -> None:
        """Raise ValueError unless ``sealed`` is a ``kind`` (of ``shape``) under this side's key and parameters."""
        if (sealed.scheme, sealed.parameters) != (self.scheme, self.parameters):
            raise ValueError(
                f"a ciphertext made under other parameters ({sealed.scheme} {sealed.parameters}): "
                f"this side has {self.scheme} {self.parameters}"
            )
        if sealed.key != self.key:
            raise ValueError(f"a ciphertext under key {sealed.key}: it does not match this side's key {self.key}")
        if sealed.level != LEVELS[kind]:
            used = "it has been used up" if LEVELS[kind] else "it has not been done"
            raise ValueError(
                f"sealed {sealed.kind} of level {sealed.level} where level {LEVELS[kind]} is due: "
                f"the parameters allow one multiplication, {used}"
            )
        if sealed.kind != kind:
            raise ValueError(f"sealed {sealed.kind} came where sealed {kind} were due")
        if shape is not None and sealed.shape != tuple(shape):
            raise ValueError(f"sealed {kind} of shape {list(sealed.shape)} came where {list(shape)} is due")
        parts = self.parts_of(kind, sealed.shape, sealed.rows)
        if len(sealed.parts) != parts:
            raise ValueError(f"sealed {kind} {list(sealed.shape)} in {len(sealed.parts)} ciphertexts: want {parts}")

    def check_product(self, sealed: Sealed) -> None:
        """:meth:`check` for something to open, which an evaluator must have made."""
        self.check(sealed, sealed.kind if LEVELS[sealed.kind] == 0 else "products")

    @abstractmethod
    def parts_of(self, kind: str, shape: tuple[int, int], rows: int) -> int:
        """In how many ciphertexts a sealed ``kind`` of ``shape`` comes. Raises ValueError for rows beyond the slots."""


class Owner(Side):
    """The side with the secret key."""

    @abstractmethod
    def public(self) -> bytes:
        """What :func:`evaluator` needs; nothing of the secret key is in it."""

    @abstractmethod
    def seal_rows(self, rows: np.ndarray) -> Sealed:
        """Encrypt ``rows`` [n, i]."""

    @abstractmethod
    def seal_weights(self, weights: np.ndarray, rows: int) -> Sealed:
        """Encrypt ``weights`` [i, o] for :meth:`Evaluator.slopes` with batches of ``rows`` rows."""

    @abstractmethod
    def open(self, sealed: Sealed) -> np.ndarray:
        """The matrix in what an evaluator made, float64, masks included: of the shape that ``sealed`` names."""


class Evaluator(Side):
    """The side without a key, which multiplies by what only it knows."""

    @abstractmethod
    def products(self, rows: Sealed, weights: np.ndarray) -> tuple[Sealed, np.ndarray]:
        """rows times ``weights`` [i, o] under masks; the masks' sums, float64 [n, o]."""

    @abstractmethod
    def gradient(self, rows: Sealed, slopes: np.ndarray) -> tuple[Sealed, np.ndarray]:
        """rows transposed times ``slopes`` [n, o] under masks; the masks' sums, float64 [i, o]."""

    @abstractmethod
    def slopes(self, weights: Sealed, own: np.ndarray, slopes: np.ndarray) -> Sealed:
        """``slopes`` [n, o] times the transpose of (sealed weights + ``own`` [i, o]): [n, i]."""


def owner(scheme: str, **parameters) -> Owner:
    """A fresh key under ``scheme`` ("ckks", or "paillier" with ``bits``, 2048 by default)."""
    if scheme == "ckks":
        from fl_utils.vertical.ckks import CkksOwner

        return CkksOwner(**parameters)
    if scheme == "paillier":
        from fl_utils.vertical.paillier import PaillierOwner

        return PaillierOwner(**parameters)
    raise ValueError(f"scheme is {scheme!r}: want one of {', '.join(SCHEMES)}")


def evaluator(public: bytes, scheme: str) -> Evaluator:
    """The other side of the owner whose :meth:`Owner.public` is ``public``; ``scheme`` is what was agreed on.

    Raises ValueError where ``public`` is of another scheme, of other parameters, damaged, or holds a secret key.
    """
    about, parts = unpacked(public)
    if about.get("scheme") != scheme:
        raise ValueError(f"public parameters of scheme {about.get('scheme')!r}: {scheme!r} was agreed on")
    if scheme == "ckks":
        from fl_utils.vertical.ckks import CkksEvaluator

        return CkksEvaluator(about, parts)
    if scheme == "paillier":
        from fl_utils.vertical.paillier import PaillierEvaluator

        return PaillierEvaluator(about, parts)
    raise ValueError(f"scheme is {scheme!r}: want one of {', '.join(SCHEMES)}")


def packed(about: dict[str, str], parts: list[bytes]) -> bytes:
    """Public parameters as bytes."""
    header = json.dumps({**about, "lengths": [len(part) for part in parts]}).encode()
    return b"".join([struct.pack(">I", len(header)), header, *parts])


def unpacked(data: bytes) -> tuple[dict[str, str], list[bytes]]:
    """What :func:`packed` joined. Raises ValueError."""
    try:
        (length,) = struct.unpack(">I", data[:4])
        about = json.loads(data[4 : 4 + min(length, LARGEST_HEADER)])
        lengths = about.pop("lengths")
        if not all(type(part) is int and part > 0 for part in lengths) or 4 + length + sum(lengths) != len(data):
            raise ValueError("lengths do not fit")
        ends = np.cumsum([4 + length, *lengths]).tolist()
        return about, [data[start:end] for start, end in pairwise(ends)]
    except (ValueError, TypeError, KeyError, AttributeError, struct.error) as error:
        raise ValueError(f"not public parameters: {error}; want what Owner.public returns") from None


def matrix(values: np.ndarray, what: str, shape: tuple[int | None, int | None], limit: str) -> np.ndarray:
    """``values`` as float64, checked: its shape (None: any), finite, within :data:`LIMITS`. Raises ValueError."""
    values = np.asarray(values, dtype=np.float64)
    wrong = values.ndim != 2 or any(want not in (None, have) for want, have in zip(shape, values.shape, strict=False))
    if wrong or 0 in values.shape:
        wanted = ", ".join("any" if part is None else str(part) for part in shape)
        raise ValueError(f"{what}: shape {list(values.shape)}, want [{wanted}] (rows of the batch, width of the layer)")
    largest = float((np.abs(values).sum(1) if limit == "slopes" else np.abs(values)).max())
    if not largest <= LIMITS[limit]:
        reached = f"{largest:.4g} in a row" if limit == "slopes" else f"{largest:.4g}"
        raise ValueError(
            f"{what} reaches {reached}: the scale and the masks are made for values up to {LIMITS[limit]:g} "
            "(noise budget exceeded beyond); scale it down, or lower the learning rate"
        )
    return values


def fresh_key_name() -> str:
    """A name for a new key: it says which key, nothing about it."""
    return secrets.token_hex(8)


def uniform(width: float, *shape: int) -> np.ndarray:
    """Float64 of ``shape``, uniform in [-width, width), out of the operating system's generator."""
    count = int(np.prod(shape))
    whole = np.frombuffer(os.urandom(8 * count), dtype="<u8") >> np.uint64(11)
    return ((whole.astype(np.float64) * 2.0**-53) * (2 * width) - width).reshape(shape)
