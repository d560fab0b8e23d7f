"""What two vertical parties say to one another: named messages over a link, counted by name.

An array goes as raw little-endian float64, whose length both sides know; anything of another length is announced in a
text before it. Frames are authenticated by :mod:`fl_utils.links`, and nothing is unpickled.
"""

from __future__ import annotations

import json

import numpy as np

from fl_utils.links import LinkError, Mesh, view
from fl_utils.vertical.encryption import Sealed

KIND = 1
LARGEST = 1 << 27  # bytes of one message


class Channel:
    """The link to ``peer``. ``sent``: by message, [how many, bytes]; ``phase``: the last message."""

    def __init__(self, mesh: Mesh, peer: int):
        self.mesh, self.peer = mesh, peer
        self.sent: dict[str, list[int]] = {}
        self.phase = "connect"

    def send_text(self, what: str, about: dict) -> None:
        """A few words as JSON, under 64 KiB."""
        self._send(what, json.dumps(about).encode())

    def receive_text(self, what: str) -> dict:
        """What :meth:`send_text` sent. Raises LinkError where it is no JSON object."""
        self.phase = what
        text = self.mesh.exchange(what, KIND, {}, {self.peer: None})[self.peer]
        try:
            found = json.loads(text)
            if not isinstance(found, dict):
                raise ValueError(f"it is a {type(found).__name__}")
        except ValueError as error:
            raise LinkError(self.mesh.names[self.peer], what, f"sent no JSON object: {error}") from None
        return found

    def send_bytes(self, what: str, data: bytes) -> None:
        """Any bytes up to :data:`LARGEST`, announced first. Raises ValueError beyond."""
        if not 0 < len(data) <= LARGEST:
            raise ValueError(f"message {what!r} has {len(data)} bytes: want 1 to {LARGEST}; take smaller batches")
        self.send_text(what, {"what": what, "bytes": len(data)})
        self._send(what, data)

    def receive_bytes(self, what: str) -> bytes:
        """What :meth:`send_bytes` sent under the same name. Raises LinkError."""
        about = self.receive_text(what)
        size = about.get("bytes")
        if about.get("what") != what or type(size) is not int or not 0 < size <= LARGEST:
            peer = self.mesh.names[self.peer]
            raise LinkError(peer, what, f"announced {about}: want {what!r} of up to {LARGEST} bytes")
        room = bytearray(size)
        self.mesh.exchange(what, KIND, {}, {self.peer: memoryview(room)})
        return bytes(room)

    def send_sealed(self, sealed: Sealed) -> None:
        """A matrix under encryption, by its kind's name."""
        self.send_bytes(sealed.kind, sealed.to_bytes())

    def receive_sealed(self, kind: str) -> Sealed:
        """A sealed matrix; whether it is the right one is its opener's to check. Raises LinkError, ValueError."""
        return Sealed.from_bytes(self.receive_bytes(kind))

    def send_array(self, what: str, values: np.ndarray) -> None:
        """Float64 numbers in the clear."""
        self._send(what, view(np.ascontiguousarray(values, dtype="<f8")))

    def receive_array(self, what: str, shape: tuple[int, ...]) -> np.ndarray:
        """Float64 of ``shape``. Raises LinkError where another number of bytes comes, or one is not finite."""
        self.phase = what
        found = np.empty(shape, dtype="<f8")
        self.mesh.exchange(what, KIND, {}, {self.peer: view(found)})
        if not np.isfinite(found).all():
            raise LinkError(self.mesh.names[self.peer], what, "sent numbers that are not finite")
        return found

    def _send(self, what: str, data: bytes | memoryview) -> None:
        self.phase = what
        count = self.sent.setdefault(what, [0, 0])
        before = self.mesh.bytes_up
        self.mesh.exchange(what, KIND, {self.peer: data}, {})
        count[0] += 1
        count[1] += self.mesh.bytes_up - before
