"""What the server takes from a client, and the one clear error for each thing it does not take."""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.error
import urllib.request

import pytest
import torch

from fl_utils import federation, wire
from fl_utils.federation import FederationError
from fl_utils.models.mobile import small_cnn_600k
from fl_utils.on_device.order import train
from fl_utils.on_device.server import Server, new_tokens, sha256
from fl_utils.training import LocalTraining

BATCH = 32  # of the export in conftest.py
LOCAL = LocalTraining(1, BATCH, 0.1)


@pytest.fixture
def server(contract):
    with Server(contract, new_tokens([0, 1]), patience=2.0) as made:
        yield made
        made.shutdown(wait=False)


def call(server, action, id, body=None, token=None):
    """Status and body of one request, by a client that may be wrong."""
    token = server._places[id].token if token is None else token
    request = urllib.request.Request(f"{server.address}/{action}/{id}", body, {"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def said(answer):
    return answer[0], json.loads(answer[1])["error"]


def join(server, id, examples=3, **changes):
    about = {"examples": examples, "model_sha256": server.contract.sha256} | changes
    return call(server, "join", id, json.dumps(about).encode())


def update(header, vector, **changes):
    """An update as an honest client sends it, but for ``changes`` of its header."""
    own = {"kind": "update", "round": header["round"], "client": header["client"], "num_examples": 3}
    own |= {"state_sha256": header["state_sha256"], "loss": 1.0}
    return b"".join(bytes(part) for part in wire.frame(vector, **own | changes))


def begin(server, **options):
    """A federation of both clients in a thread; returns it with what it will have left: a result or an error."""
    for id in (0, 1):
        assert join(server, id)[0] == 200
    left = {}

    def run():
        try:
            clients = server.clients(timeout=5)
            left["result"] = federation.run(small_cnn_600k, clients, local=LOCAL, executor=server, **options)
        except Exception as error:
            left["error"] = error

    thread = threading.Thread(target=run)
    thread.start()
    return thread, left


def work(server, id):
    """This client's work, as soon as there is some: header and state."""
    while (answer := call(server, "work", id))[0] == 204:
        pass
    assert answer[0] == 200, answer
    return wire.parse(answer[1])


def test_honest_updates_are_averaged_by_the_examples_told(server):
    for id, examples in ((0, 3), (1, 1)):
        assert join(server, id, examples)[0] == 200
    left = {}
    thread = threading.Thread(
        target=lambda: left.update(
            result=federation.run(small_cnn_600k, server.clients(5), rounds=1, local=LOCAL, seed=4, executor=server)
        )
    )
    thread.start()
    for id, value in ((0, 1.0), (1, 5.0)):
        header, state = work(server, id)
        assert header["state_sha256"] == sha256(state)
        assert (header["epochs"], header["batch_size"], header["learning_rate"]) == (1, BATCH, 0.1)
        assert call(server, "update", id, update(header, torch.full_like(state, value), loss=value))[0] == 200
        again = said(call(server, "update", id, update(header, state)))
        assert again[0] == 409
        assert "late with round 0: nothing is waited for" in again[1]
    thread.join(20)
    assert torch.allclose(left["result"].vector, torch.tensor(2.0))  # (3 * 1 + 1 * 5) / 4
    assert left["result"].rounds[0].train_loss == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda h, v: update(h, v[:-1]), "it has 585957 values, want 585958"),
        (lambda h, v: update(h, v.index_fill(0, torch.tensor([5, 9]), float("nan"))), "2 of its values are not finite"),
        (lambda h, v: update(h, v, state_sha256="0" * 64), "it began from another state than round 0 did"),
        (lambda h, v: update(h, v, loss="low"), "its loss is 'low', want a finite number"),
        (lambda h, v: update(h, v, client=1), "it is a 'update' of client 1"),
    ],
)
def test_a_wrong_update_is_refused_and_named_in_the_round(server, make, reason):
    thread, left = begin(server, rounds=1, on_failure="skip")
    header, state = work(server, 0)
    code, text = said(call(server, "update", 0, make(header, state)))
    assert code == 422
    assert text.startswith("update of client 0 in round 0 does not count")
    assert reason in text
    header, state = work(server, 1)
    assert call(server, "update", 1, update(header, state + 1))[0] == 200
    thread.join(20)
    this_round = left["result"].rounds[0]
    assert list(this_round.left_out) == [0]
    assert reason in this_round.left_out[0]
    assert torch.allclose(left["result"].vector, state + 1)


