import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_utils.secure.fixed_point import FixedPoint
from fl_utils.secure.keystream import Keystream, new_key

finite = st.floats(-500, 500, width=32)


@settings(max_examples=60, deadline=None)
@given(st.lists(finite, min_size=1, max_size=20), st.sampled_from([8, 16, 20]), st.sampled_from([np.uint32, np.uint64]))
def test_there_and_back_within_half_a_unit(values, bits, word):
    numbers, vector = FixedPoint(32, bits), np.array(values, np.float32)
    words = numbers.encode(vector, 1.0, np.empty(len(vector), word), np.empty(len(vector)))
    back = numbers.decode(words, np.empty(len(vector), np.float32))
    assert np.abs(back.astype(float) - vector).max() <= 2.0 ** -(bits + 1) + 500 * 2.0**-24


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(finite, finite, finite), min_size=1, max_size=20))
def test_sums_of_what_is_within_the_bound_never_leave_the_value_bits(rows):
    numbers = FixedPoint(32, 20)
    vectors = np.array(rows, np.float32).T
    for vector in vectors:
        numbers.check(vector, 1 / 3, 3)
    total = np.zeros(vectors.shape[1], np.uint32)
    for vector in vectors:
        total += numbers.encode(
            np.ascontiguousarray(vector), 1 / 3, np.empty(len(vector), np.uint32), np.empty(len(vector))
        )
    found = numbers.decode(total, np.empty(len(total), np.float32))
    assert np.abs(found - vectors.astype(float).mean(0)).max() <= numbers.error(3) + 500 * 2.0**-24


def test_the_bound_names_the_largest_weight_and_what_would_hold_it():
    numbers, vector = FixedPoint(32, 20), np.array([1.0, -3000.0], np.float32)
    message = (
        r"the largest weight, 3000, times its party's share 0\.5 .* for 2 parties with 20 of 32 bits .* at most 19"
    )
    with pytest.raises(ValueError, match=message):
        numbers.check(vector, 0.5, 2)
    FixedPoint(32, 19).check(vector, 0.5, 2)
    edge = np.array([numbers.largest(2) * 2], np.float32) * np.float32(1 - 1e-6)
    numbers.check(edge, 0.5, 2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value):
    with pytest.raises(ValueError, match="not finite"):
        FixedPoint().check(np.array([0.0, value], np.float32), 0.5, 2)
    with pytest.raises(ValueError, match="vector is empty"):
        FixedPoint().check(np.empty(0, np.float32), 0.5, 2)


def test_a_keystream_is_aes_in_counter_mode_however_it_is_read():
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    key = new_key()
    expected = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(800))
    stream = Keystream(key)
    parts = [stream.words(np.empty(count, np.uint64)) for count in (1, 60, 3, 36)]
    assert np.concatenate(parts).tobytes() == expected
    halves = Keystream(key).words(np.empty(200, np.uint32))
    assert halves.tobytes() == expected
    with pytest.raises(ValueError, match="AES-128 wants 16"):
        Keystream(b"short")
