"""Private set intersection: always the plain join, and each side sees no more than the docstring says."""

import hashlib
import random
import struct
import subprocess
import sys

import numpy as np
import pytest
from private_set_intersection.python import Request

from fl_utils.vertical import psi

OURS = [f"customer-{number:05d}" for number in range(40)]
THEIRS = [f"customer-{number:05d}" for number in range(25, 115)]


def digest(id):
    return hashlib.sha256(str(id).encode()).digest()


def plain_join(first, second):
    place = {str(id): row for row, id in enumerate(second)}
    return {(row, place[str(id)]) for row, id in enumerate(first) if str(id) in place}


def pairs(found):
    return set(zip(found.first.tolist(), found.second.tolist(), strict=True))


def talk(client_ids, server_ids, **options):
    """All four messages and both sides' rows."""
    client, server = psi.Client(client_ids), psi.Server(server_ids, **options)
    request = client.request()
    reply = server.reply(request)
    announcement = client.announce(reply)
    server_rows, confirmation = server.match(announcement)
    return request, reply, announcement, confirmation, client.confirm(confirmation), server_rows


@pytest.mark.parametrize("seed", range(6))
def test_the_rows_are_those_of_a_plain_join(seed):
    draw = random.Random(seed)
    first = draw.sample(range(200), draw.randint(1, 60))
    second = draw.sample(range(200), draw.randint(1, 60))
    found = psi.intersect(first, np.array(second))
    assert pairs(found) == plain_join(first, second)
    assert len(found.first) == len(found.second) == len(plain_join(first, second))
    assert found.first.dtype == found.second.dtype == np.int64
    assert found.client == ("first" if len(first) <= len(second) else "second")


def test_the_smaller_side_asks_and_the_bytes_are_those_of_the_messages():
    found = psi.intersect(OURS, THEIRS)
    turned = psi.intersect(THEIRS, OURS)
    assert (found.client, turned.client) == ("first", "second")
    assert pairs(turned) == {(second, first) for first, second in pairs(found)}
    request, reply, announcement, confirmation, *_ = talk(OURS, THEIRS)
    for sizes in (found, turned):
        assert sizes.bytes_to_server == len(request) + len(announcement)
        assert abs(sizes.bytes_to_client - len(reply) - len(confirmation)) < 16  # how far the set packs varies


def test_no_shared_row_is_no_error():
    found = psi.intersect(["a", "b"], ["c"])
    assert len(found.first) == len(found.second) == 0


def test_the_common_order_tells_nothing_of_either_sides_own():
    shuffled = random.Random(1).sample(OURS, len(OURS)), random.Random(2).sample(THEIRS, len(THEIRS))
    straight, mixed = psi.intersect(OURS, THEIRS), psi.intersect(*shuffled)
    assert [OURS[row] for row in straight.first] == [shuffled[0][row] for row in mixed.first]
    assert [THEIRS[row] for row in straight.second] == [shuffled[1][row] for row in mixed.second]


def test_numbers_and_text_of_them_are_one_id():
    assert pairs(psi.intersect([5, 7], np.array(["7", "8"]))) == {(1, 0)}


def test_the_server_sees_the_number_of_the_clients_ids_and_no_more():
    longer = [f"another customer with a much longer identifier {number}" for number in range(len(OURS))]
    requests = [psi.Client(ids).request() for ids in (OURS, OURS, longer, THEIRS[: len(OURS)])]
    assert len({len(request) for request in requests}) == 1  # whatever the ids, whatever the overlap
    assert len(set(requests)) == len(requests)  # a new key each time: not even a repetition is seen
    parsed = Request()
    parsed.ParseFromString(requests[0])
    assert len(parsed.encrypted_elements) == len(OURS)
    assert {len(element) for element in parsed.encrypted_elements} == {psi.ELEMENT}
    for id in OURS:
        assert id.encode() not in requests[0] and digest(id) not in requests[0]
    assert not set(map(bytes, parsed.encrypted_elements)) & {
        bytes(element) for ids in (OURS, THEIRS) for element in _elements(psi.Client(ids).request())
    }  # not comparable without the client's key


def _elements(request):
    parsed = Request()
    parsed.ParseFromString(request)
    return parsed.encrypted_elements


