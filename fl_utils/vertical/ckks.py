"""CKKS by TenSEAL (Cheon et al. 2017), packed in blocks so that nothing is ever rotated.

A block is a batch's n rows of one feature; a ciphertext of S slots holds S // n blocks. Multiplying it by a plain
vector of the same slots and adding ciphertexts is all that the evaluator does. Sums over blocks (the inputs of a
product) or inside of a block (the rows of a gradient) are left to the key's owner, who may not see the summands: the
evaluator adds a fresh mask to every slot and keeps only the masks' sums. For 256 rows and 16 -> 16 that is 32
ciphertext-plain products and 16 decryptions for a forward pass, where one ciphertext per feature takes 256 products.

Two parameter sets, both at 128 bits of security (the library refuses less):

masked   N = 4096, primes of 60, 27 and 20 bits (107 of at most 109), scale = the 27-bit prime (2^27): 2,048 slots.
         Masks are uniform in +-2^32 and reach below the ciphertext's own noise, which depends on the evaluator's
         numbers (they are drawn with 53 bits, so that mask times scale leaves no bit of the sum's noise uncovered but
         the lowest one or two). A slot that holds at most m is hidden up to a statistical distance of m / 2^32: 25
         bits at the limits of fl_utils.vertical.encryption, about 30 in a usual training. Error of a slot: about 1e-5.
fine     N = 8192, primes of 60, 20, 58 and 20 bits (158 of at most 218), scale = the 58-bit prime: 4,096 slots. For
         what the owner is to learn unmasked (``slopes``): its noise, about 2e-14, would tell the owner what its own
         ciphertexts were multiplied by, so it is drowned in uniform noise of +-2^-20, some 2^25 times as wide.

The last, 20-bit prime belongs to key switching, which is not used; no evaluation keys exist. Encryption is symmetric.
Decrypted values carry ciphertext noise from which, given to somebody who knows the ciphertext, the key can be computed
(Li and Micciancio 2021): the owner hands none of them back without a mask of its own; see fl_utils.vertical.hetero_nn.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib import import_module

import numpy as np

from fl_utils.vertical.encryption import LEVELS, Evaluator, Owner, Sealed, fresh_key_name, matrix, packed, uniform

MASK_WIDTH = 2.0**32
FLOOD_WIDTH = 2.0**-20
SMALL, FILLING = 2.0**-14, 2.0**-24


@dataclass(frozen=True)
class ParameterSet:
    """Degree N and the primes' bits; the scale is the last but one, so that rescaling, which drops it, leaves it."""

    degree: int
    bits: tuple[int, ...]

    @property
    def slots(self) -> int:
        return self.degree // 2

    def context(self):
        """A TenSEAL context with a fresh secret key."""
        import tenseal

        made = tenseal.context(
            tenseal.SCHEME_TYPE.CKKS,
            poly_modulus_degree=self.degree,
            coeff_mod_bit_sizes=list(self.bits),
            encryption_type=tenseal.ENCRYPTION_TYPE.SYMMETRIC,
            n_threads=1,
        )
        made.global_scale = float(_primes(made)[-1])
        return made

    def fits(self, context) -> bool:
        """Whether a context that came from elsewhere has these parameters, and no secret key."""
        primes = _primes(context)
        degree = context.seal_context().data.first_context_data().parms().poly_modulus_degree()
        bits = tuple(prime.bit_length() for prime in primes)
        return (
            degree == self.degree
            and bits == self.bits[:-1]
            and context.global_scale == float(primes[-1])
            and not context.has_secret_key()
        )


def _primes(context) -> list[int]:
    import_module("tenseal.sealapi")  # without it the library's own types have no Python side
    modulus = context.seal_context().data.first_context_data().parms().coeff_modulus()
    return [prime.value() for prime in modulus]


MASKED = ParameterSet(4096, (60, 27, 20))
FINE = ParameterSet(8192, (60, 20, 58, 20))
BOUNDS = {"products": MASK_WIDTH + 2.0**20, "gradient": MASK_WIDTH + 2.0**20, "slopes": 2.0**12}  # of honest values
SETS = {"rows": MASKED, "products": MASKED, "gradient": MASKED, "weights": FINE, "slopes": FINE}
_DESCRIPTION = json.dumps([asdict(MASKED), asdict(FINE), MASK_WIDTH, FLOOD_WIDTH]).encode()
PARAMETERS = sha256(_DESCRIPTION).hexdigest()[:16]


