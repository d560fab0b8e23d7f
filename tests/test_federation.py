import copy
import os
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import Executor, Future
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from fl_utils import federation, flat, wire
from fl_utils.executors import executor
from fl_utils.federation import Client, ClientDropped, FederationError
from fl_utils.training import LocalTraining, Trainer, client_seed
from small import LOCAL, clients, examples, mlp, plain_mlp, with_batch_norm


def naive(build, parties, rounds, local, fraction, seed):
    """FedAvg as a textbook writes it: deep copies, torch.optim, state dicts."""
    torch.manual_seed(seed)
    model = build()
    for number in range(rounds):
        states, counts = [], []
        for id in federation.draw([c.id for c in parties], fraction, seed, number):
            party = next(c for c in parties if c.id == id)
            own = copy.deepcopy(model).train()
            optimizer = torch.optim.SGD(own.parameters(), local.learning_rate)
            generator = torch.Generator().manual_seed(client_seed(seed, number, id))
            torch.manual_seed(client_seed(seed, number, id))
            for _ in range(local.local_epochs):
                for batch in torch.randperm(len(party), generator=generator).split(local.batch_size):
                    optimizer.zero_grad()
                    functional.cross_entropy(own(party.x[batch]), party.y[batch]).backward()
                    optimizer.step()
            states.append(own.state_dict())
            counts.append(len(party))
        total = sum(counts)
        mean = {
            name: sum(state[name].double() * (n / total) for state, n in zip(states, counts, strict=True))
            for name in states[0]
        }
        # Counters are averaged like the rest; an integer copy of the state can only hold them rounded.
        model.load_state_dict({k: v.to(model.state_dict()[k].dtype) for k, v in mean.items()})
    return flat.flatten(model)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("build", [mlp, with_batch_norm])
def test_the_fast_path_equals_the_naive_one(build, fraction):
    sizes = (30, 17, 25, 9) if build is mlp else (24, 24, 24, 24)  # equal sizes: whole batch-norm counters
    parties = clients(sizes)
    result = federation.run(build, parties, rounds=4, local=LOCAL, client_fraction=fraction, seed=11)
    slow = naive(build, parties, 4, LOCAL, fraction, 11)
    torch.testing.assert_close(result.vector, slow, atol=1e-6, rtol=1e-6)


def test_every_executor_gives_the_same_result_to_the_bit():
    import distributed

    run = partial(federation.run, mlp, clients(), rounds=3, local=LOCAL, client_fraction=0.5, seed=4)
    here = run()
    with executor("pool:2") as pool:
        there = run(executor=pool)
    assert torch.equal(here.vector, there.vector)
    assert [r.train_loss for r in here.rounds] == [r.train_loss for r in there.rounds]
    assert (here.bytes_up, here.bytes_down) == (there.bytes_up, there.bytes_down)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        executor(cluster.scheduler_address) as dask,
    ):
        assert torch.equal(here.vector, run(executor=dask).vector)


def test_it_learns_and_counts_what_is_serialised():
    x, y = examples(300, seed=5)
    evaluate = lambda trainer: {"accuracy": trainer.evaluate(x, y).accuracy}  # noqa: E731
    parties = clients((60, 60, 60, 60))
    result = federation.run(plain_mlp, parties, rounds=15, local=LOCAL, evaluate=evaluate, evaluate_every=5)
    assert [r.evaluation is not None for r in result.rounds] == [(n + 1) % 5 == 0 for n in range(15)]
    assert result.evaluations[-1]["accuracy"] > 0.85 > 0.6 > 1 / 3
    assert result.rounds[-1].train_loss < result.rounds[0].train_loss
    one = wire.frame(result.vector, kind="state", round=0, client=0)
    assert result.rounds[0].bytes_down == 4 * wire.size(one)
    assert result.rounds[0].bytes_up > 4 * 4 * len(result.vector)


def test_clients_cohorts_are_drawn_by_seed_and_round():
    ids = list(range(100))
    drawn = [federation.draw(ids, 0.1, 0, number) for number in range(50)]
    assert all(len(set(d)) == 10 and d == sorted(d) for d in drawn)
    assert len({tuple(d) for d in drawn}) == 50
    assert set().union(*drawn) == set(ids)
    assert drawn[3] == federation.draw(ids, 0.1, 0, 3) != federation.draw(ids, 0.1, 1, 3)
    assert federation.draw(ids, 0.001, 0, 0) != []
    assert federation.intervals(10, 3) == [3, 3, 3, 1]
    assert federation.intervals(4, 2) == [2, 2]


def test_an_average_interval_is_that_many_local_epochs():
    parties = clients()
    by_schedule = federation.run(mlp, parties, rounds=federation.intervals(5, 2), local=LOCAL, seed=2)
    assert len(by_schedule.rounds) == 3
    first = federation.run(mlp, parties, rounds=2, local=LOCAL.for_epochs(2), seed=2)
    assert [r.train_loss for r in first.rounds] == [r.train_loss for r in by_schedule.rounds[:2]]


