"""Owners who read before they run: what a job may do, what it gives, and what nobody gets without an approval."""

import base64
import io
import json
import os
import tarfile
from importlib import metadata

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from fl_utils.aggregation import fedavg
from fl_utils.secure import datasite_job, datasite_members, datasite_transport
from fl_utils.secure.datasites import Datasites, NoUpdate, Update, average

NORTH, SOUTH, ANN = "north@hospitals.example.org", "south@hospitals.example.org", "ann@university.example.org"

SOFTMAX = """
import numpy as np
from fl_utils.secure import datasite_job as job

x, y = job.data()
w, rate = job.weights(), job.settings()["rate"]
for _ in range(job.settings()["steps"]):
    scores = x @ w["map"] + w["bias"]
    p = np.exp(scores - scores.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    w["map"] -= (rate / len(y) * x.T @ p).astype("float32")
    w["bias"] -= (rate / len(y) * p.sum(0)).astype("float32")
job.give_back(w, len(y))
"""
ADD_ONE = """
from fl_utils.secure import datasite_job as job

x, y = job.data()
job.give_back({name: array + 1 for name, array in job.weights().items()}, len(y))
"""
SMALL = {"map": np.zeros((2, 3), "float32"), "bias": np.zeros(2, "float32")}
DIGITS = {"map": np.zeros((64, 10), "float32"), "bias": np.zeros(10, "float32")}


def part(rows, seed=0):
    generator = np.random.default_rng(seed)
    return generator.random((rows, 8)).astype("float32"), generator.integers(0, 3, rows)


def two_owners():
    return {NORTH: (part(5, 1), part(20, 2)), SOUTH: (part(6, 3), part(30, 4))}


@pytest.fixture
def sites():
    with Datasites(two_owners(), ANN) as sites:
        yield sites


NUMBERS = iter(range(1000))


@pytest.fixture
def name():
    return f"job-{next(NUMBERS)}"


def asked(sites, name, code, owner=NORTH, weights=SMALL, **more):
    """The job, submitted, and as its owner reads it."""
    sites.scientist.submit(owner, name, code, weights, **more)
    return next(request for request in sites.owners[owner].requests() if request.name == name)


def done(sites, name, code, owner=NORTH, weights=SMALL, **more):
    """The state after an approval and a run."""
    sites.owners[owner].approve(asked(sites, name, code, owner, weights))
    return sites.owners[owner].run(**more)[name]


def softmax_by_hand(x, y, weights, rate, steps):
    w = {key: value.copy() for key, value in weights.items()}
    for _ in range(steps):
        scores = torch.from_numpy(x @ w["map"] + w["bias"])
        p = torch.softmax(scores, 1).numpy()
        p[np.arange(len(y)), y] -= 1
        w = {"map": w["map"] - rate / len(y) * x.T @ p, "bias": w["bias"] - rate / len(y) * p.sum(0)}
    return w


def test_two_rounds_of_the_digits_the_second_under_encryption():
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    generator = np.random.default_rng(0)
    mock = (generator.random((10, 64)).astype("float32"), generator.integers(0, 10, 10))
    shares = {NORTH: (x[:500], y[:500]), SOUTH: (x[500:1400], y[500:1400])}

    def accuracy(w):
        return ((x[1400:] @ w["map"] + w["bias"]).argmax(1) == y[1400:]).mean()

    settings, reached = {"rate": 1.0, "steps": 20}, [accuracy(DIGITS)]
    with Datasites({name: (mock, share) for name, share in shares.items()}, ANN) as sites:
        weights = DIGITS
        for number, backend in enumerate(["plain", "spdz"]):
            by_hand = [softmax_by_hand(*share, weights, **settings) for share in shares.values()]
            expected = fedavg([torch.from_numpy(datasite_job.flatten(w)) for w in by_hand], [500, 900])
            weights = sites.train_round(
                f"round-{number}", SOFTMAX, weights, lambda request: True, settings=settings, backend=backend
            )
            assert np.abs(datasite_job.flatten(weights) - expected.numpy()).max() < 1e-5
            reached.append(accuracy(weights))
        assert sites.scientist.update(NORTH, "round-0").num_examples == 500
        with pytest.raises(NoUpdate, match="did not share"):  # under encryption each update stays with its owner
            sites.scientist.update(NORTH, "round-1")
        own = [owner.update("round-1") for owner in sites.owners.values()]
        assert [update.num_examples for update in own] == [500, 900]
        plain = average(own)
        apart = max(np.abs(weights[key] - plain[key]).max() for key in plain)
        assert apart <= 2 * 2.0**-21 + 1e-6
    assert reached[0] < 0.2 and reached[1] > 0.7 and reached[2] > reached[1]


