"""Private set intersection: two parties find the rows they share before they train on them together.

By openmined-psi: Diffie-Hellman on the curve P-256, the server's set sent as a Golomb-compressed set (GCS). Both sides
keep to the protocol (semi-honest); they exchange bytes alone and can run in two processes:

    client = Client(ids)                             server = Server(ids)
    request = client.request()             ->        reply = server.reply(request)
    announcement = client.announce(reply)  ->        server_rows, confirmation = server.match(announcement)
    client_rows = client.confirm(confirmation)

What each learns. From ``request`` (each id hashed to the curve and raised to a key that the client alone has) the
server learns how many ids the client has, and nothing else about them. From ``reply`` the client learns how many ids
the server has and which of its own are among them: the intersection is the client's, and nothing of it returns to the
server. To train together the server must know which of its rows are meant, so the client tells it, in a step of its
own: ``announcement`` holds a SHA-256 digest of each shared id and nothing of the others. From then on the server knows
the intersection as well, and still nothing else about the client's ids. ``confirmation`` (a byte per digest) says which
of them it found. A false positive of the GCS (``false_positives``: how many to expect at most over the whole request)
would show the server the digest of one id it does not have, from which a guessed id could be confirmed; it finds no
row, says so, and both leave it out. So the rows are always those of a plain join.

Let the smaller side be the client: each of its ids is raised to a key three times, each of the server's once.
"""

from __future__ import annotations

import hashlib
import re
import struct
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

FALSE_POSITIVES = 1e-9
DIGEST = 32  # bytes
ELEMENT = 33  # bytes of a point on the curve, compressed
RANGE = 1 << 63  # of the GCS's hashes
ARTICLES = {"the", "a", "an", "le", "la", "les", "l", "un", "une", "el", "los", "las", "il", "lo", "gli", "i"}
ARTICLES |= {"der", "die", "das", "ein", "eine"}


@dataclass(frozen=True)
class Alignment:
    """The shared rows of two tables. first, second: int64 [n], row ``first[k]`` is the same thing as ``second[k]``; the
    order is that of the ids' digests, which tells nothing of either table's own. client: "first" or "second".
    bytes_to_server, bytes_to_client: all messages each way."""

    first: np.ndarray
    second: np.ndarray
    client: str
    bytes_to_server: int
    bytes_to_client: int


def intersect(
    first_ids: Sequence[Any] | np.ndarray,
    second_ids: Sequence[Any] | np.ndarray,
    false_positives: float = FALSE_POSITIVES,
    names: tuple[str, str] = ("first", "second"),
) -> Alignment:
    """Both sides in this process, the smaller as the client; only bytes pass between them.

    ids: text or whole numbers (5 is the same id as "5"). ``names`` say in errors whose ids are wrong. Raises ValueError
    as :class:`Client` and :class:`Server` do.
    """
    checked = [_checked(ids, name) for ids, name in zip((first_ids, second_ids), names, strict=True)]
    first_is_client = len(checked[0]) <= len(checked[1])
    ids = checked if first_is_client else checked[::-1]
    of_client, of_server = names if first_is_client else names[::-1]
    client, server = Client(ids[0], of_client), Server(ids[1], of_server, false_positives)
    request = client.request()
    reply = server.reply(request)
    announcement = client.announce(reply)
    server_rows, confirmation = server.match(announcement)
    client_rows = client.confirm(confirmation)
    rows = (client_rows, server_rows) if first_is_client else (server_rows, client_rows)
    return Alignment(
        *rows,
        client="first" if first_is_client else "second",
        bytes_to_server=len(request) + len(announcement),
        bytes_to_client=len(reply) + len(confirmation),
    )


