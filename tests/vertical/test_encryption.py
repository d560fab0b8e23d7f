"""Both schemes behind the one interface: right numbers, and one clear error for whatever does not fit."""

import dataclasses
import json

import numpy as np
import pytest

from fl_utils.vertical import ckks, encryption
from fl_utils.vertical.cost import EncryptedStep, extrapolated, seconds
from fl_utils.vertical.encryption import Counts, Sealed, evaluator, owner

PRECISION = {"ckks": 3e-3, "paillier": 1e-5}  # of a sum of up to 256 rows beside masks of 2^32
SCHEMES = list(PRECISION)


def draw(n=6, i=3, o=2, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.uniform(-1, 1, shape) for shape in ((n, i), (i, o), (i, o), (n, o))]


@pytest.fixture(scope="module")
def sides():
    """Owner and evaluator of each scheme; keys are dear, so they are made once."""
    owners = {scheme: owner(scheme) for scheme in SCHEMES}
    return {scheme: (a, evaluator(a.public(), scheme)) for scheme, a in owners.items()}


@pytest.fixture(scope="module")
def strangers():
    """Owners of other keys."""
    return {scheme: owner(scheme) for scheme in SCHEMES}


def three_products(a, b, rows, share, own, slopes):
    """What the owner finds in the three products, masks taken off, with every matrix sent as bytes."""
    sealed = Sealed.from_bytes(a.seal_rows(rows).to_bytes())
    products, r = b.products(sealed, own)
    gradient, q = b.gradient(sealed, slopes)
    back = b.slopes(Sealed.from_bytes(a.seal_weights(share, len(rows)).to_bytes()), own, slopes)
    return a.open(Sealed.from_bytes(products.to_bytes())) - r, a.open(gradient) - q, a.open(back)


@pytest.mark.parametrize(
    ("scheme", "n", "i", "o"),
    [("paillier", 6, 3, 2), ("ckks", 6, 3, 2), ("ckks", 1, 1, 1), ("ckks", 256, 20, 3), ("ckks", 2048, 2, 1)],
)
def test_the_three_products(sides, scheme, n, i, o):
    a, b = sides[scheme]
    rows, share, own, slopes = draw(n, i, o)
    found = three_products(a, b, rows, share, own, slopes)
    for got, wanted in zip(found, (rows @ own, rows.T @ slopes, slopes @ (share + own).T), strict=True):
        assert got.shape == wanted.shape
        assert np.abs(got - wanted).max() < PRECISION[scheme]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_zeros_and_the_limits(sides, scheme):
    a, b = sides[scheme]
    ones = np.ones((2, 1))
    for rows, own, slopes in [(0, 0, 0), (2, 16, 16), (-2, 16, -16), (1e-9, 1e-9, 1e-9)]:
        got = three_products(a, b, rows * ones, own * ones[:1], own * ones[:1], slopes * ones)
        wanted = (1.0 * rows * own, 2.0 * rows * slopes, 2.0 * slopes * own)
        for values, value in zip(got, wanted, strict=True):
            assert np.abs(values - value).max() < 1e-5 * abs(value) + PRECISION[scheme]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_the_owner_opens_is_masked_anew_each_time(sides, scheme):
    a, b = sides[scheme]
    rows, _, own, slopes = draw()
    sealed = a.seal_rows(rows)
    opened = []
    for _ in range(2):
        products, r = b.products(sealed, own)
        gradient, q = b.gradient(sealed, slopes)
        opened.append(a.open(products))
        for mask in (r, q, opened[-1], a.open(gradient)):
            assert np.median(np.abs(mask)) > 2.0**28
    assert np.abs(opened[0] - opened[1]).min() > 1


def test_masks_fill_their_width_evenly():
    drawn = encryption.uniform(8.0, 50_000)
    assert drawn.min() >= -8 and drawn.max() < 8
    counts, _ = np.histogram(drawn, 16, (-8, 8))
    assert ((counts - 3125.0) ** 2 / 3125).sum() < 45  # chi-square, 15 degrees: 1 in 10,000