def test_a_job_may_train_with_torch(sites, name):
    code = """
import torch
from fl_utils.secure import datasite_job as job

x, y = map(torch.from_numpy, job.data())
model = torch.nn.Linear(8, 3)
model.load_state_dict({name: torch.from_numpy(array) for name, array in job.weights().items()})
loss = torch.nn.functional.cross_entropy(model(x), y)
for parameter, gradient in zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters()))):
    parameter.data -= gradient
job.give_back(model.state_dict(), len(y))
"""
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 3)
    assert done(sites, name, code, weights=model.state_dict()) == "done"
    update = sites.scientist.update(NORTH, name)
    x, y = map(torch.from_numpy, part(20, 2))
    torch.nn.functional.cross_entropy(model(x), y).backward()
    expected = torch.cat([(p.data - p.grad).flatten() for p in model.parameters()])
    assert update.num_examples == 20 and torch.allclose(update.vector, expected, atol=1e-6)


def test_pending_and_denied_jobs_do_not_run_and_give_nothing(sites, name, tmp_path):
    marker = tmp_path / "it-ran"
    code = f"open({str(marker)!r}, 'w').close()\n" + ADD_ONE
    scientist, owner = sites.scientist, sites.owners[NORTH]
    request = asked(sites, name, code)
    assert request.code == code and json.loads(request.files["code/settings.json"]) == {}
    assert owner.run() == {} and scientist.state(NORTH, name) == "pending"
    with pytest.raises(NoUpdate, match=f"{NORTH}.*{name}.*pending") as caught:
        scientist.update(NORTH, name)
    assert (caught.value.owner, caught.value.job, caught.value.state) == (NORTH, name, "pending")

    owner.deny(request, "it opens a file")
    assert owner.run() == {} and scientist.state(NORTH, name) == "denied"
    with pytest.raises(NoUpdate, match=f"{NORTH}.*denied.*it opens a file"):
        scientist.update(NORTH, name)
    with pytest.raises(NoUpdate, match="denied"):
        owner.update(name)
    with pytest.raises(RuntimeError, match="is denied: only a pending one"):
        owner.approve(request)
    assert owner.run() == {} and not marker.exists()

    again = f"{name}-again"  # the same code, approved: so the marker would have told
    assert done(sites, again, code) == "done" and marker.exists()
    assert scientist.update(NORTH, again).vector.tolist() == [1.0] * 8


def test_one_owners_denial_leaves_a_round_without_average(sites, name):
    with pytest.raises(NoUpdate, match=f"{SOUTH}.*denied"):
        sites.train_round(name, ADD_ONE, SMALL, lambda request: request.owner == NORTH)
    assert sites.scientist.update(NORTH, name).num_examples == 20


