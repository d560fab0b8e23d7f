"""Data once per worker, the state once per round, and nothing left behind, whatever dies."""

import gc
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing

from fl_utils import cohorts, dask_cluster, federation, packing, shared_pool, training
from fl_utils.errands import Errands
from fl_utils.executors import executor
from fl_utils.federation import Client, FederationError
from fl_utils.populations import Population
from fl_utils.shelf import Shelf, floats
from small import LOCAL, clients, examples, mlp, plain_mlp

STATE = 4 * 163  # bytes of mlp's state


@pytest.fixture(scope="module")
def pool():
    with executor("pool:2") as workers:
        yield workers


def run(parties, **options):
    return federation.run(mlp, parties, **{"rounds": 2, "local": LOCAL, "seed": 4, **options})


def put_down(pool):
    return sorted(path for folder in pool.shelf.folders if folder.exists() for path in folder.iterdir())


# --- packing


def test_what_is_packed_is_read_back_without_a_copy():
    tensors = [
        torch.arange(6.0).view(2, 3).t(), torch.tensor(3), torch.zeros(0, 4), torch.tensor([True, False]),
        torch.ones(3, dtype=torch.float16), torch.ones(3, dtype=torch.bfloat16), torch.arange(3, dtype=torch.uint8),
        torch.ones(2, requires_grad=True), torch.ones(2, dtype=torch.complex64).conj(),
    ]  # fmt: skip
    packed = bytearray(b"".join(packing.pack({"tensors": tensors, "call": lambda a: a + 1, "again": tensors[0]})))
    found = packing.unpack(memoryview(packed))
    for wanted, got in zip(tensors, found["tensors"], strict=True):
        assert got.dtype == wanted.dtype and got.shape == wanted.shape and torch.equal(got, wanted)
    assert found["call"](1) == 2 and found["again"] is found["tensors"][0]
    before = bytes(packed)
    found["tensors"][0][0, 0] = 7
    assert before != bytes(packed)


def test_a_view_is_packed_without_the_tensor_it_is_a_view_of():
    x, y = examples(10_000)
    size = sum(len(part) for part in packing.pack(Client(0, x[:10], y[:10])))
    assert 10 * (6 * 4 + 8) < size < 1500


# --- the local pool


def test_data_goes_to_the_pool_once_and_the_state_once_a_round(pool, monkeypatch):
    sent = []
    send = Errands.send
    monkeypatch.setattr(Errands, "send", lambda self, arrived, *args: sent.append(args) or send(self, arrived, *args))
    parties, before = clients(), dict(pool.moved)
    here, there = run(parties), run(parties, executor=pool)
    assert torch.equal(here.vector, there.vector)
    assert [r.train_loss for r in here.rounds] == [r.train_loss for r in there.rounds]
    data = pool.moved["data"] - before["data"]
    assert 81 * (6 * 4 + 8) < data < 81 * (6 * 4 + 8) + 4 * 1000
    assert 2 * STATE < pool.moved["state"] - before["state"] < 2 * (STATE + 2000)
    assert pool.moved["updates"] - before["updates"] == 8 * STATE
    assert torch.equal(run(parties, executor=pool, rounds=20).vector, run(parties, rounds=20).vector)
    assert pool.moved["data"] - before["data"] == data
    assert len(sent) == 88 and all(len(pickle.dumps(args)) < 1000 for args in sent)
    # Buffers serve again: a worker has one more than there may be clients under way; the owner has one or two states.
    assert len(put_down(pool)) <= 4 + 2 * (2 * 2 + 1) + 2


def test_data_that_was_written_to_goes_again_and_data_that_is_gone_goes_away(pool):
    parties = [Client(client.id, client.x.clone(), client.y) for client in clients()]
    run(parties, executor=pool)
    parties[0].x.add_(1)
    before = pool.moved["data"]
    assert torch.equal(run(parties, executor=pool).vector, run(parties).vector)
    assert 0 < pool.moved["data"] - before < 4000
    places = [pool.examples(client) for client in parties]
    assert all(path.exists() for path in places)
    del parties
    gc.collect()
    assert not any(path.exists() for path in places)
    others = clients((12, 13))
    assert torch.equal(run(others, executor=pool).vector, run(others).vector)