def test_operations_are_counted():
    a = owner("ckks")
    b = evaluator(a.public(), "ckks")
    rows, share, own, slopes = draw(256, 16, 16)
    three_products(a, b, rows, share, own, slopes)
    assert dataclasses.replace(a.counts, bytes=0) == Counts(encryptions=2 + 16, decryptions=16 + 32 + 1)
    assert dataclasses.replace(b.counts, bytes=0) == Counts(products=32 + 32 + 16, additions=32 + 32 + 16)
    assert a.counts.bytes > 18 * 90_000 and b.counts.bytes > 49 * 60_000
    assert (a.counts + b.counts).encryptions == 18


@pytest.mark.parametrize("scheme", SCHEMES)
def test_keys_that_do_not_match(sides, strangers, scheme):
    a, b = sides[scheme]
    stranger = strangers[scheme]
    rows, _, own, _ = draw()
    with pytest.raises(ValueError, match=f"under key {stranger.key}: it does not match this side's key {a.key}"):
        b.products(stranger.seal_rows(rows), own)
    products, _ = b.products(a.seal_rows(rows), own)
    with pytest.raises(ValueError, match="does not match"):
        stranger.open(products)
    forged = dataclasses.replace(products, key=stranger.key)  # the name is right, the key is not
    with pytest.raises(ValueError, match=r"another key's ciphertext|no ciphertext under this key"):
        stranger.open(forged)


def test_ciphertexts_and_keys_of_other_parameters(sides, monkeypatch):
    a, b = sides["ckks"]
    rows, _, own, _ = draw()
    with pytest.raises(ValueError, match="made under other parameters \\(paillier"):
        b.products(sides["paillier"][0].seal_rows(rows), own)
    sealed = a.seal_rows(rows)
    with pytest.raises(ValueError, match="made under other parameters"):
        b.products(dataclasses.replace(sealed, parameters="0123456789abcdef"), own)
    other = ckks.ParameterSet(8192, (60, 40, 40, 60)).context()
    import tenseal

    part = tenseal.ckks_vector(other, [0.5] * 2048).serialize()
    with pytest.raises(ValueError, match="damaged or made under other parameters"):
        b.products(dataclasses.replace(sealed, parts=(part,)), own)
    about, parts = encryption.unpacked(a.public())
    with pytest.raises(ValueError, match="N = 4096"):
        evaluator(encryption.packed(about, [other.serialize(save_secret_key=False), parts[1]]), "ckks")
    with pytest.raises(ValueError, match="without a key"):
        evaluator(encryption.packed(about, [a.contexts[ckks.MASKED].serialize(save_secret_key=True), parts[1]]), "ckks")
    with pytest.raises(ValueError, match="'paillier' was agreed on"):
        evaluator(a.public(), "paillier")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_second_multiplication_is_refused(sides, scheme):
    a, b = sides[scheme]
    rows, _, own, _ = draw()
    products, _ = b.products(a.seal_rows(rows), own)
    with pytest.raises(ValueError, match="allow one multiplication, it has been used up"):
        b.products(products, np.ones((2, 2)))
    with pytest.raises(ValueError, match="allow one multiplication, it has not been done"):
        a.open(a.seal_rows(rows))


def test_a_forged_level_is_noticed_in_the_ciphertext(sides):
    a, b = sides["ckks"]
    rows, _, own, _ = draw()
    products, _ = b.products(a.seal_rows(rows), own)
    forged = dataclasses.replace(products, kind="rows", level=1, parts=products.parts[:1])
    with pytest.raises(ValueError, match="level is used up"):
        b.products(forged, np.ones((2, 1)))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_values_beyond_the_noise_budget(sides, scheme):
    a, b = sides[scheme]
    rows, share, _, _ = draw()
    with pytest.raises(ValueError, match=r"rows reaches 3: .*up to 2 .*noise budget exceeded"):
        a.seal_rows(3 * np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"slopes reaches 66 in a row: .*up to 64"):
        b.gradient(a.seal_rows(rows), 33 * np.ones((6, 2)))
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="noise budget"):
            a.seal_weights(bad * share, 4)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_wrong_batch_sizes(sides, scheme):
    a, b = sides[scheme]
    rows, share, own, slopes = draw()
    sealed = a.seal_rows(rows)
    with pytest.raises(ValueError, match=r"slopes: shape \[5, 2\], want \[6, any\]"):
        b.gradient(sealed, slopes[:5])
    with pytest.raises(ValueError, match=r"weights: shape \[2, 2\], want \[3, any\]"):
        b.products(sealed, own[:2])
    with pytest.raises(ValueError, match=r"slopes: shape \[6, 2\], want \[4, 2\]"):
        b.slopes(a.seal_weights(share, 4), own, slopes)
    with pytest.raises(ValueError, match=r"of shape \[6, 3\] came where \[5, 3\] is due"):
        b.check(sealed, "rows", (5, 3))


