"""Parties of the encrypted average as threads with real sockets, and a man in the middle who spoils what passes him."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from fl_utils import frames, links
from fl_utils.secure import additive, spdz

GREETING = (links.HELLO.size, 32)  # what passes in each direction before the first frame: hello, then proof


class Outcome:
    """What each party ended with: ``out`` (NaN where it has no average) and ``errors`` by id (the dealer's is n)."""

    def __init__(self, parties: int, length: int):
        self.out = [np.zeros(length, np.float32) for _ in range(parties)]
        self.errors: dict[int, Exception] = {}

    def silent(self, id: int) -> bool:
        """Whether party ``id`` gave nothing out."""
        return bool(np.isnan(self.out[id]).all()) and id in self.errors


def run(
    vectors: Sequence[np.ndarray],
    counts: Sequence[int],
    timeout: float = 20.0,
    protocol: str = "spdz",
    route: Callable[[int, int, tuple[str, int]], tuple[str, int]] = lambda caller, callee, address: address,
    takes_part: Callable[[int], bool] = lambda id: True,
    insider: dict[int, Callable] | None = None,
    tls: dict[int, links.Tls] | None = None,
    terms: dict[int, spdz.Terms] | None = None,
    secrets: dict[int, bytes] | None = None,
    **bits,
) -> Outcome:
    """One average. route: where ``caller`` finds ``callee``. insider: id -> what runs in place of that party."""
    count, length = len(vectors), len(vectors[0])
    common = spdz.Terms(tuple(counts), length, protocol=protocol, **bits)
    names = spdz.names(count)[: None if protocol == "spdz" else count]
    listeners = [links.listen() for _ in range(count)]
    places = [listener.getsockname() for listener in listeners]  # now: a party that fails closes its own
    secret, outcome = os.urandom(32), Outcome(count, length)

    def play(id: int) -> None:
        mesh = None
        mine = (terms or {}).get(id, common)
        try:
            addresses = {peer: route(id, peer, place) for peer, place in enumerate(places)}
            own = listeners[id] if id < count else None
            key = (secrets or {}).get(id, secret)
            mesh = links.connect(id, names, addresses, own, key, timeout, (tls or {}).get(id))
            if insider and id in insider:
                insider[id](mesh, mine, vectors[id] if id < count else None, outcome.out[id] if id < count else None)
            elif id == count:
                spdz.deal(mesh, mine)
            elif protocol == "spdz":
                spdz.party(mesh, count, mine, vectors[id], outcome.out[id])
            else:
                additive.party(mesh, mine, vectors[id], outcome.out[id])
            mesh.close()
        except Exception as error:
            outcome.errors[id] = error
            if id < count:
                outcome.out[id].fill(np.nan)
            if mesh is not None:
                mesh.abort(error if isinstance(error, links.LinkError) else links.LinkError(names[id], "?", str(error)))
        finally:
            if id < count:
                listeners[id].close()

    threads = [threading.Thread(target=play, args=(id,), daemon=True) for id in range(len(names)) if takes_part(id)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout * 8 + 20)
        assert not thread.is_alive(), "a party hangs"
    return outcome


class Middle:
    """Sits between one caller and one callee, forwards whole frames, and spoils the one it is told to.

    spoil: ``f(frame number in this direction, frame bytes) -> list of byte strings to send on`` for one direction;
    None closes both connections.
    """

    def __init__(self, address: tuple[str, int], from_caller: bool, spoil: Callable[[int, bytes], list[bytes] | None]):
        self.address, self.from_caller, self.spoil = address, from_caller, spoil
        self.listener = links.listen()
        self.spoiled = False
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            caller, _ = self.listener.accept()
            callee = socket.create_connection(self.address)
            for source, target, active in ((caller, callee, self.from_caller), (callee, caller, not self.from_caller)):
                threading.Thread(target=self._pass, args=(source, target, active), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, active: bool) -> None:
        number = 0
        with suppress(OSError):
            for length in GREETING:
                target.sendall(_exactly(source, length))
            while prefix := _exactly(source, frames.PREFIX.size):
                rest = _exactly(source, frames.PREFIX.unpack(prefix)[3] + frames.TAG)
                parts = self.spoil(number, prefix + rest) if active else [prefix + rest]
                number += 1
                if parts is None:
                    self.spoiled = True
                    break
                self.spoiled |= active and parts != [prefix + rest]
                for part in parts:
                    target.sendall(part)
        for side in (source, target):
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)


def kind_of(frame: bytes) -> int:
    """The kind of message that a frame carries."""
    return frames.PREFIX.unpack(frame[: frames.PREFIX.size])[1]


def _exactly(source: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = source.recv(count - len(data))
        if not part:
            return b""
        data += part
    return data