def noting(folder, trainer, client, local, seed):
    shared = any(trainer.vector is slot.vector for slots in shared_pool._slots.values() for slot in slots)
    Path(folder, f"{os.getpid()}-{id(trainer.model)}-{len(cohorts._trainers)}-{shared}").touch()
    return federation.train_locally(trainer, client, local, seed)


def test_a_worker_has_one_model_which_trains_where_the_update_goes(pool, tmp_path):
    run(clients((9,) * 12), executor=pool, train=partial(noting, str(tmp_path)))
    seen = [path.name.split("-") for path in tmp_path.iterdir()]
    assert 1 <= len(seen) == len({pid for pid, *_ in seen}) <= 2
    assert {(models, shared) for *_, models, shared in seen} == {("1", "True")}


def test_rules_that_keep_vectors_get_ones_of_their_own(pool):
    def median(old, updates):
        return torch.stack([vector for vector, _ in updates]).median(0).values

    parties = clients((9,) * 12)
    assert torch.equal(run(parties, rule=median, executor=pool).vector, run(parties, rule=median).vector)


def test_models_of_other_sizes_and_functions_of_this_module_share_a_pool(pool):
    parties = clients()
    for build in (mlp, plain_mlp, lambda: torch.nn.Linear(6, 3)):
        there = federation.run(build, parties, rounds=2, local=LOCAL, executor=pool)
        assert torch.equal(there.vector, federation.run(build, parties, rounds=2, local=LOCAL).vector)


def late(go, trainer, client, local, seed):
    while client.id == 2 and not Path(go).exists():
        time.sleep(0.01)
    return federation.train_locally(trainer, client, local, seed)


def test_a_late_client_is_left_out_and_writes_into_nobody_elses_buffer(pool, tmp_path):
    parties, go = clients(), tmp_path / "go"
    run(parties, executor=pool)
    train = partial(late, str(go))
    options = {"rounds": 1, "executor": pool, "client_timeout": 3, "on_failure": "skip"}
    first = run(parties, train=train, **options)
    assert first.rounds[0].left_out == {2: "dropped out (silent for 3 s)"}
    without = [client for client in parties if client.id != 2]
    assert torch.equal(first.vector, run(without, rounds=1).vector)
    go.touch()
    assert torch.equal(run(parties, executor=pool).vector, run(parties).vector)


def test_clients_that_are_made_when_drawn_are_kept_as_long_as_they_train(pool):
    x, y = examples(60)
    population = Population.drawn(x, y, clients=1000, per_client=8)
    options = {"client_fraction": 0.008, "rounds": 3}
    there = run(population, executor=pool, **options)
    assert torch.equal(there.vector, run(population, **options).vector)
    gc.collect()
    assert len(put_down(pool)) < 8 * 3


def wide_mlp() -> torch.nn.Module:
    hidden = training.LARGE // 8
    return torch.nn.Sequential(torch.nn.Linear(6, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 3))


def copied_first(trainer, client, local, seed):
    return federation.train_locally(trainer, client, local, seed)


def test_a_large_state_is_read_where_it_lies_and_a_client_that_fails_there_leaves_it_as_it_was(pool):
    parties = clients((9,) * 6)
    wrong = Client(9, parties[0].x, parties[0].y + 3)
    options = {"rounds": 2, "local": LOCAL, "on_failure": "skip"}
    expected = federation.run(wide_mlp, parties, train=copied_first, **options)
    assert len(expected.vector) >= training.LARGE
    for place in (None, pool):
        found = federation.run(wide_mlp, [*parties[:3], wrong, *parties[3:]], executor=place, **options)
        assert torch.equal(found.vector, expected.vector)
        assert [list(round.left_out) for round in found.rounds] == [[9]] * 2


