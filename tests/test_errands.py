"""Errands: what is asked for is done once, by whoever is free, and every way in which it can end is heard of."""

import os
import platform
import signal
import subprocess
import sys
import textwrap
import time
import types
from concurrent.futures import BrokenExecutor, CancelledError, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import pytest
import torch

from fl_utils import errands, federation
from fl_utils.executors import executor
from fl_utils.federation import FederationError
from small import LOCAL, clients, mlp


@pytest.fixture(scope="module")
def pool():
    with executor("pool:2") as workers:
        yield workers


def ask(pool, function, *arguments):
    """What an errand returns, or the error it ends with."""
    found = []
    pool.errands.send(lambda *answer: found.append(answer), function, *arguments)
    while not found:
        pool.errands.listen(1)
    ((answer, error),) = found
    return answer if error is None else error


class TwoWords(Exception):
    """Goes into a pickle and does not come out."""

    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


class Held(Exception):
    """Does not go into a pickle."""

    def __reduce__(self):
        raise TypeError("no")


def test_an_answer_is_what_the_function_returns_or_raises(pool):
    assert ask(pool, divmod, 7, 2) == (3, 1)
    error = ask(pool, divmod, 7, 0)
    assert type(error) is ZeroDivisionError and "errands.py" in error.__notes__[0]


@pytest.mark.parametrize("name", ["TwoWords", "Held", "long"])
def test_an_error_that_cannot_travel_is_told(pool, name):
    call = {"TwoWords": raise_two_words, "Held": raise_held, "long": raise_long}[name]
    error = ask(pool, call)
    assert type(error) is RuntimeError and len(str(error)) < 2000
    assert {"TwoWords": "TwoWords: a b", "Held": "Held: c", "long": "ValueError: ddd"}[name] in str(error)
    assert ask(pool, divmod, 7, 2) == (3, 1)


def raise_two_words():
    raise TwoWords("a", "b")


def raise_held():
    raise Held("c")


def raise_long():
    raise ValueError("d" * 1_000_000)


def test_what_cannot_be_sent_is_refused_and_leaves_nothing_open(pool):
    with pytest.raises((AttributeError, TypeError), match=r"pickle|local"):
        pool.errands.send(print, lambda: None)
    assert not pool.errands._open and ask(pool, divmod, 7, 2) == (3, 1)


def test_free_workers_share_the_errands_and_are_the_executors_again_when_idle(pool):
    found, until = [], time.monotonic() + 60
    while len(set(found)) < 2 and time.monotonic() < until:  # one may still be starting
        found.clear()
        for _ in range(6):
            pool.errands.send(lambda pid, error: found.append(pid), pid_after_a_while)
        while len(found) < 6:
            pool.errands.listen(1)
    assert len(set(found)) == 2
    assert pool.submit(os.getpid).result(60) in found  # after IDLE seconds
    time.sleep(2 * errands.IDLE)
    assert ask(pool, os.getpid) in found


def pid_after_a_while():
    time.sleep(0.1)
    return os.getpid()


def test_a_worker_that_dies_at_an_errand_is_heard_of():
    with executor("pool:2") as pool:
        assert ask(pool, divmod, 7, 2) == (3, 1)
        with pytest.raises(BrokenProcessPool):
            ask(pool, os._exit, 3)
        with pytest.raises(FederationError, match="process"):
            federation.run(mlp, clients(), rounds=1, local=LOCAL, executor=pool)


def test_a_function_that_a_worker_lacks_breaks_the_pool_and_nobody_waits_for_it():
    lacking = types.ModuleType("lacking_elsewhere")
    exec("def call(): pass", lacking.__dict__)
    sys.modules[lacking.__name__] = lacking
    try:
        with executor("pool:1") as pool, pytest.raises(BrokenExecutor, match=r"ModuleNotFoundError.*lacking_elsewhere"):
            ask(pool, lacking.call)
    finally:
        del sys.modules[lacking.__name__]


def test_threads_share_a_pool(pool):
    parties = clients((9, 8, 7, 9, 8, 7))
    here = {seed: federation.run(mlp, parties, rounds=6, local=LOCAL, seed=seed).vector for seed in range(4)}

    def train(seed):
        return federation.run(mlp, parties, rounds=6, local=LOCAL, seed=seed, executor=pool).vector

    with ThreadPoolExecutor(4) as threads:
        for seed, there in zip([*here] * 3, threads.map(train, [*here] * 3), strict=True):
            assert torch.equal(there, here[seed])