def test_a_client_that_says_it_failed_stops_the_run_by_name(server):
    thread, left = begin(server, rounds=1)
    header, _ = work(server, 0)
    sent = json.dumps({"round": header["round"], "reason": "the battery is empty"}).encode()
    assert call(server, "failed", 0, sent)[0] == 200
    thread.join(20)
    assert isinstance(left["error"], FederationError)
    assert "round 0: client 0 failed: dropped out (the battery is empty)" in str(left["error"])


def test_a_late_update_does_not_count(server):
    thread, left = begin(server, rounds=2, on_failure="skip", client_timeout=0.5)
    header, state = work(server, 0)
    assert call(server, "update", 0, update(header, state + 1))[0] == 200
    first, _ = work(server, 1)
    header, state = work(server, 0)  # of round 1: round 0 ended without client 1
    assert header["round"] == 1
    code, text = said(call(server, "update", 1, update(first, state + 9)))
    assert code == 409
    assert text == "client 1 is late with round 0: round 1 is running"
    assert call(server, "update", 0, update(header, state + 1))[0] == 200
    thread.join(20)
    assert [list(r.left_out) for r in left["result"].rounds] == [[1], [1]]
    assert "silent for 0.5 s" in left["result"].rounds[0].left_out[1]


def test_who_is_not_of_the_federation_is_refused(server):
    assert said(call(server, "join", 7, b"{}", token="x" * 20)) == (
        403,
        "client 7 is not of this federation: it has 0, 1",
    )
    assert said(call(server, "join", 0, b"{}", token=server._places[1].token)) == (
        401,
        "the token is not that of client 0",
    )
    assert said(call(server, "join", 0, b"{}", token=""))[0] == 401
    assert said(call(server, "steal", 0, b"{}"))[0] == 404


def test_who_has_another_model_or_no_example_cannot_join(server):
    assert "has another model file" in said(join(server, 0, model_sha256="0" * 64))[1]
    assert said(join(server, 0, examples=0)) == (400, "examples is 0: want a whole number from 1 up")
    assert said(call(server, "join", 0, b"[1]")) == (400, "the body is a list: want a JSON object")
    assert said(call(server, "update", 0, b"FLN1"))[0] == 400
    with pytest.raises(TimeoutError, match=r"clients \[0, 1\] did not join within 0.1 s"):
        server.clients(0.1)


def raw(server, headers, body=b""):
    """A request written by hand."""
    connection = http.client.HTTPConnection(server.address.removeprefix("http://"), timeout=20)
    connection.putrequest("POST", "/update/0")
    for name, value in ({"Authorization": f"Bearer {server._places[0].token}"} | headers).items():
        connection.putheader(name, value)
    connection.endheaders(body)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())["error"]


def test_bodies_have_limits_of_size_and_time(server):
    assert raw(server, {}) == (411, "want the header Content-Length")
    most = 4 * server.length + 64 * 1024
    assert raw(server, {"Content-Length": "99999999999"}) == (413, f"the body has 99999999999 bytes: at most {most}")
    started = time.monotonic()
    assert raw(server, {"Content-Length": "100"}, b"half") == (408, "the body did not arrive within 2 s")
    assert time.monotonic() - started < 15


def test_what_a_device_cannot_train_is_refused_before_it_is_asked(server, contract):
    for id in (0, 1):
        join(server, id)
    for local, options, reason in (
        (LocalTraining(momentum=0.9), {}, "momentum is 0.9: a device trains by plain SGD"),
        (LocalTraining(batch_size=33), {}, "batch_size is 33: the clients' file takes 1 to 32"),
        (LOCAL, {"train": train}, "train is given: a client over HTTP trains by its own program"),
    ):
        with pytest.raises(FederationError, match=reason):
            federation.run(small_cnn_600k, server.clients(1), rounds=1, local=local, executor=server, **options)
    with pytest.raises(ValueError, match=r"host is '0\.0\.0\.0': want a loopback address"):
        Server(contract, new_tokens([0]), host="0.0.0.0")
    with pytest.raises(ValueError, match="its own of at least 16 characters"):
        Server(contract, {0: "short"})