class Unsendable:
    def __call__(self, *_):
        raise AssertionError

    def __reduce__(self):
        raise TypeError("stays here")


class Unpacked(Client):
    __reduce__ = Unsendable.__reduce__


def test_what_cannot_travel_is_named_with_its_client(pool):
    with pytest.raises(FederationError, match="round 0: client 0 failed: TypeError: stays here"):
        run(clients(), train=Unsendable(), executor=pool)
    skipped = run([*clients(), Unpacked(9, *examples(5))], executor=pool, on_failure="skip")
    assert [round.left_out for round in skipped.rounds] == [{9: "TypeError: stays here"}] * 2
    assert torch.equal(skipped.vector, run(clients()).vector)


def test_a_slot_is_its_workers_until_the_owner_gives_it_back(monkeypatch):
    monkeypatch.setattr(shared_pool, "_shelf", Shelf(), raising=False)
    monkeypatch.setattr(shared_pool, "_slots", {})
    first, second = shared_pool._take(5), shared_pool._take(5)
    assert len({first.path, second.path, shared_pool._take(6).path}) == 3
    seen_by_the_owner = shared_pool.Slot(first.path, floats(first.path, 6))
    second.vector.fill_(2)
    first.vector.fill_(1)
    assert seen_by_the_owner.vector.tolist() == [1] * 5 and seen_by_the_owner.taken
    seen_by_the_owner.taken = False
    assert shared_pool._take(5) is first and seen_by_the_owner.taken
    assert shared_pool._take(5) not in (first, second)


def only_one(trainer, client, local, seed):
    if client.id:
        raise ValueError("not me")
    return federation.train_locally(trainer, client, local, seed)


def to_infinity(trainer, client, local, seed):
    trainer.vector.fill_(torch.inf)
    return 0.0


def test_clients_that_fail_leave_their_slots_to_others(pool):
    run(clients((9,) * 40), executor=pool, train=only_one, on_failure="skip")
    for _ in range(30):
        with pytest.raises(FederationError, match="client 0 failed: its update holds values that are not finite"):
            run(clients(), executor=pool, train=to_infinity)
    gc.collect()
    assert len(put_down(pool)) < 30  # 78 updates fail, and 30 stop a run


def test_an_update_that_cannot_be_read_is_its_clients_failure(monkeypatch):
    with executor("pool:2") as workers:
        slot = workers.slot

        def once(path, length):
            monkeypatch.setattr(workers, "slot", slot)
            raise OSError("no more maps")

        monkeypatch.setattr(workers, "slot", once)
        found = run(clients(), executor=workers, rounds=1, on_failure="skip")
        assert list(found.rounds[0].left_out.values()) == ["OSError: no more maps"]
        assert torch.equal(run(clients(), executor=workers).vector, run(clients()).vector)


def test_where_memory_has_no_room_files_take_its_place(tmp_path):
    shelf = Shelf()
    shelf.folders[0] = Path("/dev/null/none")  # stands for a full one: nothing can be put there
    path = shelf.put([b"abc", b"d"])
    assert path.read_bytes() == b"abcd" and path.parent == shelf.folders[-1]
    path, vector = shelf.vector(5)
    vector.fill_(1)
    assert path.stat().st_size == 20 and len(path.read_bytes().strip(b"\0")) > 0
    folder = shelf.folders.pop()
    with pytest.raises(NotADirectoryError):
        shelf.put([b"x"])
    shelf.folders.append(folder)
    shelf.close()
    assert not folder.exists()


# --- other executors


def test_a_plain_pool_gets_everything_with_each_client():
    context = torch.multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as processes, ThreadPoolExecutor(2) as threads:
        for workers in (processes, threads):
            assert torch.equal(run(clients(), executor=workers).vector, run(clients()).vector)


def test_a_model_that_is_built_in_another_way_is_another_model(pool):
    outputs = [3]

    def build():
        return torch.nn.Linear(6, outputs[0])

    with ThreadPoolExecutor(2) as threads:
        for outputs[0] in (3, 4, 3):
            here = federation.run(build, clients(), rounds=2, local=LOCAL).vector
            for workers in (threads, pool):
                there = federation.run(build, clients(), rounds=2, local=LOCAL, executor=workers)
                assert torch.equal(there.vector, here)