class Client:
    """The side that asks. Raises ValueError naming the side and examples where ids are empty, doubled or of another
    type than text or whole number."""

    def __init__(self, ids: Sequence[Any] | np.ndarray, name: str = "client"):
        import private_set_intersection.python as psi

        self.name = name
        self._ids = _checked(ids, name)
        self._key = psi.client.CreateWithNewKey(True)
        self._announced: np.ndarray | None = None

    def request(self) -> bytes:
        """The first message: 33 bytes and a little framing per id, whatever the ids are."""
        return self._key.CreateRequest(self._ids).SerializeToString()

    def announce(self, reply: bytes) -> bytes:
        """The third message, from the server's reply: the shared ids' digests, 32 bytes each, in rising order.

        Raises ValueError where ``reply`` is not one to this client's request.
        """
        import private_set_intersection.python as psi

        what = f"{self.name}: not a server's reply to this request"
        if len(reply) < 8 or len(reply) < 8 + (size := struct.unpack_from("<Q", reply)[0]):
            raise ValueError(f"{what}: {len(reply)} bytes, truncated")
        setup = _parsed(psi.ServerSetup(), reply[8 : 8 + size], what)
        response = _parsed(psi.Response(), reply[8 + size :], what)
        gcs = setup.gcs
        if not 0 <= gcs.div < 64 or not 0 < gcs.hash_range <= RANGE or not gcs.bits:
            raise ValueError(f"{what}: no Golomb-compressed set in it")
        _want_elements(response.encrypted_elements, what)
        if len(response.encrypted_elements) != len(self._ids):
            raise ValueError(f"{what}: {len(response.encrypted_elements)} elements; want {len(self._ids)}")
        try:
            shared = self._key.GetIntersection(setup, response)
        except RuntimeError as error:
            raise ValueError(f"{what}: {_first_line(error)}") from None
        pairs = sorted((_digest(self._ids[row]), row) for row in shared)
        self._announced = np.array([row for _, row in pairs], np.int64)
        return b"".join(digest for digest, _ in pairs)

    def confirm(self, confirmation: bytes) -> np.ndarray:
        """The client's rows int64 [n] in the common order, from the last message. Raises ValueError where it is not an
        answer to the announcement."""
        if self._announced is None:
            raise ValueError(f"{self.name}: a confirmation before the announcement; call announce first")
        if len(confirmation) != len(self._announced) or set(confirmation) - {0, 1}:
            raise ValueError(
                f"{self.name}: a confirmation of {len(confirmation)} bytes; want {len(self._announced)}, each 0 or 1"
            )
        return self._announced[np.frombuffer(confirmation, np.uint8) == 1]


class Server:
    """The side that answers. Raises ValueError as :class:`Client`, and where ``false_positives`` is not in (0, 1)."""

    def __init__(
        self,
        ids: Sequence[Any] | np.ndarray,
        name: str = "server",
        false_positives: float = FALSE_POSITIVES,
    ):
        import private_set_intersection.python as psi

        if not isinstance(false_positives, float) or not 0 < false_positives < 1:
            raise ValueError(f"false_positives is {false_positives!r}; want a chance between 0 and 1, such as 1e-9")
        self.name = name
        self._ids = _checked(ids, name)
        self._false_positives = false_positives
        self._key = psi.server.CreateWithNewKey(True)

    def reply(self, request: bytes) -> bytes:
        """The second message: the server's ids under its key as a GCS, and the client's elements under both keys.

        Raises ValueError where ``request`` is none, or its ids times the server's are too many for the wanted chance of
        a false positive (hashes have 63 bits: 2 million by 4 million ids at 1e-6).
        """
        import private_set_intersection.python as psi

        what = f"{self.name}: not a client's request"
        asked = _parsed(psi.Request(), request, what)
        if not asked.reveal_intersection:
            raise ValueError(f"{what}: it asks for no intersection")
        _want_elements(asked.encrypted_elements, what)
        count = len(asked.encrypted_elements)
        least = max(len(self._ids), count) * count / RANGE  # as the library sizes its hashes
        if self._false_positives < least:
            raise ValueError(
                f"{self.name}: false_positives is {self._false_positives:g}; want at least {least:.1e} for "
                f"{count:,} ids of the client and {len(self._ids):,} of the server"
            )
        try:
            response = self._key.ProcessRequest(asked).SerializeToString()
        except RuntimeError as error:
            raise ValueError(f"{what}: {_first_line(error)}") from None
        setup = self._key.CreateSetupMessage(self._false_positives, count, self._ids, psi.DataStructure.GCS)
        packed = setup.SerializeToString()
        return struct.pack("<Q", len(packed)) + packed + response

    def match(self, announcement: bytes) -> tuple[np.ndarray, bytes]:
        """The server's rows int64 [n] in the common order, and the last message: 1 for each digest found, 0 for others.

        Raises ValueError where ``announcement`` is not whole digests in rising order.
        """
        digests = [announcement[at : at + DIGEST] for at in range(0, len(announcement), DIGEST)]
        if len(announcement) % DIGEST or any(a >= b for a, b in pairwise(digests)):
            raise ValueError(
                f"{self.name}: an announcement of {len(announcement)} bytes; want digests of {DIGEST}, rising"
            )
        place = {_digest(id): row for row, id in enumerate(self._ids)}
        rows = [place[digest] for digest in digests if digest in place]
        return np.array(rows, np.int64), bytes(digest in place for digest in digests)