# --- clients that fail


def failing(kind, trainer, client, local, seed):
    if client.id == 2:
        if kind == "raise":
            raise ZeroDivisionError("bad example")
        if kind == "drop":
            raise ClientDropped("battery")
        if kind == "nan":
            trainer.vector[7] = float("nan")
            return 0.0
        if kind == "infinite":
            trainer.vector[7] = float("inf")
            return 0.0
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
    return federation.train_locally(trainer, client, local, seed)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("raise", "ZeroDivisionError: bad example"),
        ("drop", r"dropped out \(battery\)"),
        ("nan", "not finite"),
        ("infinite", "not finite"),
    ],
)
@pytest.mark.parametrize("where", ["", "threads"])
def test_a_failing_client_is_named_and_left_out_or_stops_the_run(kind, reason, where):
    from concurrent.futures import ThreadPoolExecutor
    from contextlib import nullcontext

    parties = clients()
    run = partial(federation.run, mlp, rounds=2, local=LOCAL, seed=4)
    with nullcontext() if where == "" else ThreadPoolExecutor(3) as pool:
        train = partial(failing, kind)
        with pytest.raises(FederationError, match=f"round 0: client 2 failed: .*{reason}"):
            run(clients=parties, train=train, executor=pool)
        skipped = run(clients=parties, train=train, executor=pool, on_failure="skip")
    assert [list(r.left_out) for r in skipped.rounds] == [[2], [2]]
    without = run(clients=[c for c in parties if c.id != 2])
    assert torch.equal(skipped.vector, without.vector)
    assert skipped.bytes_down > without.bytes_down


class WithOneSilent(Executor):
    """Runs tasks at once, but for client 2, whose future never resolves."""

    def submit(self, task, vector, client):
        future = Future()
        if client.id != 2:
            future.set_result(task(vector, client))
        return future


def test_a_silent_client_is_left_out_after_the_timeout():
    run = partial(federation.run, mlp, clients(), rounds=1, local=LOCAL, executor=WithOneSilent(), client_timeout=0.1)
    result = run(on_failure="skip")
    assert result.rounds[0].left_out == {2: "dropped out (silent for 0.1 s)"}
    without = [client for client in clients() if client.id != 2]
    assert torch.equal(result.vector, federation.run(mlp, without, rounds=1, local=LOCAL).vector)
    with pytest.raises(FederationError, match="client 2 failed: dropped out"):
        run(on_failure="stop")


def test_a_killed_worker_ends_the_run_with_a_name_and_the_checkpoint_stays(tmp_path):
    file = tmp_path / "state.safetensors"
    run = partial(federation.run, mlp, clients(), local=LOCAL, seed=4, checkpoint=file)
    run(rounds=1)
    with executor("pool:1") as pool, pytest.raises(FederationError, match="worker process died while clients"):
        run(rounds=1, executor=pool, train=partial(failing, "kill"), checkpoint=None)
    assert torch.equal(run(rounds=3).vector, run(rounds=3, checkpoint=None).vector)


def test_a_round_that_loses_everybody_stops():
    def gone(trainer, client, local, seed):
        raise ClientDropped

    with pytest.raises(
        FederationError, match=r"round 0: no client of the cohort is left \(client 0: dropped out; client 1"
    ):
        federation.run(mlp, clients(), rounds=1, local=LOCAL, train=gone, on_failure="skip")


def test_a_rule_that_keeps_its_vectors_gets_ones_of_their_own():
    def median(old, updates):
        return torch.stack([vector for vector, _ in updates]).median(0).values

    seen = []

    def spy(old, updates):
        seen.extend(updates)
        return median(old, seen)

    federation.run(mlp, clients(), rounds=1, local=LOCAL, rule=spy)
    assert len({vector.data_ptr() for vector, _ in seen}) == 4
    assert len({float(vector.sum()) for vector, _ in seen}) == 4


def test_polyak_rule_folds_in_the_cohorts_order():
    parties = clients()
    result = federation.run(mlp, parties, rounds=1, local=LOCAL, rule=federation.polyak_rule, seed=1)
    alone = [federation.run(mlp, [c], rounds=1, local=LOCAL, seed=1).vector for c in parties]
    start = federation.run(mlp, parties, rounds=1, local=LOCAL.__class__(learning_rate=0.0), seed=1).vector
    for vector in alone:
        start = 0.5 * start + 0.5 * vector
    torch.testing.assert_close(result.vector, start, atol=1e-6, rtol=1e-6)


# --- checkpoints


