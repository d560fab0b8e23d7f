"""Work cut short: which steps are done and which are counted, exactly, by a clock that the test turns."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fl_utils import federation, privacy, probe
from fl_utils.cohorts import Client, Round
from fl_utils.experiment import Experiment
from fl_utils.training import LocalTraining, Trainer


class Clock:
    """Seconds that pass only where the test says so."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Counted(torch.nn.Module):
    """A linear model whose forward pass takes ``each`` seconds per example on ``clock``, and counts its calls."""

    def __init__(self, clock: Clock, each: float = 0.1, warm_up: float = 7.0):
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)
        self.clock, self.each, self.warm_up, self.sizes = clock, each, warm_up, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.clock.seconds += self.each * len(x) + self.warm_up * (not self.sizes)
        self.sizes.append(len(x))
        return self.linear(x)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def kept(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> probe.Account:
    """This process under a probe, with an account that goes by ``clock``."""
    monkeypatch.setenv(probe.FOLDER, str(tmp_path))
    monkeypatch.setattr(probe, "_account", probe.Account(tmp_path, clock))
    return probe._account


def data(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(count, 3), torch.zeros(count, dtype=torch.int64)


def test_off_by_default_nothing_is_left_out(clock: Clock, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(probe.FOLDER, raising=False)
    trainer = Trainer(lambda: Counted(clock))
    trainer.train(*data(23), LocalTraining(2, 5, 0.1), seed=0)
    assert trainer.model.sizes == 2 * [5, 5, 5, 5, 3]
    batches = [1, 2]
    assert probe.account() is None and probe.rounds() is None
    assert probe.few(batches, 2, 1, trainer.model) is batches


def test_first_steps_are_done_the_others_counted(kept: probe.Account, clock: Clock):
    trainer = Trainer(lambda: Counted(clock))
    trainer.train(*data(103), LocalTraining(2, 10, 0.1), seed=0)
    # Ten whole batches: one of warm-up, two measured at 1 s each. The last three examples: likewise, over the epochs.
    assert trainer.model.sizes == [10, 10, 10, 3, 3]
    assert kept.seconds == pytest.approx(7 + 10)
    trainer.train(*data(103), LocalTraining(3, 10, 0.1), seed=0)
    assert trainer.model.sizes == [10, 10, 10, 3, 3, 3]
    assert kept.seconds == pytest.approx(7 + 10 + 30 + 2 * 0.3)
    whole = 7 + 0.1 * 5 * 103
    assert kept.now() == pytest.approx(whole)
    assert json.loads((kept.folder / f"{os.getpid()}.json").read_text())["seconds"] == pytest.approx(kept.seconds)
    assert probe.read(kept.folder) == {"seconds": kept.seconds, "bytes_up": 0, "bytes_down": 0}


def test_work_of_another_kind_is_measured_anew(kept: probe.Account, clock: Clock):
    trainer = Trainer(lambda: Counted(clock))
    for local in (LocalTraining(1, 10, 0.1), LocalTraining(1, 10, 0.5), LocalTraining(1, 10, 0.1, momentum=0.9)):
        before = len(trainer.model.sizes)
        trainer.train(*data(100), local, seed=0)
        assert len(trainer.model.sizes) - before == (0 if local.learning_rate == 0.5 else 3)
    other = Trainer(lambda: torch.nn.Sequential(Counted(clock)))
    other.train(*data(100), LocalTraining(1, 10, 0.1), seed=0)
    assert other.model[0].sizes == [10, 10, 10]


def test_short_steps_are_measured_until_it_is_enough(kept: probe.Account, clock: Clock):
    trainer = Trainer(lambda: Counted(clock, each=1 / 1024))
    trainer.train(*data(1000), LocalTraining(1, 10, 0.1), seed=0)
    assert len(trainer.model.sizes) == 1 + math.ceil(probe.ENOUGH / (10 / 1024))
    assert kept.now() == pytest.approx(7 + 1000 / 1024)
    before, trainer.model.each = len(trainer.model.sizes), 1 / 2048  # faster later on: two more of each loop are done
    for _ in range(2 * probe.LOOPS):
        trainer.train(*data(1000), LocalTraining(1, 10, 0.1), seed=0)
    assert len(trainer.model.sizes) - before == probe.MORE * probe.LOOPS
    (work,) = kept.works.values()
    assert work.step(10) == 10 / 2048


def test_the_last_third_counts():
    work = probe.Work()
    for seconds in (50.0, 9.0, 9.0, 9.0, 1.0, 2.0, 3.0):
        work.add(10, seconds)
    assert work.step(10) == 2.5


def test_a_size_between_measured_ones_is_not_measured():
    work = probe.Work()
    for size in (2, 4, 8, 10):
        assert work.step(size, main=False) is None
        for _ in range(3):
            work.add(size, size / 2)
        assert work.step(size, main=False) == size / 2
    assert work.step(6, main=False) == pytest.approx(3)
    assert work.step(12, main=False) is None and work.step(1, main=False) is None


def test_parties_in_step_leave_out_the_same_whatever_it_takes(kept: probe.Account, clock: Clock, monkeypatch):
    def step(seconds: float) -> int:
        clock.seconds += seconds
        return 1

    assert sum(step(0.5 if number else 9.0) for number in probe.first(range(50), 50)) == 6
    assert kept.now() == pytest.approx(9 + 49 * 0.5)
    assert list(probe.first(range(6), 6)) == list(range(6)) and kept.now() == pytest.approx(9 + 49 * 0.5)
    monkeypatch.delenv(probe.FOLDER)
    assert list(probe.first(range(50), 50)) == list(range(50))


def test_outputs_have_all_rows(kept: probe.Account, clock: Clock):
    trainer = Trainer(lambda: Counted(clock))
    x, y = data(1003)
    assert trainer.outputs(x, 10).shape == (1003, 2)
    assert trainer.model.sizes == [
        10,
        10,
        10,
        3,
    ]
    assert kept.seconds == pytest.approx(97)
    assert trainer.evaluate(x, y, batch_size=10).num_examples == 1003
    assert trainer.outputs(x[:7], 10).shape == (7, 2)


def test_many_rounds_are_left_out_with_their_bytes(kept: probe.Account, clock: Clock):
    clients = [Client(id, *data(20)) for id in range(4)]
    result = federation.run(
        lambda: Counted(clock),
        clients,
        rounds=30,
        local=LocalTraining(1, 10, 0.1),
        evaluate=lambda trainer: trainer.evaluate(*data(40)).asdict(),
        evaluate_every=10,
    )
    assert [r.number for r in result.rounds] == list(range(30)) and len(result.evaluations) == 3
    training = 30 * 4 * 20 * 0.1
    evaluations = 3 * 40 * 0.1
    assert kept.now() == pytest.approx(7 + training + evaluations)
    each = {r.bytes_up for r in result.rounds}
    assert max(each) - min(each) <= 4 * 2  # a round's number has one digit or two
    assert (kept.bytes_up, kept.bytes_down) == (result.bytes_up, result.bytes_down)


def test_whole_rounds_are_left_out_in_proportion_to_their_examples(kept: probe.Account, clock: Clock):
    rounds, past = probe.Rounds(kept), []
    for number in range(10):
        cohort = [0] if number % 2 else [0, 1]
        this = Round(number, cohort, {}, 0.5, 0, 0, 0.0)
        if not rounds.skip(this, past, 10.0 * len(cohort), evaluated=False):
            clock.seconds += (9 if number == 0 else 1) * len(cohort)
            this.bytes_up, this.bytes_down = 100 * len(cohort), 50 * len(cohort)
        past.append(this)
    assert clock.seconds == 18 + 1 + 2 + 1 and kept.seconds == pytest.approx(2 + 1 + 2 + 1 + 2 + 1)
    assert [r.bytes_up for r in past] == 5 * [200, 100] and [r.bytes_down for r in past] == 5 * [100, 50]


def test_a_federation_of_one_sends_nothing(kept: probe.Account, clock: Clock):
    federation.run(lambda: Counted(clock), [Client(0, *data(20))], rounds=2, local=LocalTraining(1, 10, 0.1))
    assert (kept.bytes_up, kept.bytes_down) == (0, 0)


def test_private_steps_are_counted(kept: probe.Account):
    budgets = {0: privacy.Budget(100, 5, 30, 0.01, 1.0, 1.0)}
    train = privacy.private_training(budgets, [30], 0, clip_norm=1.0)
    seen = []
    kept.few = lambda batches, examples, size, kind: seen.append((examples, size)) or iter(())
    client = Client(0, *data(100))
    federation.run(lambda: torch.nn.Linear(3, 2), [client], rounds=[30], local=LocalTraining(), train=train)
    assert seen == [(30 * 20, 1)]


def test_a_forked_account_begins_at_nothing_and_knows_what_steps_cost(kept: probe.Account, monkeypatch):
    kept.left_out(5)
    kept.works["a kind",] = probe.Work({10: [1.0, 1.0]})
    monkeypatch.setattr(os, "getpid", lambda: 12345678)
    child = probe.account()
    assert child.seconds == 0 and child.works == kept.works
    child.left_out(2)
    assert probe.read(kept.folder)["seconds"] == 7


def test_an_unfinished_account_reads_as_nothing(tmp_path: Path):
    (tmp_path / "1.json").write_text("")
    assert probe.read(tmp_path)["seconds"] == 0


def test_nothing_is_recorded(kept: probe.Account, monkeypatch: pytest.MonkeyPatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda *content, **_: shown.append(content))
    experiment = Experiment("O2", seed=0)
    experiment.record()
    assert not shown
    monkeypatch.delenv(probe.FOLDER)
    experiment.record()
    assert len(shown) == 1


def test_the_module_imports_no_torch():
    code = "import sys, fl_utils.probe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
