"""Additive secret sharing without authentication: what PySyft 0.2 called SPDZ, and the paper's Table 4 ran.

Over Z_2^32, fixed point. n parties with vectors x_0 .. x_(n-1); no dealer.

 1. share   Party j sends each other party i a key; its share x_j^i is that key's keystream, and x_j^j the rest of x_j.
 2. open    Party i adds up the shares it has and sends everybody the sum; all sums together are x_0 + ... + x_(n-1).

What it has: privacy against n - 1 parties that follow the protocol but look. What it has not: any protection against
one that does not. Whoever changes a bit of what it sends changes the average, and nobody notices.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fl_utils.links import Mesh, view
from fl_utils.secure.keystream import KEY_BYTES, Keystream, new_key
from fl_utils.secure.spdz import INPUT, OPEN, Terms, agree, confirm


def party(
    mesh: Mesh,
    terms: Terms,
    vector: np.ndarray,
    out: np.ndarray,
    at: Callable[[str, int], None] = lambda phase, chunk: None,
) -> None:
    """A party's side: its ``vector`` (float32 [d]) goes in, the weighted average comes into ``out`` (float32 [d]).

    Raises as :func:`fl_utils.secure.spdz.party` does, but for a wrong share, which nothing here can see.
    """
    if terms.value_bits != 32:
        raise ValueError(f"value_bits is {terms.value_bits}: additive sharing runs over Z_2^32, want 32")
    terms.check(vector, mesh.id)
    try:
        at("hello", 0)
        agree(mesh, terms)
        others = sorted(mesh.links)
        at("share", 0)
        keys = {peer: new_key() for peer in others}
        rooms = {peer: np.empty(KEY_BYTES, np.uint8) for peer in others}
        mesh.exchange("share", INPUT, keys, {peer: view(room) for peer, room in rooms.items()})
        given = [Keystream(key) for key in keys.values()]
        gotten = [Keystream(bytes(room)) for room in rooms.values()]
        size = min(terms.chunk, terms.length)
        real, words, received = np.empty(size), np.empty((2, size), np.uint32), np.empty((len(others), size), np.uint32)
        for number, part in enumerate(terms.chunks()):
            length = part.stop - part.start
            share, word = words[:, :length]
            terms.numbers.encode(vector[part], terms.weight(mesh.id), share, real[:length])
            for theirs, ours in zip(given, gotten, strict=True):
                np.subtract(share, theirs.words(word), out=share)
                np.add(share, ours.words(word), out=share)
            at("open", number)
            rows = {peer: view(row[:length]) for peer, row in zip(others, received, strict=True)}
            mesh.exchange("open", OPEN, dict.fromkeys(others, view(share)), rows)
            for row in received[:, :length]:
                np.add(share, row, out=share)
            terms.numbers.decode(share, out[part])
        confirm(mesh, others, at)
    except BaseException:
        out.fill(np.nan)
        raise