def test_a_run_cut_short_resumes_to_the_same_result(tmp_path):
    file = tmp_path / "state.safetensors"
    x, y = examples(50, 3)
    run = partial(
        federation.run, mlp, clients(), local=LOCAL, client_fraction=0.5, seed=8,
        evaluate=lambda trainer: trainer.evaluate(x, y).asdict(),
    )  # fmt: skip
    unbroken = run(rounds=6)

    class Cut(Exception):
        pass

    def cut(done):
        if done.number == 3:
            raise Cut

    with pytest.raises(Cut):
        run(rounds=6, checkpoint=file, progress=cut)
    resumed_rounds = []
    resumed = run(rounds=6, checkpoint=file, progress=lambda r: resumed_rounds.append(r.number))
    assert resumed_rounds == [4, 5]
    assert torch.equal(resumed.vector, unbroken.vector)
    assert resumed.evaluations == unbroken.evaluations
    assert [r.cohort for r in resumed.rounds] == [r.cohort for r in unbroken.rounds]
    assert resumed.bytes_up == unbroken.bytes_up
    longer = run(rounds=8, checkpoint=file)
    assert torch.equal(longer.vector, run(rounds=8).vector)


SCRIPT = """
    import sys, time
    sys.path.insert(0, {tests!r})
    from fl_utils import federation
    from small import LOCAL, clients, mlp

    def slow(done):
        print(done.number, flush=True)
        time.sleep({pause})

    result = federation.run(mlp, clients(), rounds=12, local=LOCAL, seed=8, checkpoint={file!r}, progress=slow)
    print("sum", result.vector.double().sum().item(), len(result.rounds))
"""


def test_kill_dash_nine_in_mid_training_resumes_to_the_same_result(tmp_path):
    def start(pause):
        file = str(tmp_path / "state.safetensors")
        script = textwrap.dedent(SCRIPT.format(tests=str(Path(__file__).parent), pause=pause, file=file))
        return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)

    process = start(pause=0.2)
    while process.stdout.readline().strip() != "4":
        assert process.poll() is None
    process.kill()
    process.wait()
    process.stdout.close()
    output = start(pause=0).communicate(timeout=60)[0].split("\n")
    unbroken = federation.run(mlp, clients(), rounds=12, local=LOCAL, seed=8)
    assert "4" not in output[:-2]
    assert output[-2] == f"sum {unbroken.vector.double().sum().item()} 12"


def test_another_runs_checkpoint_is_refused_by_what_differs(tmp_path):
    file = tmp_path / "state.safetensors"
    run = partial(federation.run, local=LOCAL, checkpoint=file)
    run(mlp, clients(), rounds=2)
    for arguments, different in [
        ({"seed": 1}, "seed, initial state"),
        ({"build": plain_mlp}, "model"),
        ({"clients": clients((30, 17, 25, 10))}, "clients"),
        ({"local": LOCAL.__class__(2, 8, 0.2)}, "local training"),
        ({"rule": federation.polyak_rule}, "rule"),
        ({"rounds": 1}, "rounds"),
        ({"rounds": [1, 1]}, "rounds"),
    ]:
        with pytest.raises(ValueError, match=different):
            run(**{"build": mlp, "clients": clients(), "rounds": 2, **arguments})
    whole = file.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"junk" * 100):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match="cannot be read"):
            run(mlp, clients(), rounds=2)


# --- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clients": []}, "clients is empty"),
        ({"clients": [*clients(), clients()[1]]}, r"client ids \[1\] occur more than once"),
        ({"clients": [Client(0, *examples(0))]}, "client 0: 0 examples"),
        ({"clients": [Client(-1, *examples(3))]}, "client id -1"),
        ({"rounds": 0}, "at least one round"),
        ({"rounds": [2, 0]}, "at least one epoch"),
        ({"client_fraction": 0.0}, "client_fraction is 0.0"),
        ({"client_fraction": 1.5}, "client_fraction is 1.5"),
        ({"on_failure": "ignore"}, "'stop' or 'skip'"),
        ({"evaluate_every": 0}, "evaluate_every is 0"),
        ({"initial": torch.zeros(3)}, "this model's state is float32"),
    ],
)
def test_bad_input_is_refused_before_any_training(arguments, message):
    def never(*_):
        raise AssertionError("trained")

    with pytest.raises(ValueError, match=message):
        federation.run(
            **{"build": mlp, "clients": clients(), "rounds": 1, "local": LocalTraining(), "train": never, **arguments}
        )


@pytest.mark.parametrize("where", ["pool:0", "pool:x", "threads", "8"])
def test_an_unknown_executor_is_named(where):
    with pytest.raises(ValueError, match=f"executor '{where}'"), executor(where):
        pass


def test_trainings_in_other_threads_do_not_disturb_a_run():
    """torch has one random generator per process: seeding and drawing are held together."""
    stop = threading.Event()

    def disturb():
        trainer, (x, y) = Trainer(mlp), examples(40, 9)
        while not stop.is_set():
            trainer.train(x, y, LOCAL, seed=1)

    run = partial(federation.run, mlp, clients(), rounds=2, local=LOCAL, seed=4)
    alone = run().vector
    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        disturbed = [run().vector for _ in range(10)]
    finally:
        stop.set()
        thread.join()
    assert all(torch.equal(vector, alone) for vector in disturbed)