def pushed(sites, path, text):
    """The scientist writes a file in its own folder and sends it through the transport, past this collection's API."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    engine = sites.scientist._member._client.sync_engine
    with datasite_transport.silence():
        engine.datasite_watcher_syncer.on_file_change(path.relative_to(sites.scientist.folder), process_now=True)


def sent_folder(sites, name):
    return next(path for path in sites.scientist.folder.rglob(name) if (path / "run.sh").is_file())


def test_an_approval_counts_for_what_was_read(sites, name, tmp_path):
    marker, owner = tmp_path / "it-ran", sites.owners[NORTH]
    evil = f"open({str(marker)!r}, 'w').close()"
    owner.approve(asked(sites, name, ADD_ONE))
    pushed(sites, sent_folder(sites, name) / "code" / "main.py", evil)
    assert owner.run() == {name: "denied"} and not marker.exists()
    with pytest.raises(NoUpdate, match=r"denied.*changed after it was approved"):
        sites.scientist.update(NORTH, name)

    other = f"{name}-other"
    request = asked(sites, other, ADD_ONE)
    pushed(sites, sent_folder(sites, other) / "code" / "main.py", evil)
    sites.owners[NORTH].requests()  # the change arrives
    with pytest.raises(RuntimeError, match="changed after it was read"):
        owner.approve(request)
    assert owner.run() == {} and not marker.exists()


@pytest.mark.parametrize("path, text", [("code/numpy.py", "print('mine')"), ("run.sh", "#!/bin/bash\ntouch here\n")])
def test_a_job_of_another_form_cannot_be_approved(sites, name, path, text):
    asked(sites, name, ADD_ONE)
    pushed(sites, sent_folder(sites, name) / path, text)
    request = next(request for request in sites.owners[NORTH].requests() if request.name == name)
    assert request.files[path] == text
    with pytest.raises(ValueError, match=f"{NORTH} cannot approve job '{name}'.*{path.rpartition('/')[2]}"):
        sites.owners[NORTH].approve(request)
    assert sites.owners[NORTH].run() == {}


def test_a_scientist_cannot_approve_its_own_job(sites, name):
    asked(sites, name, ADD_ONE)
    sites.owners[NORTH].requests()
    assert sites.scientist.state(NORTH, name) == "pending"
    state = next(path / "state.yaml" for path in sites.scientist.folder.rglob(name) if (path / "state.yaml").is_file())
    pushed(sites, state, state.read_text().replace("pending", "approved"))
    assert sites.owners[NORTH].run() == {}
    with pytest.raises(NoUpdate):
        sites.scientist.update(NORTH, name)


OPEN = "rules:\n- pattern: '**'\n  access:\n    read: ['*']\n    write: ['*']\n    admin: ['*']\nterminal: false\n"


@pytest.mark.parametrize("folder", ["private/syft_datasets/examples", ".", f"app_data/job/inbox/{ANN}"])
def test_a_scientist_cannot_grant_itself_anything(sites, folder):
    path = f"{NORTH}/{folder}/syft.pub.yaml"
    pushed(sites, sites.scientist.folder / path, OPEN)
    sites.owners[NORTH].requests()
    kept = sites.owners[NORTH].folder / path
    assert not kept.exists() or kept.read_text() != OPEN
    sites.scientist.mocks()
    assert not list(sites.scientist.folder.rglob("private.npz"))


def holds(content, secret):
    """Whether ``secret`` stands in ``content``: as it is, in base64 at any offset, or inside a packed tar archive."""
    codes = [secret, *(base64.b64encode(bytes(shift) + secret)[8:-8] for shift in range(3))]
    if any(code in content for code in codes):
        return True
    if not content.startswith(b"\x1f\x8b"):
        return False
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return any(holds(archive.extractfile(entry).read(), secret) for entry in archive if entry.isfile())


LEAK = """
from fl_utils.secure import datasite_job as job