def test_what_the_server_computes_before_it_is_told_is_the_same_with_and_without_shared_ids():
    strangers = [f"stranger-{number:05d}" for number in range(len(OURS))]
    with_shared, without = (psi.Server(THEIRS).reply(psi.Client(ids).request()) for ids in (OURS, strangers))
    assert abs(len(with_shared) - len(without)) < 16


def test_the_announcement_is_the_shared_ids_digests_and_nothing_of_the_others():
    request, _, announcement, confirmation, client_rows, server_rows = talk(OURS, THEIRS)
    shared = set(OURS) & set(THEIRS)
    assert announcement == b"".join(sorted(map(digest, shared)))
    assert confirmation == b"\x01" * len(shared)
    assert [OURS[row] for row in client_rows] == [THEIRS[row] for row in server_rows]
    for id in set(OURS) - shared:
        assert all(form not in message for form in (id.encode(), digest(id)) for message in (request, announcement))


def test_the_client_sees_none_of_the_servers_ids():
    _, reply, _, confirmation, *_ = talk(OURS, THEIRS)
    for id in THEIRS:
        assert id.encode() not in reply + confirmation and digest(id) not in reply + confirmation


def test_false_positives_are_as_rare_as_asked_and_never_become_rows():
    strangers = [f"stranger-{number}" for number in range(60)]
    announced = 0
    for _ in range(15):
        *_, announcement, confirmation, client_rows, server_rows = talk(strangers, THEIRS, false_positives=0.9)
        announced += len(announcement) // psi.DIGEST
        assert not any(confirmation) and len(client_rows) == len(server_rows) == 0
    assert 2 <= announced <= 40  # 13.5 expected
    *_, announcement, _, client_rows, _ = talk(strangers + OURS, THEIRS)
    assert len(announcement) // psi.DIGEST == len(client_rows) == len(set(OURS) & set(THEIRS))


def test_a_false_positive_is_left_out_on_both_sides():
    client, server = psi.Client(OURS), psi.Server(THEIRS)
    announcement = client.announce(server.reply(client.request()))
    digests = [announcement[at : at + 32] for at in range(0, len(announcement), 32)]
    forged = sorted([digest("nobody"), *digests[1:]])
    rows, confirmation = server.match(b"".join(forged))
    assert [digest(THEIRS[row]) for row in rows] == [found for found in forged if found != digest("nobody")]
    assert list(confirmation) == [int(found != digest("nobody")) for found in forged]


def test_a_chance_that_the_hashes_cannot_keep_is_refused():
    server = psi.Server(THEIRS, false_positives=1e-18)
    with pytest.raises(ValueError, match=r"false_positives is 1e-18; want at least 3\.9e-16 for 40 ids.* and 90"):
        server.reply(psi.Client(OURS).request())


SERVER = """
import struct, sys
from fl_utils.vertical import psi
def receive():
    return sys.stdin.buffer.read(struct.unpack("<Q", sys.stdin.buffer.read(8))[0])
def send(data):
    sys.stdout.buffer.write(struct.pack("<Q", len(data)) + data)
    sys.stdout.buffer.flush()
server = psi.Server([f"customer-{number:05d}" for number in range(25, 115)])
send(server.reply(receive()))
rows, confirmation = server.match(receive())
send(confirmation)
send(rows.tobytes())
"""


def test_two_processes_that_exchange_bytes_alone_agree():
    with subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:

        def send(data):
            process.stdin.write(struct.pack("<Q", len(data)) + data)
            process.stdin.flush()

        def receive():
            return process.stdout.read(struct.unpack("<Q", process.stdout.read(8))[0])

        client = psi.Client(OURS)
        send(client.request())
        send(client.announce(receive()))
        rows = client.confirm(receive())
        others = np.frombuffer(receive(), np.int64)
    assert process.returncode == 0
    assert set(zip(rows.tolist(), others.tolist(), strict=True)) == plain_join(OURS, THEIRS)


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        ([], "no ids"),
        (["a", "b", "a", "c", "c"], "2 ids stand in more than one row: 'a', 'c'"),
        ([5, "5"], "1 ids stand in more than one row: '5'"),
        (["a", "", " "], r"2 ids are empty, in rows 1, 2 \(from 0\)"),
        ([1.0, 2.0], "2 ids are neither text nor whole numbers: 1.0, 2.0"),
        (["a", None], "neither text nor whole numbers: None"),
        ([True, False], "neither text nor whole numbers"),
        ([b"a"], "neither text nor whole numbers: b'a'"),
        ("abc", "ids are of type str; want a sequence"),
        (None, "ids are of type NoneType"),
        ({"a", "b"}, "ids are of type set"),
        (iter(["a"]), "iterator"),
        (np.ones((2, 2), int), "ids are of type ndarray"),
        (["\ud800"], "not text that UTF-8 can hold"),
    ],
)
def test_ids_that_cannot_be_aligned_are_named_with_their_side(ids, says):
    for side in (psi.Client, psi.Server):
        with pytest.raises(ValueError, match=says) as error:
            side(ids, name="hospital")
        assert str(error.value).startswith("hospital: ") and "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"^bank: "):
        psi.intersect(["a"], ids, names=("shop", "bank"))


