"""Links between parties' processes: framed, authenticated messages over TCP, with deadlines and an abort.

    magic "FLL1" | kind 1 | sequence 8 | payload length 8 | payload | tag 16

The tag is AES-GMAC under a key of this direction of this session, its nonce the sequence number: a frame that was
altered, cut, repeated, left out or moved does not verify. Nothing is unpickled, no length is believed beyond what the
protocol expects. Links authenticate; they hide nothing unless TLS is on (then both sides show certificates).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import selectors
import socket
import ssl
import struct
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MAGIC = b"FLL1"
PREFIX = struct.Struct(">4sBQQ")
HELLO = struct.Struct(">4sHH16s")  # magic, who speaks, to whom, fresh random bytes
TAG = 16
LARGEST_TEXT = 1 << 16
ABORT = 255
WOULD_BLOCK = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class LinkError(RuntimeError):
    """What stopped a party: ``party`` is whom it names, ``phase`` where the protocol stood."""

    def __init__(self, party: str, phase: str, reason: str):
        super().__init__(f"{party} in phase {phase!r}: {reason}")
        self.party, self.phase, self.reason = party, phase, reason


@dataclass(frozen=True)
class Tls:
    """PEM files of one party: the authority that all trust, its own certificate (CN = its name) and private key."""

    authority: Path | str
    certificate: Path | str
    key: Path | str

    def context(self, server: bool) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # the name in the certificate is compared with the party's, see _named
        context.load_verify_locations(self.authority)
        context.load_cert_chain(self.certificate, self.key)
        context.verify_mode = ssl.CERT_REQUIRED
        return context


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


class Mesh:
    """Links from one party to all others. ``names`` has one name per id; party ``id`` is this one.

    :meth:`exchange` is the only way to talk: all sends and receives of a step at once, so that nobody waits in a
    circle, under one deadline of ``timeout`` seconds.
    """

    def __init__(self, id: int, names: Sequence[str], links: Mapping[int, Link], timeout: float):
        self.id, self.names, self.links, self.timeout = id, list(names), dict(links), timeout

    def exchange(
        self,
        phase: str,
        kind: int,
        outgoing: Mapping[int, bytes | memoryview],
        incoming: Mapping[int, memoryview | None],
    ) -> dict[int, bytes]:
        """Send ``outgoing`` (peer -> payload) and fill ``incoming`` (peer -> buffer of the very length that must come).

        None in ``incoming`` takes a text of any length up to 64 KiB; those come back as {peer: payload}.
        Raises LinkError, naming the peer and the phase, on a wrong, altered, late or missing frame.
        """
        deadline = time.monotonic() + self.timeout
        sending = {peer: self.links[peer].frame(kind, payload) for peer, payload in outgoing.items()}
        receiving = {peer: _Incoming(self.links[peer], phase, kind, room) for peer, room in incoming.items()}
        waiting_for = dict(receiving)
        with selectors.DefaultSelector() as selector:
            for peer in sending.keys() | waiting_for.keys():
                selector.register(self.links[peer].sock, selectors.EVENT_READ, peer)
            while sending or waiting_for:
                for peer in list(sending):
                    try:
                        done = _sent(self.links[peer].sock, sending[peer])
                    except OSError as error:  # whoever stops has usually said why: that may be waiting to be read
                        (waiting_for.get(peer) or _Incoming(self.links[peer], phase, ABORT, None)).advance()
                        raise LinkError(self.names[peer], phase, f"connection lost: {error}") from error
                    if done:
                        del sending[peer]
                for peer in list(waiting_for):
                    if waiting_for[peer].advance():
                        del waiting_for[peer]
                if not (sending or waiting_for):
                    break
                for peer in {key.data for key in selector.get_map().values()}:
                    events = selectors.EVENT_WRITE * (peer in sending) | selectors.EVENT_READ * (peer in waiting_for)
                    if events:
                        selector.modify(self.links[peer].sock, events, peer)
                    else:
                        selector.unregister(self.links[peer].sock)
                left = deadline - time.monotonic()
                if left <= 0:
                    late = sorted(sending.keys() | waiting_for.keys())
                    names = ", ".join(self.names[peer] for peer in late)
                    raise LinkError(names, phase, f"silent or too slow: nothing whole within {self.timeout:g} s")
                selector.select(left)
        return {peer: bytes(part.room) for peer, part in receiving.items() if incoming[peer] is None}

    def abort(self, error: LinkError) -> None:
        """Tell every peer why this party stops, as far as that goes within a moment, and close all links."""
        about = {"party": error.party, "phase": error.phase, "reason": error.reason[:1000]}
        for link in self.links.values():
            with suppress(OSError, ValueError):
                link.sock.settimeout(0.5)
                for part in link.frame(ABORT, json.dumps(about).encode()):
                    link.sock.sendall(part)
                link.sock.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + 0.5  # closing over unread bytes would reset the link and swallow the last words
        for link in self.links.values():
            with suppress(OSError, ValueError):
                while (left := deadline - time.monotonic()) > 0:
                    link.sock.settimeout(left)
                    if not link.sock.recv(1 << 16):
                        break
        self.close()

    def close(self) -> None:
        """Close all links."""
        for link in self.links.values():
            with suppress(OSError):
                link.sock.shutdown(socket.SHUT_WR)
            with suppress(OSError):
                link.sock.close()

    @property
    def bytes_up(self) -> int:
        """Bytes sent, frames' own included."""
        return sum(link.bytes_up for link in self.links.values())

    @property
    def bytes_down(self) -> int:
        """Bytes received."""
        return sum(link.bytes_down for link in self.links.values())


class _Incoming:
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


def _sent(sock: socket.socket, parts: list[memoryview]) -> bool:
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


