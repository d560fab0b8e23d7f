"""Links between parties' processes: authenticated frames over TCP, with deadlines and an abort.

Links authenticate (see ``fl_utils.frames``); they hide nothing unless TLS is on (then both sides show certificates).
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

from fl_utils.frames import ABORT, MAGIC, Incoming, Link, LinkError, sent, view

__all__ = ["Link", "LinkError", "Mesh", "Tls", "connect", "listen", "view"]

HELLO = struct.Struct(">4sHH16s")  # magic, who speaks, to whom, fresh random bytes


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
        receiving = {peer: Incoming(self.links[peer], phase, kind, room) for peer, room in incoming.items()}
        waiting_for = dict(receiving)
        with selectors.DefaultSelector() as selector:
            for peer in sending.keys() | waiting_for.keys():
                selector.register(self.links[peer].sock, selectors.EVENT_READ, peer)
            while sending or waiting_for:
                for peer in list(sending):
                    try:
                        done = sent(self.links[peer].sock, sending[peer])
                    except OSError as error:  # whoever stops has usually said why: that may be waiting to be read
                        (waiting_for.get(peer) or Incoming(self.links[peer], phase, ABORT, None)).advance()
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