# --- what ends in mid-round

SCRIPT = """
    import signal, sys, time
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    from fl_utils import federation
    from fl_utils.executors import executor
    from small import LOCAL, clients, mlp

    def endless(trainer, client, local, seed):
        Path({folder!r}, f"at-{{__import__('os').getpid()}}").touch()
        time.sleep({at_work})
        return 0.0

    if __name__ == "__main__":
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with executor("pool:1") as pool:
            print(*pool.shelf.folders, flush=True)
            federation.run(mlp, clients(), rounds=1, local=LOCAL, train=endless, executor=pool)
            Path({folder!r}, "idle").touch()
            time.sleep(600)
"""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False


def until(condition, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize(("end", "at_work"), [(signal.SIGINT, 600), (signal.SIGKILL, 0), (signal.SIGTERM, 0)])
def test_an_owner_that_is_stopped_leaves_no_worker_and_no_memory(tmp_path, end, at_work):
    script = tmp_path / "owner.py"
    values = {"tests": str(Path(__file__).parent), "folder": str(tmp_path), "at_work": at_work}
    script.write_text(textwrap.dedent(SCRIPT).format(**values))
    owner = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        folders = [Path(name) for name in owner.stdout.readline().split()]
        until(lambda: list(tmp_path.glob("at-*" if at_work else "idle")) or owner.poll() is not None)
        assert any(folder.exists() for folder in folders)
        (worker,) = [int(path.name[3:]) for path in tmp_path.glob("at-*")]
        assert is_alive(worker)
        if end != signal.SIGKILL:
            os.killpg(owner.pid, end)  # as a terminal does, and timeout
        else:
            owner.kill()
        _, errors = owner.communicate(timeout=300)
    finally:
        owner.kill()
    assert owner.returncode in (-end, 130, 1)
    assert "shared_memory" not in errors
    assert end != signal.SIGINT or "resource_tracker" not in errors  # which cleans semaphores up
    assert ("KeyboardInterrupt" in errors) == (end == signal.SIGINT) and errors.count("Traceback") <= 1
    until(lambda: not is_alive(worker))
    until(lambda: not any(folder.exists() for folder in folders))


def test_nothing_is_left_after_an_error():
    with pytest.raises(ZeroDivisionError), executor("pool:1") as workers:
        place = workers.examples(clients()[0])
        assert place.parent in workers.shelf.folders
        divide()
    assert not any(folder.exists() for folder in workers.shelf.folders)


def divide(*_):
    return 1 / 0


# --- Dask


@pytest.fixture
def in_threads():
    import distributed

    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        yield cluster


def test_data_goes_to_a_dask_worker_once_and_again_where_it_is_not_kept(in_threads, monkeypatch):
    with_data = []
    call = dask_cluster.DaskCluster.call
    monkeypatch.setattr(
        dask_cluster.DaskCluster, "call", lambda self, *args: with_data.append(args[3] is not None) or call(self, *args)
    )
    parties = clients()
    here = run(parties)
    with executor(in_threads.scheduler_address) as dask:
        assert all(torch.equal(run(parties, executor=dask).vector, here.vector) for _ in range(2))
        assert sum(with_data) == 4 and len(with_data) == 16
        data = dask.moved["data"]
        assert 81 * (6 * 4 + 8) < data < 81 * (6 * 4 + 8) + 4 * 1000
        assert 4 * STATE < dask.moved["state"] < 4 * (STATE + 2000)
        assert dask.moved["updates"] == 16 * STATE
        dask_cluster._clients.clear()  # as in a worker that was started again
        assert torch.equal(run(parties, executor=dask).vector, here.vector)
        assert sum(with_data) == 8 and dask.moved["data"] == data
        monkeypatch.setattr(dask_cluster, "KEPT", 1)
        dask_cluster._clients.clear()
        assert torch.equal(run(parties, executor=dask).vector, here.vector)
        assert len(dask_cluster._clients) == 1 and sum(with_data) > 12
        monkeypatch.undo()
        parties[0].x.add_(1)
        assert torch.equal(run(parties, executor=dask).vector, run(parties).vector)
        with pytest.raises(FederationError, match="client 0 failed: ZeroDivisionError"):
            run(parties, executor=dask, train=divide)
    until(lambda: not dask_cluster._clients)


def killing(folder, trainer, client, local, seed):
    """The first training of client 2 kills the process that it runs in."""
    marker = Path(folder, "killed")
    if client.id == 2 and not marker.exists():
        marker.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    return federation.train_locally(trainer, client, local, seed)


def test_a_dask_worker_killed_in_mid_round_changes_nothing(tmp_path):
    import distributed

    parties = clients((9, 8, 7, 9, 8, 7))
    here = run(parties, rounds=3)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, memory_limit=None, dashboard_address=None
        ) as cluster,
        executor(cluster.scheduler_address) as dask,
    ):
        list(dask.map(torch.set_num_threads, [2] * 8))
        there = run(parties, rounds=3, executor=dask, train=partial(killing, str(tmp_path)))
        assert not is_alive(int((tmp_path / "killed").read_text()))
        assert torch.equal(there.vector, here.vector)
        assert [r.train_loss for r in there.rounds] == [r.train_loss for r in here.rounds]
        assert [(r.bytes_up, r.bytes_down, r.left_out) for r in there.rounds] == [
            (r.bytes_up, r.bytes_down, r.left_out) for r in here.rounds
        ]
        assert dask.submit(torch.get_num_threads).result() == 1
        data = dask.moved["data"]
        cluster.wait_for_workers(2, 300)  # the one that was started in its place
        assert torch.equal(run(parties, rounds=3, executor=dask).vector, here.vector)
        assert dask.moved["data"] == data


