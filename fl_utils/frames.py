"""Frames between parties' processes: lengths, sequence numbers and tags, written and read piece by piece.

    magic "FLL1" | kind 1 | sequence 8 | payload length 8 | payload | tag 16

The tag is AES-GMAC under a key of this direction of this session, its nonce the sequence number: a frame that was
altered, cut, repeated, left out or moved does not verify. Nothing is unpickled, no length is believed beyond what the
protocol expects.
"""

from __future__ import annotations

import hmac
import json
import socket
import ssl
import struct

import numpy as np

MAGIC = b"FLL1"
PREFIX = struct.Struct(">4sBQQ")
TAG = 16
LARGEST_TEXT = 1 << 16
ABORT = 255
WOULD_BLOCK = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class LinkError(RuntimeError):
    """What stopped a party: ``party`` is whom it names, ``phase`` where the protocol stood."""

    def __init__(self, party: str, phase: str, reason: str):
        super().__init__(f"{party} in phase {phase!r}: {reason}")
        self.party, self.phase, self.reason = party, phase, reason


class Link:
    """One connection to one peer, ready for frames in both directions."""

    def __init__(self, peer: int, name: str, sock: socket.socket, send_key: bytes, receive_key: bytes):
        self.peer, self.name, self.sock = peer, name, sock
        self._keys = send_key, receive_key
        self._numbers = [0, 0]
        self.bytes_up = self.bytes_down = 0
        sock.setblocking(False)

    def frame(self, kind: int, payload: bytes | memoryview) -> list[memoryview]:
        """The buffers of the next frame to send."""
        prefix = PREFIX.pack(MAGIC, kind, self._numbers[0], len(payload))
        tag = _tag(self._keys[0], self._numbers[0], prefix, payload)
        self._numbers[0] += 1
        self.bytes_up += len(prefix) + len(payload) + TAG
        return [memoryview(part) for part in (prefix, payload, tag) if len(part)]

    def opened(self, prefix: bytes, payload: memoryview, tag: bytes) -> bool:
        """Whether a received frame is the next one that the peer sent, unaltered."""
        expected = _tag(self._keys[1], self._numbers[1], prefix, payload)
        self._numbers[1] += 1
        self.bytes_down += len(prefix) + len(payload) + TAG
        return hmac.compare_digest(expected, tag)

    @property
    def awaited(self) -> int:
        """The sequence number that the peer's next frame must have."""
        return self._numbers[1]


class Incoming:
    """The next frame from one peer as it arrives, piece by piece."""

    def __init__(self, link: Link, phase: str, kind: int, room: memoryview | None):
        self.link, self.phase, self.kind = link, phase, kind
        self.free, self.room = room is None, room
        self.parts, self.filled = [memoryview(bytearray(PREFIX.size))], 0

    def advance(self) -> bool:
        """Read what is there; True when the frame is whole and sound."""
        while True:
            part = self.parts[-1]
            while self.filled < len(part):
                try:
                    count = self.link.sock.recv_into(part[self.filled :])
                except WOULD_BLOCK:
                    return False
                except OSError as error:
                    raise LinkError(self.link.name, self.phase, f"connection lost: {error}") from error
                if count == 0:
                    raise LinkError(self.link.name, self.phase, "closed the connection")
                self.filled += count
            self.filled = 0
            if len(self.parts) == 1:
                self._announced()
            elif len(self.parts) == 2:
                self.parts.append(memoryview(bytearray(TAG)))
            else:
                self._verified()
                return True

    def _announced(self) -> None:
        magic, kind, number, length = PREFIX.unpack(self.parts[0])
        if magic != MAGIC:
            raise LinkError(self.link.name, self.phase, f"sent garbage: a frame begins {bytes(magic)!r}")
        if number != self.link.awaited:
            raise LinkError(self.link.name, self.phase, f"frame {number} came where {self.link.awaited} was due")
        if kind == ABORT:
            self.free, self.room = True, None
        elif kind != self.kind:
            raise LinkError(self.link.name, self.phase, f"a message of kind {kind} came where {self.kind} was due")
        if self.free:
            if length > LARGEST_TEXT:
                raise LinkError(self.link.name, self.phase, f"a text of {length} bytes: at most {LARGEST_TEXT}")
            self.room = memoryview(bytearray(length))
        elif length != len(self.room):
            raise LinkError(self.link.name, self.phase, f"a payload of {length} bytes: want {len(self.room)}")
        self.parts.append(self.room)

    def _verified(self) -> None:
        prefix = bytes(self.parts[0])
        if not self.link.opened(prefix, self.room, bytes(self.parts[2])):
            raise LinkError(self.link.name, self.phase, "a frame was altered on its way, or comes from somebody else")
        if prefix[4] == ABORT:
            try:
                about = json.loads(bytes(self.room))
                party, phase, reason = (str(about[key])[:1000] for key in ("party", "phase", "reason"))
            except (ValueError, KeyError, TypeError):
                party, phase, reason = self.link.name, self.phase, "stopped without a reason that can be read"
            raise LinkError(party, phase, f"{reason} (says {self.link.name})")


def sent(sock: socket.socket, parts: list[memoryview]) -> bool:
    """Send as much as goes; True when all has gone."""
    while parts:
        try:
            count = sock.send(parts[0])
        except WOULD_BLOCK:
            return False
        parts[0] = parts[0][count:]
        if not parts[0]:
            del parts[0]
    return True


def _tag(key: bytes, number: int, prefix: bytes, payload: bytes | memoryview) -> bytes:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    mac = Cipher(algorithms.AES(key), modes.GCM(number.to_bytes(12, "big"))).encryptor()
    mac.authenticate_additional_data(prefix)
    if len(payload):
        mac.authenticate_additional_data(payload)
    mac.finalize()
    return mac.tag


def view(array: np.ndarray) -> memoryview:
    """A contiguous array as bytes to send or to fill."""
    return memoryview(array).cast("B")