@pytest.mark.parametrize("chance", [0, 1, 0.0, 1.0, -1e-9, 2.0, float("nan"), "1e-9", None])
def test_a_chance_outside_0_and_1_is_refused(chance):
    with pytest.raises(ValueError, match="false_positives"):
        psi.Server(["a"], false_positives=chance)


def test_messages_that_are_none_are_refused():
    client, server = psi.Client(OURS, "shop"), psi.Server(THEIRS, "bank")
    request = client.request()
    reply = server.reply(request)
    damaged = request[:10] + bytes([request[10] ^ 1]) + request[11:]
    for bad in (b"", b"\xff" * 20, request[:-1], request[: len(request) // 2], reply, damaged[:2] + b"\x00" * 40):
        with pytest.raises(ValueError, match="bank: not a client's request"):
            server.reply(bad)
    for bad in (b"", reply[:7], reply[:30], reply[:-40], request, struct.pack("<Q", 0) + reply[8:]):
        with pytest.raises(ValueError, match="shop: not a server's reply"):
            client.announce(bad)
    with pytest.raises(ValueError, match="90 elements; want 40"):
        client.announce(psi.Server(OURS).reply(psi.Client(THEIRS).request()))


def test_announcements_and_confirmations_that_are_none_are_refused():
    client, server = psi.Client(OURS, "shop"), psi.Server(THEIRS, "bank")
    with pytest.raises(ValueError, match="shop: a confirmation before the announcement"):
        client.confirm(b"")
    announcement = client.announce(server.reply(client.request()))
    doubled = announcement[:32] + announcement[:32]
    for bad in (announcement[:-1], announcement[32:64] + announcement[:32], doubled):
        with pytest.raises(ValueError, match="bank: an announcement of"):
            server.match(bad)
    _, confirmation = server.match(announcement)
    for bad in (confirmation[:-1], b"\x02" * len(confirmation)):
        with pytest.raises(ValueError, match=f"want {len(confirmation)}, each 0 or 1"):
            client.confirm(bad)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The Godfather", "Godfather, The"),
        ("L'Avventura", "Avventura, L’"),
        ("Amélie", "AMELIE"),
        ("Mr. & Mrs. Smith", "Mr and Mrs Smith"),
        ("Don't Look Now", "Dont look now"),
        ("Straße der Nacht", "Strasse der Nacht"),
        ("Spider-Man:  Homecoming", "Spider Man Homecoming"),
        ("Ａｋｉｒａ", "akira"),
        ("ガメラ", "カ\u3099メラ"),
    ],
)
def test_one_title_in_two_spellings_has_one_key(one, other):
    assert psi.key(one, 1999) == psi.key(other, 1999)


def test_keys_that_must_differ_do():
    keys = [psi.key(title, 1971) for title in ("$", "...", "A", "The", "カメラ", "ガメラ", "M", "Mr. M")]
    assert len(set(keys)) == len(keys)
    assert psi.key("Solaris", 1972) != psi.key("Solaris", 2002)
    assert psi.key("Tetris", "NES") != psi.key("Tetris", "GB")
    assert psi.key("The Étoile: Part II", 1999) == "etoile part ii the|1999"  # as the docstring says


@pytest.mark.parametrize(
    ("title", "year"),
    [("", 1999), ("  ", 1999), (None, 1999), (5, 1999), ("A", 0), ("A", 10000), ("A", 1999.0), ("A", True), ("A", " ")],
)
def test_a_key_needs_a_title_and_a_year(title, year):
    with pytest.raises(ValueError, match=r"title is|year of"):
        psi.key(title, year)