def test_clients_go_to_the_worker_with_the_least_to_do_and_of_several_where_their_examples_are(in_threads):
    with executor(in_threads.scheduler_address) as dask:
        assert dask.place(set()) == "" and dask._max_workers == 1  # nobody had looked: no worker is known
        dask._threads = {"one": 1, "two": 2}
        assert [dask.place({"two"}) for _ in range(4)] == ["two", "one", "two", "two"]
        for worker in ("one", "two", "two"):
            dask.leave(worker)
        assert [dask.place(set()) for _ in range(2)] == ["one", "two"]


def test_a_scheduler_that_is_gone_ends_the_run(in_threads):
    import distributed

    with (
        distributed.Client(in_threads.scheduler_address, timeout=1, set_as_default=False) as client,
        pytest.raises(FederationError, match=r"the Dask scheduler|worker process died"),
        dask_cluster.DaskCluster(client) as dask,
    ):
        run(clients(), rounds=50, executor=dask, progress=lambda _: in_threads.close())


def answered(*answers):
    """The reply of a Dask round whose tasks end in ``answers``, one after the other."""
    from concurrent.futures import Future
    from types import SimpleNamespace

    from fl_utils.dask_cluster import Examples, Round

    left, reply = list(answers), Future()

    def call(data):
        inner, answer = Future(), left.pop(0)
        inner.set_exception(answer) if isinstance(answer, Exception) else inner.set_result(answer)
        return inner

    Round(SimpleNamespace(moved={"updates": 0}, _workers=set()), None)._ask(
        reply, call, Examples((), "key", b""), with_data=False
    )
    return reply


def test_a_result_that_dask_misreads_as_its_worker_dies_is_asked_for_again():
    misread = AttributeError("'float' object has no attribute 'with_traceback'")
    assert answered(misread, (np.ones(2, np.float32), 0.5, "worker")).result(1)[1] == 0.5
    with pytest.raises(AttributeError, match="no attribute 'labels'"):
        answered(AttributeError("no attribute 'labels'")).result(1)