def test_more_rows_than_slots(sides):
    with pytest.raises(ValueError, match="2049 rows: these parameters take 1 to 2048"):
        sides["ckks"][0].seal_rows(np.zeros((2049, 1)))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_damaged_bytes(sides, scheme):
    a, b = sides[scheme]
    rows, _, own, _ = draw()
    sealed = a.seal_rows(rows)
    data = sealed.to_bytes()
    for wrong in (b"", data[:3], data[:50], data[:-1], data + b"x", b"JUNK" + data[4:], data[:8] + b"[" + data[9:]):
        with pytest.raises(ValueError, match="not a sealed matrix"):
            Sealed.from_bytes(wrong)
    header = json.loads(data[8 : 8 + int.from_bytes(data[4:8], "big")])
    assert "seed" not in header and set(header) == {
        "scheme",
        "parameters",
        "key",
        "kind",
        "shape",
        "rows",
        "level",
        "lengths",
    }
    spoiled = dataclasses.replace(sealed, parts=(b"\0" * len(sealed.parts[0]), *sealed.parts[1:]))
    with pytest.raises(ValueError, match=r"damaged|no ciphertext"):
        b.products(spoiled, own)
    with pytest.raises(ValueError, match=r"in 2 ciphertexts: want 1|in 3 ciphertexts: want 1"):
        b.products(dataclasses.replace(sealed, parts=sealed.parts * 2), own)
    with pytest.raises(ValueError, match="not public parameters"):
        evaluator(a.public()[:-1], scheme)


def test_nothing_secret_is_public(sides):
    a, _ = sides["paillier"]
    public = a.public()
    for secret in (a._secret_key.p, a._secret_key.q):
        assert secret.to_bytes(128, "big") not in public
    assert len(sides["ckks"][0].public()) < 1000  # parameters alone: a key has hundreds of kilobytes


def test_paillier_results_are_made_anew(sides):
    """The same result twice is two ciphertexts: nobody sees from a result how it was made."""
    a, b = sides["paillier"]
    weights = a.seal_weights(np.ones((1, 1)), 1)
    first, second = (b.slopes(weights, np.ones((1, 1)), np.ones((1, 1))) for _ in range(2))
    assert first.parts != second.parts
    assert a.open(first) == a.open(second) == 2


def test_unknown_schemes_and_key_sizes():
    with pytest.raises(ValueError, match="scheme is 'bgv': want one of ckks, paillier"):
        owner("bgv")
    with pytest.raises(ValueError, match="bits is 512: want one of 2048"):
        owner("paillier", bits=512)


def test_ckks_is_at_least_fifty_times_as_fast_as_paillier_at_the_same_protocol():
    ckks_step = EncryptedStep("ckks", 256, 4, 4)
    few = EncryptedStep("paillier", 1, 4, 4), EncryptedStep("paillier", 3, 4, 4)
    for step in (ckks_step, *few):
        assert step() < 3e-3
    paillier, counts = extrapolated(few, 256)
    assert paillier > 50 * min(seconds(ckks_step) for _ in range(3))
    assert counts.encryptions == 256 * 4 + 16 and counts.products == 3 * 256 * 16  # as the protocol has them
    with pytest.raises(ValueError, match="a line needs two sizes"):
        extrapolated((few[0], few[0]), 256)
