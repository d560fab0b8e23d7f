"""Masks from a cryptographic keystream (AES-128 in counter mode), never from a numerical generator.

A numerical generator's output can be computed from a few hundred of its numbers; a keystream's cannot be told from
random bits without its key (the pseudo-random function assumption on AES).
"""

from __future__ import annotations

import os

import numpy as np

KEY_BYTES = 16
BLOCK_SLACK = 15
ZEROS = memoryview(bytes(1 << 16))


def new_key() -> bytes:
    """A fresh key from the operating system's generator."""
    return os.urandom(KEY_BYTES)


class Keystream:
    """The keystream of one key, word after word. Whoever has the key makes the same words.

    >>> first, second = Keystream(bytes(16)), Keystream(bytes(16))
    >>> bool((first.words(np.empty(5, np.uint64)) == second.words(np.empty(5, np.uint64))).all())
    True
    """

    def __init__(self, key: bytes):
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        if len(key) != KEY_BYTES:
            raise ValueError(f"key has {len(key)} bytes: AES-128 wants {KEY_BYTES}")
        self._cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def words(self, out: np.ndarray) -> np.ndarray:
        """Fill ``out`` (a contiguous array of unsigned integers) with the next of the stream; returns it."""
        room = memoryview(out).cast("B")
        whole = max(0, len(room) - BLOCK_SLACK)  # update_into wants some bytes more than it writes
        for at in range(0, whole, len(ZEROS)):
            self._cipher.update_into(ZEROS[: whole - at], room[at:])
        room[whole:] = self._cipher.update(bytes(len(room) - whole))
        return out