def _key(secret: bytes, speaker: int, hearer: int, nonces: bytes) -> bytes:
    return hmac.digest(secret, b"link" + struct.pack(">HH", speaker, hearer) + nonces, hashlib.sha256)[:16]


def listen(host: str = "127.0.0.1") -> socket.socket:
    """A listening socket on a free port; its address is ``.getsockname()``."""
    return socket.create_server((host, 0), backlog=64)


def connect(
    id: int,
    names: Sequence[str],
    addresses: Mapping[int, tuple[str, int]],
    listener: socket.socket | None,
    secret: bytes,
    timeout: float,
    tls: Tls | None = None,
    peers: Sequence[int] | None = None,
) -> Mesh:
    """Link party ``id`` with ``peers`` (all others by default): it calls those of lower id and answers the higher ones.

    secret: 32 bytes or more that only this session's parties know; each direction of each link derives its own key
    from it and from both sides' fresh random bytes, so that nothing of another session verifies. Whoever calls in
    without knowing it (or without a certificate that names the party) is turned away, and waiting goes on.
    Raises LinkError naming the parties that did not appear within ``timeout`` seconds.
    """
    if len(secret) < 32:
        raise ValueError(f"secret has {len(secret)} bytes: want at least 32")
    phase, deadline = "connect", time.monotonic() + timeout
    peers = [peer for peer in range(len(names)) if peer != id] if peers is None else list(peers)
    links: dict[int, Link] = {}
    turned_away = ""
    try:
        for peer in sorted(peer for peer in peers if peer < id):
            sock = _called(names[peer], addresses[peer], deadline, phase)
            links[peer] = _introduced(id, peer, names, sock, secret, deadline, tls, calling=True)
        while missing := [peer for peer in peers if peer not in links]:
            left = deadline - time.monotonic()
            try:
                listener.settimeout(max(left, 1e-3))
                sock, _ = listener.accept()
            except TimeoutError:
                absent = ", ".join(names[peer] for peer in missing)
                raise LinkError(absent, phase, f"did not appear within {timeout:g} s{turned_away}") from None
            except OSError as error:
                raise LinkError(names[id], phase, f"cannot be called any more: {error}") from error
            try:
                # A caller that says nothing may not use up everybody's time.
                patience = min(deadline, time.monotonic() + max(1.0, timeout / 4))
                link = _introduced(id, None, names, sock, secret, patience, tls, calling=False)
                if link.peer not in missing:
                    raise LinkError(link.name, phase, "called a second time, or is not expected")
                links[link.peer] = link
            except (LinkError, OSError) as error:
                turned_away = f"; a caller was turned away: {error}"
                with suppress(OSError):
                    sock.close()
    except LinkError as error:
        Mesh(id, names, links, timeout).abort(error)
        raise
    return Mesh(id, names, links, timeout)


def _called(name: str, address: tuple[str, int], deadline: float, phase: str) -> socket.socket:
    while True:
        try:
            return socket.create_connection(tuple(address), timeout=max(deadline - time.monotonic(), 1e-3))
        except OSError as error:
            if time.monotonic() + 0.05 > deadline:
                raise LinkError(name, phase, f"not to be reached: {error}") from error
            time.sleep(0.05)


def _introduced(
    id: int,
    peer: int | None,
    names: Sequence[str],
    sock: socket.socket,
    secret: bytes,
    deadline: float,
    tls: Tls | None,
    calling: bool,
) -> Link:
    """Say who speaks, hear who answers, and prove on both sides that the session's secret is known."""
    expected = names[peer] if peer is not None else "a caller"
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(max(deadline - time.monotonic(), 1e-3))
        if tls is not None:
            sock = tls.context(server=not calling).wrap_socket(sock, server_side=not calling)
        mine = os.urandom(16)
        if calling:
            sock.sendall(HELLO.pack(MAGIC, id, peer, mine))
        magic, speaker, hearer, theirs = HELLO.unpack(_exactly(sock, HELLO.size, deadline))
        if magic != MAGIC or hearer != id or speaker >= len(names) or (peer is not None and speaker != peer):
            raise LinkError(expected, "connect", "does not introduce itself as expected")
        if not calling:
            sock.sendall(HELLO.pack(MAGIC, id, speaker, mine))
        if tls is not None:
            _named(sock, names[speaker])
        nonces = mine + theirs if calling else theirs + mine
        send, receive = _key(secret, id, speaker, nonces), _key(secret, speaker, id, nonces)
        sock.sendall(hmac.digest(send, b"proof", hashlib.sha256))
        proof = _exactly(sock, 32, deadline)
        if not hmac.compare_digest(proof, hmac.digest(receive, b"proof", hashlib.sha256)):
            raise LinkError(expected, "connect", "does not know this session's secret")
        return Link(speaker, names[speaker], sock, send, receive)
    except (OSError, struct.error) as error:
        raise LinkError(expected, "connect", f"{type(error).__name__}: {error}") from error


def _exactly(sock: socket.socket, count: int, deadline: float) -> bytes:
    data = b""
    while len(data) < count:
        sock.settimeout(max(deadline - time.monotonic(), 1e-3))
        part = sock.recv(count - len(data))
        if not part:
            raise ConnectionResetError("closed the connection")
        data += part
    return data


def _named(sock: ssl.SSLSocket, name: str) -> None:
    subject = {key: value for part in sock.getpeercert().get("subject", ()) for key, value in part}
    if subject.get("commonName") != name:
        raise LinkError(name, "connect", f"its certificate names {subject.get('commonName')!r}")


def view(array: np.ndarray) -> memoryview:
    """A contiguous array as bytes to send or to fill."""
    return memoryview(array).cast("B")