def key(title: str, year: int | str) -> str:
    """A name for a work that two catalogues are likely to share: ``key("The Étoile: Part II", 1999)`` is
    ``"etoile part ii the|1999"``.

    Compatible forms made one (NFKC), folded to lower case, accents of Latin, Greek and Cyrillic letters dropped, ``&``
    read as "and", apostrophes and full stops dropped, other punctuation read as a space, a leading article (English,
    French, Spanish, Italian, German) moved to the end, where catalogues put it as ", The". A title of nothing but
    punctuation stays as it is. ``year`` may be any other mark that tells works of one title apart, such as a game's
    platform, which is taken as it is. Raises ValueError on an empty title or mark and a year outside 1 to 9999.
    """
    if not isinstance(title, str) or not title.strip():
        raise ValueError(f"title is {title!r}; want text")
    number = isinstance(year, int | np.integer) and not isinstance(year, bool)
    if not (1 <= year <= 9999 if number else isinstance(year, str) and year.strip()):
        raise ValueError(f"year of {title!r} is {year!r}; want a whole number, 1 to 9999, or another mark as text")
    apart = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", title).casefold())
    plain = unicodedata.normalize("NFC", re.sub("[\u0300-\u036f]", "", apart))
    spelled = re.sub(r"(?<=\bl)['’ʼ]", " ", plain.replace("&", " and "))
    words = re.sub(r"[\W_]+", " ", re.sub(r"['’ʼ`´.]", "", spelled)).split()
    if len(words) > 1 and words[0] in ARTICLES:
        words = [*words[1:], words[0]]
    return f"{' '.join(words) or ' '.join(plain.split())}|{year}"


def _checked(ids: Sequence[Any] | np.ndarray, name: str) -> list[str]:
    """The ids as text, each once and none empty."""
    rows = hasattr(ids, "__len__") and not isinstance(ids, str | bytes | Mapping | Set)
    if not rows or getattr(ids, "ndim", 1) != 1:
        raise ValueError(f"{name}: ids are of type {type(ids).__name__}; want a sequence of ids, one per row")
    ids = list(ids)
    kinds = (str, int, np.integer)
    if wrong := [id for id in ids if not isinstance(id, kinds) or isinstance(id, bool | np.bool_)]:
        raise ValueError(f"{name}: {len(wrong)} ids are neither text nor whole numbers: {_some(wrong)}")
    text = [str(id) for id in ids]
    if not text:
        raise ValueError(f"{name}: no ids; want one per row")
    if empty := [row for row, id in enumerate(text) if not id.strip()]:
        raise ValueError(f"{name}: {len(empty)} ids are empty, in rows {_some(empty)} (from 0); want one per row")
    if again := [id for id, count in Counter(text).items() if count > 1]:
        raise ValueError(f"{name}: {len(again)} ids stand in more than one row: {_some(again)}; want each once")
    try:
        "".join(text).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: an id is not text that UTF-8 can hold: {error}") from None
    return text


def _some(values: Iterable[Any]) -> str:
    values = list(values)
    return ", ".join(map(repr, values[:3])) + ", ..." * (len(values) > 3)


def _digest(id: str) -> bytes:
    return hashlib.sha256(id.encode()).digest()


def _parsed(message: Any, data: bytes, what: str) -> Any:
    from google.protobuf.message import DecodeError

    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise ValueError(f"{what}: {error}") from None
    return message


def _want_elements(elements: Sequence[bytes], what: str) -> None:
    if not elements or any(len(element) != ELEMENT for element in elements):
        raise ValueError(f"{what}: want elements of {ELEMENT} bytes, at least one")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