class _Ckks:
    """What owner and evaluator share: contexts by use, and ciphertexts out of and into bytes."""

    scheme, parameters = "ckks", PARAMETERS

    def vector(self, kind: str, part: bytes):
        """The ciphertext in ``part``, checked to be one vector of the kind's slots at its level and scale."""
        import tenseal

        context = self.contexts[SETS[kind]]
        try:
            found = tenseal.ckks_vector_from(context, part)
            (inner,) = found.ciphertext()
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"sealed {kind}: a ciphertext damaged or made under other parameters ({error})") from None
        primes = len(SETS[kind].bits) - 2 + LEVELS[kind]
        if found.size() != SETS[kind].slots or inner.size() != 2 or inner.coeff_modulus_size() != primes:
            raise ValueError(
                f"sealed {kind}: {found.size()} slots, {inner.coeff_modulus_size()} primes left; want "
                f"{SETS[kind].slots} and {primes}: its level is used up, or its parameters are others"
            )
        if inner.scale != context.global_scale:
            raise ValueError(f"sealed {kind}: scale {inner.scale:g} where {context.global_scale:g} is due")
        return found

    def blocks(self, kind: str, rows: int) -> int:
        """How many features' rows fit in one ciphertext. Raises ValueError where none does."""
        if not 0 < rows <= SETS[kind].slots:
            raise ValueError(f"a batch of {rows} rows: these parameters take 1 to {SETS[kind].slots}")
        return SETS[kind].slots // rows

    def packed(self, kind: str, values: np.ndarray) -> list[np.ndarray]:
        """``values`` [n, features] as slots (block, row), one array per ciphertext."""
        together, slots = self.blocks(kind, len(values)), SETS[kind].slots
        groups = range(0, values.shape[1], together)
        return [_filled(values[:, first : first + together].T.reshape(-1), slots) for first in groups]

    def tiled(self, kind: str, weights: np.ndarray, rows: int) -> list[np.ndarray]:
        """``weights`` [inputs, outputs], each number over one block: slots per output and ciphertext of inputs."""
        together, slots = self.blocks(kind, rows), SETS[kind].slots
        groups = range(0, len(weights), together)
        return [
            _filled(np.repeat(column[first : first + together], rows), slots)
            for column in weights.T
            for first in groups
        ]

    def parts_of(self, kind: str, shape: tuple[int, int], rows: int) -> int:
        together, (height, width) = self.blocks(kind, rows), shape
        inputs, times = {
            "rows": (width, 1),
            "weights": (height, width),
            "products": (1, width),
            "gradient": (height, width),
            "slopes": (width, 1),
        }[kind]
        return -(-inputs // together) * times


class CkksOwner(_Ckks, Owner):
    """The key's owner. Each owner has keys of its own, one per parameter set."""

    def __init__(self) -> None:
        super().__init__()
        self.contexts = {chosen: chosen.context() for chosen in (MASKED, FINE)}
        self.key = fresh_key_name()

    def public(self) -> bytes:
        without = {f"save_{name}": False for name in ("public_key", "secret_key", "galois_keys", "relin_keys")}
        about = {"scheme": self.scheme, "parameters": self.parameters, "key": self.key}
        return packed(about, [self.contexts[chosen].serialize(**without) for chosen in (MASKED, FINE)])

    def _encrypted(self, kind: str, slots: np.ndarray) -> bytes:
        import tenseal

        self.counts.encryptions += 1
        return tenseal.ckks_vector(self.contexts[SETS[kind]], tenseal.plain_tensor(slots.tolist())).serialize()

    def seal_rows(self, rows: np.ndarray) -> Sealed:
        rows = matrix(rows, "rows", (None, None), "rows")
        parts = [self._encrypted("rows", slots) for slots in self.packed("rows", rows)]
        return self.sealed("rows", rows.shape, len(rows), parts)

    def seal_weights(self, weights: np.ndarray, rows: int) -> Sealed:
        weights = matrix(weights, "weights", (None, None), "weights")
        parts = [self._encrypted("weights", slots) for slots in self.tiled("weights", weights, rows)]
        return self.sealed("weights", weights.shape, rows, parts)

    def open(self, sealed: Sealed) -> np.ndarray:
        self.check_product(sealed)
        kind, rows, (height, width) = sealed.kind, sealed.rows, sealed.shape
        together = self.blocks(kind, rows)
        values = np.stack([self._decrypted(kind, part) for part in sealed.parts])
        values = values[:, : together * rows].reshape(-1, together, rows)
        if kind == "products":  # a part per output
            return values.sum(1).T
        if kind == "gradient":  # parts: the rows' ciphertexts, each for every output
            sums = values.sum(2).reshape(-1, width, together)
            return sums.transpose(0, 2, 1).reshape(-1, width)[:height]
        return values.reshape(-1, rows)[:width].T

    def _decrypted(self, kind: str, part: bytes) -> np.ndarray:
        self.counts.decryptions += 1
        found = np.array(self.vector(kind, part).decrypt())
        if not np.abs(found).max() < BOUNDS[kind]:
            raise ValueError(
                f"sealed {kind} opens to values up to {np.abs(found).max():.3g}, where {BOUNDS[kind]:.3g} is the most "
                "that the parameters hold: another key's ciphertext, or its noise budget was exceeded"
            )
        return found


class CkksEvaluator(_Ckks, Evaluator):
    """The side without a key."""

    def __init__(self, about: dict[str, str], parts: list[bytes]) -> None:
        super().__init__()
        import tenseal

        if about.get("parameters") != self.parameters or len(parts) != 2:
            raise ValueError(
                f"public parameters {about.get('parameters')} in {len(parts)} parts: want {PARAMETERS} in 2"
            )
        try:
            found = [tenseal.context_from(part, 1) for part in parts]
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"public parameters are damaged: {error}") from None
        for chosen, context in zip((MASKED, FINE), found, strict=True):
            if not chosen.fits(context):
                raise ValueError(f"public parameters are not N = {chosen.degree}, primes {chosen.bits}, without a key")
        self.contexts = dict(zip((MASKED, FINE), found, strict=True))
        self.key = str(about.get("key"))

    def products(self, rows: Sealed, weights: np.ndarray) -> tuple[Sealed, np.ndarray]:
        self.check(rows, "rows")
        weights, n = matrix(weights, "weights", (rows.shape[1], None), "weights"), rows.rows
        inputs = [self.vector("rows", part) for part in rows.parts]
        factors = self.tiled("rows", weights, n)
        parts, masks = [], []
        for output in range(weights.shape[1]):
            total = None
            for index, part in enumerate(inputs):
                term = self._times(part, factors[output * len(inputs) + index])
                total = term if total is None else self._plus(total, term)
            total, mask = self._masked(total)
            parts.append(total.serialize())
            masks.append(self._blocks_of(mask, n).sum(0))
        return self.sealed("products", (n, weights.shape[1]), n, parts), np.stack(masks, 1)

    def gradient(self, rows: Sealed, slopes: np.ndarray) -> tuple[Sealed, np.ndarray]:
        self.check(rows, "rows")
        n, width = rows.shape
        slopes = matrix(slopes, "slopes", (n, None), "slopes")
        together = self.blocks("rows", n)
        factors = [_filled(np.tile(column, together), MASKED.slots) for column in slopes.T]
        parts, masks = [], []
        for part in rows.parts:
            part, sums = self.vector("rows", part), []
            for factor in factors:
                total, mask = self._masked(self._times(part, factor))
                parts.append(total.serialize())
                sums.append(self._blocks_of(mask, n).sum(1))
            masks.append(np.stack(sums, 1))
        shape = width, slopes.shape[1]
        return self.sealed("gradient", shape, n, parts), np.concatenate(masks)[:width]

    def slopes(self, weights: Sealed, own: np.ndarray, slopes: np.ndarray) -> Sealed:
        self.check(weights, "weights")
        n, (inputs, outputs) = weights.rows, weights.shape
        slopes = matrix(slopes, "slopes", (n, outputs), "slopes")
        added = self.packed("weights", slopes @ matrix(own, "own weights", (inputs, outputs), "weights").T)
        factors = [_filled(np.tile(c, self.blocks("weights", n)), FINE.slots) for c in slopes.T]
        parts = []
        for index, plain in enumerate(added):
            total = None
            for output, factor in enumerate(factors):
                term = self._times(self.vector("weights", weights.parts[output * len(added) + index]), factor)
                total = term if total is None else self._plus(total, term)
            parts.append(self._plus(total, (plain + uniform(FLOOD_WIDTH, FINE.slots)).tolist()).serialize())
        return self.sealed("slopes", (n, inputs), n, parts)

    def _times(self, vector, slots: np.ndarray):
        import tenseal

        self.counts.products += 1
        if np.abs(slots).max() < SMALL:  # encoded it might be zero, and a product with zero is no ciphertext any more
            slots = slots + FILLING
        return vector * tenseal.plain_tensor(slots.tolist())

    def _plus(self, vector, other):
        self.counts.additions += 1
        return vector + other

    def _masked(self, vector):
        mask = uniform(MASK_WIDTH, MASKED.slots)
        return self._plus(vector, mask.tolist()), mask

    def _blocks_of(self, mask: np.ndarray, rows: int) -> np.ndarray:
        together = self.blocks("products", rows)
        return mask[: together * rows].reshape(together, rows)


def _filled(values: np.ndarray, slots: int) -> np.ndarray:
    """``values`` with zeros up to ``slots``."""
    return np.concatenate([values, np.zeros(slots - len(values))])
