"""How benchmarks measure, and that the contenders of the simulation do the same work."""

import json
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional

from benchmarks import simulation, workers
from benchmarks.measure import Spent, interleaved, summary
from benchmarks.rivals import job, loops
from benchmarks.simulation import BATCHED, OURS, PLAIN, REFERENCE, Setting, compared
from fl_utils import federation, flat
from fl_utils.cluster_cost import Cost
from fl_utils.environments import Environment
from fl_utils.training import LocalTraining, client_seed
from small import clients, plain_mlp, with_batch_norm


class Clock:
    """Stands still but for what the contenders add to it."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def costs(clock, seconds):
    """A contender that takes these seconds, turn by turn."""
    left = iter(seconds)

    def contender():
        clock.now += next(left)

    return contender


def test_ratios_are_taken_within_a_turn_and_their_median_counts():
    clock = Clock()
    contenders = {"plain": costs(clock, [9, 1, 2, 4]), "other": costs(clock, [9, 3, 2, 2])}  # the first is warm-up
    found = interleaved(contenders, repeats=3, clock=clock, wall=clock, limits={"other": 0.9})
    assert found["plain"] == {
        "cpu_s": 2, "ratio": 1, "ratio_min": 1, "ratio_max": 1, "wall_s": 2, "wall_ratio": 1
    }  # fmt: skip
    other = found["other"]
    assert (other["cpu_s"], other["ratio"], other["ratio_min"], other["ratio_max"]) == (2, 1, 0.5, 3)
    assert other["limit"] == 0.9


def test_a_contender_may_say_itself_what_it_spent():
    contenders = {"a": lambda: Spent(2.0, 3.0, 100.0), "b": lambda: Spent(1.0, 6.0, 50.0)}
    found = interleaved(contenders, repeats=2, own_clock=True)
    assert found["b"] == {
        "cpu_s": 1, "ratio": 0.5, "ratio_min": 0.5, "ratio_max": 0.5, "wall_s": 6, "wall_ratio": 2, "peak_mb": 50
    }  # fmt: skip
    by_seconds = interleaved({"a": lambda: 2.0, "b": lambda: 5.0}, repeats=1, own_clock=True)
    assert by_seconds["b"]["ratio"] == 2.5
    assert "peak_mb" not in by_seconds["b"]


def test_the_peak_is_the_most_of_all_turns_and_a_limit_needs_its_contender():
    turns = [{"a": Spent(1, 1, 10)}, {"a": Spent(1, 1, 30)}, {"a": Spent(1, 1, 20)}]
    assert summary(turns)["a"]["peak_mb"] == 30
    with pytest.raises(ValueError, match="limits for b: want some of a"):
        summary(turns, {"b": 1.0})


def task(tmp_path, monkeypatch, build, blocks=2, rounds=2, cohort=2):
    """A tiny one, over clients of 24 examples each."""
    monkeypatch.setitem(job.MODELS, "tiny", build)
    parties = clients((24, 24, 24, 24))
    x, y = torch.cat([client.x for client in parties]), torch.cat([client.y for client in parties])
    drawn = [federation.draw(range(4), cohort / 4, 0, number) for number in range(blocks * rounds)]
    seeds = [[client_seed(0, number, id) for id in ids] for number, ids in enumerate(drawn)]
    shape = blocks, rounds, cohort
    _, initial = federation.begin(build, "cpu", 0)
    path = tmp_path / "task.npz"
    parts = np.arange(96).reshape(4, 24)
    job.save(path, "tiny", x, y, parts, np.reshape(drawn, shape), np.reshape(seeds, shape), initial)
    return job.Task.load(path), parties


@pytest.mark.parametrize("build", [plain_mlp, with_batch_norm])
def test_the_textbook_loop_and_the_federation_end_with_the_same_weights(tmp_path, monkeypatch, build):
    given, parties = task(tmp_path, monkeypatch, build)
    loop = loops.Textbook(given)
    for block in range(2):
        loop.run(block)
    local = LocalTraining(1, job.BATCH, job.RATE)
    ours = federation.run(build, parties, rounds=4, local=local, client_fraction=0.5).vector
    length = flat.Layout.of(build()).num_parameters
    torch.testing.assert_close(loop.vector(), ours[:length], atol=1e-6, rtol=0)
    assert (loop.vector() - given.initial[:length]).abs().max() > 1e-3


def test_plain_sgd_takes_the_federations_minibatches_in_its_order(tmp_path, monkeypatch):
    """One client at a time, averaged over itself alone: then a federation is plain SGD over the same minibatches."""
    given, parties = task(tmp_path, monkeypatch, plain_mlp, blocks=1, rounds=3, cohort=1)
    plain = loops.Plain(given)
    plain.run(0)
    local = LocalTraining(1, job.BATCH, job.RATE)
    ours = federation.run(plain_mlp, parties, rounds=3, local=local, client_fraction=0.25).vector
    torch.testing.assert_close(plain.vector(), ours, atol=1e-6, rtol=0)

    seen = []
    monkeypatch.setattr(functional, "cross_entropy", lambda out, y: (seen.append(y), out.sum())[1])
    loops.Plain(given).run(0)
    client = parties[given.cohorts[0, 0, 0]]
    order = torch.randperm(24, generator=torch.Generator().manual_seed(client_seed(0, 0, client.id)))
    assert torch.equal(torch.cat(seen[:3]), client.y[order])
    assert [len(y) for y in seen] == [10, 10, 4] * 3


def test_a_settings_task_has_the_cohorts_of_the_run(tmp_path, monkeypatch):
    from fl_utils.data import images

    digits = images.Examples(torch.zeros(60, 1, 28, 28, dtype=torch.uint8), torch.arange(60) % 10)
    monkeypatch.setattr(images, "load", lambda name: {"mnist": digits})
    setting = Setting("2NN", 6, 10, 2, 3, 1, {})
    setting.write(tmp_path / "task.npz")
    given = job.Task.load(tmp_path / "task.npz")
    assert given.cohorts.shape == (2, 3, 2)
    assert given.cohorts[1, 2].tolist() == federation.draw(range(6), 1 / 3, 0, 5)
    assert given.seeds[1, 2, 0] == client_seed(0, 5, given.cohorts[1, 2, 0])
    assert sum(len(y) for y in given.y) == 60
    assert setting.steps == 6


class Fake:
    """A contender without a process."""

    def __init__(self, cpu, weights):
        self.cpu, self.own, self.version = cpu, np.array(weights, np.float32), "torch 0"
        self.note = "clients train together"
        self.start_up = Spent(10.0, 20.0, 5.0)

    def begin(self, task):
        assert task.name.endswith(".npz")

    def turn(self):
        return Spent(self.cpu, 2 * self.cpu, 7.0)

    def weights(self, path):
        return self.own


SETTING = Setting("2NN", 6, 10, 2, 3, 2, {OURS: 0.9, BATCHED: 0.6})


def test_results_hold_rounds_and_start_up_as_plain_json(tmp_path, monkeypatch):
    monkeypatch.setattr(Setting, "write", lambda self, path: None)
    contenders = {PLAIN: Fake(2.0, [9.0]), OURS: Fake(1.0, [0.5]), REFERENCE: Fake(3.0, [0.50001])}
    found = json.loads(json.dumps(compared(SETTING, contenders, tmp_path)))
    assert list(found) == ["2NN, 6 x 10", "2NN, 6 x 10, with start-up"]
    rounds, whole = found.values()
    assert rounds[OURS]["ratio"] == 0.5
    assert rounds[OURS]["limit"] == 0.9
    assert rounds[OURS]["weights"] == pytest.approx(1e-5, rel=0.01)
    assert rounds[OURS]["peak_mb"] == 7
    assert rounds[OURS]["note"] == "clients train together"
    assert "weights" not in rounds[PLAIN]
    assert whole[OURS]["cpu_s"] == 12
    assert whole[OURS]["ratio"] == pytest.approx(12 / 14)
    assert whole[OURS]["wall_s"] == 24
    assert all({"cpu_s", "ratio", "ratio_min", "ratio_max"} <= set(f) for c in found.values() for f in c.values())


@pytest.mark.parametrize(("weights", "said"), [([0.6], "have not trained alike"), ([0.5, 0.5], "lengths of weights")])
def test_a_contender_with_other_weights_is_no_contender(tmp_path, monkeypatch, weights, said):
    monkeypatch.setattr(Setting, "write", lambda self, path: None)
    contenders = {PLAIN: Fake(2.0, [9.0]), OURS: Fake(1.0, weights), REFERENCE: Fake(3.0, [0.5])}
    with pytest.raises(RuntimeError, match=said):
        compared(SETTING, contenders, tmp_path)


def test_rivals_that_are_not_installed_are_named_once_and_the_rest_runs(tmp_path, monkeypatch, capsys):
    begun = []

    class Begun(Fake):
        def __init__(self, name, python, log):
            super().__init__(1.0, [0.5])
            begun.append((name, str(python)))

        def close(self):
            pass

    monkeypatch.setattr(simulation, "Contender", Begun)
    monkeypatch.setattr(Setting, "write", lambda self, path: None)
    monkeypatch.setattr(simulation, "RIVALS", Environment("make rivals", ".venv-nowhere", tmp_path))
    found = simulation.run((SETTING,))
    said = capsys.readouterr().out
    assert said.splitlines() == ["pfl, FedLab, Flower: not installed here (make rivals)"]
    assert [name for name, _ in begun] == [PLAIN, OURS, BATCHED, REFERENCE] == list(found["2NN, 6 x 10"])
    assert {python for _, python in begun} == {sys.executable}


def test_a_contenders_process_takes_tasks_block_by_block_and_says_why_it_died(tmp_path, monkeypatch):
    from fl_utils.data import images

    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (40, 1, 28, 28), dtype=torch.uint8, generator=generator)
    monkeypatch.setattr(images, "load", lambda name: {"mnist": images.Examples(x, torch.arange(40) % 10)})
    path = tmp_path / "task.npz"
    Setting("2NN", 4, 10, 2, 2, 3, {}).write(path)
    contender = simulation.Contender(BATCHED, simulation.Path(sys.executable), tmp_path / "log.txt")
    try:
        for _ in range(2):  # a task that is left before its last block does not hold up the next one
            contender.begin(path)
            spent = contender.turn()
        weights = contender.weights(tmp_path / "weights.npy")
        with pytest.raises(RuntimeError, match=r"fl_utils, together gave no answer .*nowhere.npz"):
            contender.begin(tmp_path / "nowhere.npz")
    finally:
        contender.close()
    assert contender.process.poll() is not None
    assert spent.cpu_s > 0 < spent.wall_s
    assert contender.note.startswith("clients train ")
    assert contender.start_up.cpu_s > spent.cpu_s
    assert contender.version == f"torch {torch.__version__.split('+')[0]}"
    loop = loops.Textbook(job.Task.load(path))
    for block in range(2):
        loop.run(block)
    assert np.abs(weights - loop.vector().numpy()).max() < 1e-5


def test_the_model_foretells_measured_rounds_from_messages_alone(monkeypatch):
    monkeypatch.setattr(workers, "available_cores", lambda: 2)
    lengths, own = {"CNN": 1_663_370, "2NN": 199_210}, {"CNN": 0.001, "2NN": 0.0002}  # values; seconds beside training
    alone = dict(zip(workers.SETTINGS, (0.06, 0.6, 0.003), strict=True))  # seconds of a client in one process

    def true_cost(name, compute=0.0):
        return Cost(compute, own[name], 4 * lengths[name], 0.005, 0.015, latency=0.006, bandwidth=1e9, cores=2)

    silent = {
        name: {"one process": {"cpu_s": 10 * own[name]}}
        | {
            f"Dask, {count}": {"wall_s": true_cost(name).seconds(count, 10), "cpu_s": 0.15, "server_cpu_s": 0.05}
            for count in (1, 2)
        }
        for name in lengths
    }
    results = {
        setting: {"one process": {"state_values": lengths[name]}}
        | {
            f"Dask, {count}": {
                "wall_s": rounds * true_cost(name, alone[setting] - own[name]).seconds(count, 10),
                "one_process_s": rounds * 10 * alone[setting],
                "clients": rounds * 10,
            }
            for count in (1, 2)
        }
        for setting, (name, _, rounds, _) in workers.SETTINGS.items()
    }
    beside, far = workers.model(results, silent, "Dask").values()
    assert len(beside) == 6 and [each["ratio"] for each in beside.values()] == pytest.approx([1] * 6, rel=1e-3)
    assert beside["2NN, 100 x 50, 1"]["latency_s"] == pytest.approx(0.006, rel=1e-2)
    assert [each["waits_for"] for each in far.values()] == ["workers", *["server"] * 4]
    results["CNN, 100 x 50"]["Dask, 2"]["wall_s"] *= 2  # what was not foretold is seen
    beside = workers.model(results, silent, "Dask")["model beside measured, Dask"]
    assert beside["CNN, 100 x 50, 2"]["ratio"] == pytest.approx(0.5, rel=1e-3)