def slow(folder, vector, client, out):
    Path(folder, str(client.id)).touch()
    while not Path(folder, f"go {client.id}").exists():
        time.sleep(0.01)
    return out, 0.5


def test_once_a_round_is_over_no_worker_begins_with_a_client(tmp_path):
    with executor("pool:1") as pool:
        with pool.begin_round(partial(slow, str(tmp_path)), torch.zeros(5)) as over:
            updates = [over.submit(client) for client in clients()[:2]]
            (tmp_path / "go 0").touch()
            vector, loss = updates[0].result(60)
            assert vector.shape == (5,) and loss == 0.5
            updates[0].release()
            while not (tmp_path / "1").exists():
                time.sleep(0.01)
            updates.append(over.submit(clients()[2]))
        (tmp_path / "go 1").touch()
        assert updates[1].result(60)[1] == 0.5  # it was under way
        with pytest.raises(CancelledError):
            updates[2].result(60)
        assert not (tmp_path / "2").exists()
        parties = clients()
        here = federation.run(mlp, parties, rounds=1, local=LOCAL)
        assert torch.equal(federation.run(mlp, parties, rounds=1, local=LOCAL, executor=pool).vector, here.vector)


def page_faults():
    """Of ten turns in which three tensors of 7 MB come and go, after a few others."""
    import resource

    for turn in range(13):
        if turn == 3:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        kept = [torch.ones(1_700_000) for _ in range(3)]
        del kept
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks what glibc does with freed memory")
def test_a_worker_keeps_the_memory_that_a_step_frees_for_the_next(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")  # as Dask leaves it behind
    with executor("pool:1") as pool:
        ask(pool, page_faults)
        assert ask(pool, page_faults) < 1000  # of 51,000 pages


LEFT_OPEN = """
    import sys
    sys.path.insert(0, {tests!r})
    from fl_utils import federation
    from fl_utils.shared_pool import SharedPool
    from small import LOCAL, clients, mlp

    if __name__ == "__main__":
        pool = SharedPool(2)
        federation.run(mlp, clients(), rounds=1, local=LOCAL, executor=pool)
        print(*pool.shelf.folders)
"""


def test_a_pool_that_nobody_closed_does_not_hold_up_the_end(tmp_path):
    script = tmp_path / "open.py"
    script.write_text(textwrap.dedent(LEFT_OPEN).format(tests=str(Path(__file__).parent)))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=True)
    assert "Traceback" not in done.stderr
    assert not any(Path(folder).exists() for folder in done.stdout.split())


@pytest.mark.skipif(errands._core() is None, reason="the system does not tell cores")
def test_the_owner_goes_to_the_core_of_an_answer_and_stays_free_to_leave_it():
    allowed = os.sched_getaffinity(0)

    def reaches(core):
        errands._go_to(core)
        return errands._core() == core

    for core in [*allowed, *allowed]:
        assert any(reaches(core) for _ in range(100))  # the system may move it again at once
    for core in (None, 1 + max(allowed)):
        errands._go_to(core)
    assert os.sched_getaffinity(0) == allowed


@pytest.mark.skipif(errands._core() is None, reason="the system does not tell cores")
@pytest.mark.parametrize("cores", [2, 3])
def test_only_an_owner_without_a_core_of_its_own_follows_its_workers(cores, monkeypatch):
    followed = []
    monkeypatch.setattr(errands, "available_cores", lambda: cores)
    monkeypatch.setattr(errands, "_go_to", followed.append)
    with executor("pool:2") as workers:
        assert ask(workers, divmod, 7, 2) == (3, 1)
        assert type(ask(workers, divmod, 7, 0)) is ZeroDivisionError
    assert len(followed) == (2 if cores == 2 else 0) and set(followed) <= os.sched_getaffinity(0)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="stops a process")
def test_a_worker_that_stands_still_is_late_and_its_errand_is_not_lost(pool):
    pids = {ask(pool, os.getpid) for _ in range(20)}
    found = []
    pid = pids.pop()
    os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(4):
            pool.errands.send(lambda pid, error: found.append(pid), pid_after_a_while)
        end = time.monotonic() + 2
        while time.monotonic() < end:
            pool.errands.listen(0.1)
    finally:
        os.kill(pid, signal.SIGCONT)
    while len(found) < 4:
        assert time.monotonic() < end + 60
        pool.errands.listen(0.1)
    assert ask(pool, divmod, 7, 2) == (3, 1)