x, y = job.data()
print(x[3].tolist())
job.give_back({"map": x[:4]}, len(y))
"""


def test_the_private_part_is_out_of_the_scientists_reach_until_an_owner_approves_a_leak(name):
    with Datasites(two_owners(), ANN) as sites:
        scientist, owner, (x, _) = sites.scientist, sites.owners[NORTH], part(20, 2)
        secret = x[3].tobytes()

        def found():
            files = [path for path in scientist.folder.rglob("*") if path.is_file()]
            contents = [*(path.read_bytes() for path in files), *sites.store.contents().values()]
            assert len(contents) > 10
            return sum(holds(content, secret) for content in contents)

        sites.train_round(name, ADD_ONE, SMALL, lambda request: True)
        assert set(scientist.mocks()) == {NORTH, SOUTH} and np.array_equal(scientist.mocks()[NORTH][0], part(5, 1)[0])
        for mocks, privates in scientist._member.data_sets().values():
            assert privates == [] and all(path.is_relative_to(scientist.folder) for path in mocks)
        dataset = scientist._member._client.dataset_manager.get("examples", datasite=NORTH)
        assert not dataset.private_dir.exists() and dataset.private_dir.is_relative_to(scientist.folder)
        drive = scientist._member._client.sync_engine._connection_router.connections[0].drive_service
        listed = drive.files().list(pageSize=1000).execute()["files"]
        readable = [sites.store._drive.files[file["id"]].content for file in listed]
        assert len(readable) > 5 and not any(holds(content, secret) for content in readable)
        assert found() == 0

        weights = {"map": np.zeros((4, 8))}
        request = asked(sites, "leak", LEAK, weights=weights)
        assert "print(x[3].tolist())" in request.code and found() == 0  # all of it stands there to be read
        owner.approve(request)
        owner.run(share_update=False, share_log=False)
        assert scientist.log(NORTH, "leak") == "" and owner.log("leak") == f"{x[3].tolist()}\n"
        assert not any(holds(path.read_bytes(), secret) for path in scientist.folder.rglob("*") if path.is_file())
        assert done(sites, "leak-again", LEAK, weights=weights) == "done"
        assert scientist.log(NORTH, "leak-again") == f"{x[3].tolist()}\n"  # the approval was the protection
        assert np.array_equal(scientist.update(NORTH, "leak-again").vector.numpy().reshape(4, 8), x[:4])
        assert found() > 0


FAILURES = {
    "raises": ("raise KeyError('no such column')", {}, "KeyError: 'no such column'"),
    "exits": ("import sys; sys.exit('stopped here')", {}, "stopped here"),
    "hides its log": ("raise KeyError('no such column')", {"share_log": False}, "its owner keeps the log"),
    "takes too long": ("import time; time.sleep(60)", {"timeout": 1}, "TIMED OUT"),
    "gives NaN": (ADD_ONE.replace("+ 1", "+ float('nan')"), {}, "not finite"),
    "counts nobody": (ADD_ONE.replace("len(y))", "0)"), {}, "num_examples is 0"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failed_job_is_named_with_its_last_line(sites, name, case):
    code, more, said = FAILURES[case]
    assert done(sites, name, code, **more) == "failed"
    with pytest.raises(NoUpdate, match=f"{NORTH}.*'{name}' is failed and gives no update: .*{said}") as caught:
        sites.scientist.update(NORTH, name)
    assert "\n" not in str(caught.value) and caught.value.state == "failed"


WRITES = "import pathlib; pathlib.Path('outputs/update.bin').write_bytes({})"
WRONG = {
    "none": ("pass", NoUpdate, "the job made none"),
    "another layout": (ADD_ONE.replace("name: array", "name + '2': array"), ValueError, r"layout is map2 \[2, 3\]"),
    "no update": (WRITES.format("b'hello'"), ValueError, "header is damaged"),
    "too large": (WRITES.format("bytes(5000)"), ValueError, "5,000 bytes: at most 1,000"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_update_of_an_owner_is_named(sites, name, case, monkeypatch):
    monkeypatch.setattr(datasite_members, "UPDATE_LIMIT", 1000)
    code, kind, said = WRONG[case]
    assert done(sites, name, code, owner=SOUTH) == "done"
    with pytest.raises(kind, match=f"{SOUTH}.*'{name}'.*{said}"):
        sites.scientist.update(SOUTH, name)


def rewritten(change):
    content = datasite_job.to_bytes({"map": np.arange(6.0).reshape(2, 3)}, 7)
    header, body = content.split(b"\n", 1)
    return change(json.loads(header), body)


def with_header(**fields):
    return rewritten(lambda header, body: json.dumps(header | fields).encode() + b"\n" + body)


def poisoned(number):
    import hashlib

    body = np.array([0, 1, number, 3, 4, 5], "<f4").tobytes()
    fields = {"num_examples": 7, "layout": [["map", [2, 3]]], "sha256": hashlib.sha256(body).hexdigest()}
    return json.dumps(fields).encode() + b"\n" + body


DAMAGED = {
    "empty": (b"", "header is damaged"),
    "no JSON": (b"{\n" + bytes(24), "header is damaged"),
    "a list": (b"[]\n" + bytes(24), "header is damaged"),
    "deep": (b"[" * 60_000 + b"\n" + bytes(24), "header is damaged"),
    "short": (rewritten(lambda h, b: json.dumps(h).encode() + b"\n" + b[:-1]), "23 bytes of numbers: .* needs 24"),
    "long": (rewritten(lambda h, b: json.dumps(h).encode() + b"\n" + b + b"\0"), "25 bytes of numbers"),
    "a bit": (rewritten(lambda h, b: json.dumps(h).encode() + b"\n" + bytes([b[0] ^ 1]) + b[1:]), "checksum"),
    "count 0": (with_header(num_examples=0), "num_examples is 0"),
    "count true": (with_header(num_examples=True), "num_examples is True"),
    "count 1e3": (with_header(num_examples=1e3), "num_examples is 1000.0"),
    "count huge": (with_header(num_examples=10**30), "num_examples is 1000"),
    "other names": (with_header(layout=[["bias", [2, 3]]]), r"layout is bias \[2, 3\]: want map \[2, 3\]"),
    "other shape": (with_header(layout=[["map", [3, 2]]]), r"layout is map \[3, 2\]"),
    "negative": (with_header(layout=[["map", [-2, -3]]]), "layout has the entry"),
    "NaN": (poisoned(np.nan), "1 of the update's numbers are not finite"),
    "infinity": (poisoned(np.inf), "not finite"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_update_is_refused(case):
    content, said = DAMAGED[case]
    with pytest.raises(ValueError, match=said):
        datasite_job.from_bytes(content, (("map", (2, 3)),))


def test_what_travels_arrives_as_it_was():
    generator = np.random.default_rng(0)
    weights = {"map": generator.normal(size=(3, 4)).astype("float32"), "one": np.float32(2.5), "b": np.arange(3)}
    arrived = datasite_job.from_text(datasite_job.to_text(weights))
    assert list(arrived) == list(weights) and all(np.array_equal(arrived[name], weights[name]) for name in weights)
    vector, count = datasite_job.from_bytes(datasite_job.to_bytes(weights, 3), datasite_job.layout_of(weights))
    assert count == 3 and np.array_equal(vector, datasite_job.flatten(weights)) and vector.dtype == np.float32
    for text in [
        "",
        "[]",
        "{}",
        datasite_job.to_text(weights)[:-10],
        datasite_job.to_text(weights).replace("3, 4", "3, 5"),
    ]:
        with pytest.raises(ValueError):
            datasite_job.from_text(text)
    with pytest.raises(RuntimeError, match="for a job"):
        datasite_job.data()


SUBMISSIONS = {
    "weights too many": ({"weights": {"map": np.zeros(1_000_001)}}, "1,000,001 floats.*1 to 1,000,000"),
    "weights empty": ({"weights": {}}, "at least one named array"),
    "weights of text": ({"weights": {"map": np.array(["a"])}}, "weights\\['map'\\]"),
    "weights not finite": ({"weights": {"map": np.array([1e39])}}, "weights\\['map'\\].*not finite"),
    "owner": ({"owner": "west@hospitals.example.org"}, "owner is 'west@.*want one of north@"),
    "name": ({"name": "../up"}, "job name is '../up'"),
    "name reserved": ({"name": "v1"}, "job name is 'v1'"),
    "code": ({"code": "def ("}, "no Python text.*line 1"),
    "code of bytes": ({"code": b"pass"}, "no Python text"),
    "code not text": ({"code": "x = '\ud800'"}, "no Python text"),
    "settings": ({"settings": {"rate": np.zeros(2)}}, "settings are no JSON"),
    "settings NaN": ({"settings": {"rate": float("nan")}}, "settings are no JSON"),
}


@pytest.mark.parametrize("case", SUBMISSIONS)
def test_a_wrong_submission_is_refused_before_it_is_sent(sites, name, case):
    changed, said = SUBMISSIONS[case]
    given = {"owner": NORTH, "name": name, "code": ADD_ONE, "weights": SMALL, "settings": {}} | changed
    before = len(sites.store.contents())
    with pytest.raises(ValueError, match=said):
        sites.scientist.submit(**given)
    assert len(sites.store.contents()) == before and name not in [r.name for r in sites.owners[NORTH].requests()]


def test_names_of_jobs_are_used_once_and_asked_for_as_submitted(sites, name):
    request = asked(sites, name, ADD_ONE)
    with pytest.raises(ValueError, match="was used for"):
        sites.scientist.submit(NORTH, name, ADD_ONE, SMALL)
    with pytest.raises(ValueError, match=f"no job '{name}' was submitted to {SOUTH}"):
        sites.scientist.update(SOUTH, name)
    with pytest.raises(ValueError, match=f"sent to {NORTH}, not to {SOUTH}"):
        sites.owners[SOUTH].approve(request)
    with pytest.raises(ValueError, match="timeout is 0"):
        sites.owners[NORTH].run(timeout=0)
    with pytest.raises(ValueError, match="backend is 'spds'"):
        sites.train_round("spelled", ADD_ONE, SMALL, lambda request: True, backend="spds")


def one(mock=None, private=None):
    return {NORTH: (mock or part(5, 1), private or part(20, 2))}


MEMBERS = {
    "no owner": ({}, ANN, "owners is empty"),
    "no e-mail": ({"north": two_owners()[NORTH]}, ANN, "'north' is not the name of a member"),
    "no e-mail of the scientist": (one(), "ann", "'ann' is not the name"),
    "a path": ({"../a@b.org": two_owners()[NORTH]}, ANN, "is not the name"),
    "twice": ([*one().items(), *one().items()], ANN, f"{NORTH} stands twice"),
    "twice but for case": ([*one().items(), (NORTH.title(), two_owners()[SOUTH])], ANN, "stands twice"),
    "owner is scientist": (one(), NORTH, "stands twice"),
    "no parts": ({NORTH: None}, ANN, "want \\(mock, private\\)"),
    "unequal rows": (one(private=(part(20)[0], part(19)[1])), ANN, "private part has x \\(20, 8\\)"),
    "no rows": (one(mock=(np.zeros((0, 8)), np.zeros(0))), ANN, "mock part has x \\(0, 8\\)"),
    "objects": (one(mock=(np.array([{}]), np.zeros(1))), ANN, "want numbers"),
    "another width": (one(mock=(part(5)[0][:, :7], part(5)[1])), ANN, "x is float32 \\(7,\\) a row in the mock"),
    "mock is private": (one(mock=part(20, 2)), ANN, "mock part is made of its private part"),
}


@pytest.mark.parametrize("case", MEMBERS)
def test_wrong_members_are_refused(case):
    owners, scientist, said = MEMBERS[case]
    with pytest.raises(ValueError, match=said):
        Datasites(owners, scientist)


def test_a_mock_cut_from_the_private_part_and_a_used_folder_are_refused(tmp_path):
    x, y = part(20, 2)
    with pytest.raises(ValueError, match="made of its private part"):
        Datasites({NORTH: ((x[:5], y[:5]), (x, y))}, ANN)
    (tmp_path / "something").touch()
    with pytest.raises(ValueError, match="is not empty"):
        Datasites(one(), ANN, tmp_path)


def test_updates_that_do_not_fit_are_not_averaged():
    updates = [
        Update(owner, "job", torch.zeros(6), 3, (("map", shape),))
        for owner, shape in [(NORTH, (2, 3)), (SOUTH, (3, 2))]
    ]
    with pytest.raises(ValueError, match=f"{SOUTH}'s update has another layout than {NORTH}'s"):
        average(updates)
    with pytest.raises(ValueError, match="at least one"):
        average([])
    with Datasites(one(), ANN) as sites, pytest.raises(ValueError, match="one owner"):
        sites.train_round("alone", ADD_ONE, SMALL, lambda request: True, backend="spdz")


def test_a_rehearsal_sees_the_mock_part_only(sites):
    code = ADD_ONE.replace("+ 1", "+ x.sum()")
    update = sites.scientist.rehearse(SOUTH, code, SMALL)
    assert update.num_examples == 6 and np.allclose(update.vector.numpy(), part(6, 3)[0].sum())
    with pytest.raises(NoUpdate, match=f"{SOUTH}.*rehearsal.*ZeroDivisionError"):
        sites.scientist.rehearse(SOUTH, "1 / 0", SMALL)


@pytest.mark.parametrize("package, version", [("syft", "0.10.1"), ("syft-job", None)])
def test_another_syft_is_refused(monkeypatch, package, version):
    def found(name, real=metadata.version):
        if name != package:
            return real(name)
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(datasite_transport.metadata, "version", found)
    pinned = datasite_transport.PINNED[package]
    with pytest.raises(RuntimeError, match=f"{package} {version or 'none'} is installed.*{pinned}"):
        Datasites(one(), ANN).__enter__()


def test_nothing_is_printed_or_left_in_the_environment_and_a_given_folder_stays(capfd, tmp_path):
    environment = dict(os.environ)
    with Datasites(one(), ANN, tmp_path / "sites") as sites:
        sites.train_round("quiet", ADD_ONE, SMALL, lambda request: True)
    assert capfd.readouterr() == ("", "")
    assert dict(os.environ) == environment
    assert {ANN, NORTH} <= {path.name for path in (tmp_path / "sites").iterdir()}
