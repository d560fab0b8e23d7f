"""The learning rate that is lowered in terraces: which rounds, by how much, and through a federation."""

from functools import partial

import pytest
import torch
from torch import nn

from fl_utils import federation
from fl_utils.cohorts import Client, Round
from fl_utils.terraces import Terraces
from fl_utils.training import LocalTraining

LOCAL = LocalTraining(1, 10, 0.4)


def rounds(*values, loss=False):
    """Rounds whose evaluation (None: not evaluated) or training loss has these values."""
    return [
        Round(n, [0], {}, v if loss else 0.0, 0, 0, 0.0, None if loss or v is None else {"accuracy": v})
        for n, v in enumerate(values)
    ]


def test_the_rate_falls_after_so_many_rounds_without_a_new_best():
    terraces = Terraces(LOCAL, factor=0.5, patience=2, lowerings=2)
    climb = [0.1, 0.3, 0.2, 0.3, 0.4, 0.4, 0.4, 0.3, 0.2, 0.1]
    assert terraces.lowered(rounds(*climb)) == [4, 7]  # 0.3 is not beaten in rounds 2, 3; 0.4 not in 5, 6; then no more
    rates = [terraces.after(rounds(*climb[:n])).learning_rate for n in range(len(climb))]
    assert rates == [0.4] * 4 + [0.2] * 3 + [0.1] * 3
    assert terraces.after([]) == LOCAL


def test_rounds_that_were_not_evaluated_do_not_count():
    terraces = Terraces(LOCAL, patience=2)
    assert terraces.lowered(rounds(0.5, None, None, 0.4, None, 0.4)) == [6]


def test_a_rise_within_the_margin_is_no_new_best():
    values = [0.50, 0.51, 0.52, 0.53]
    assert Terraces(LOCAL, patience=3).lowered(rounds(*values)) == []
    assert Terraces(LOCAL, patience=3, margin=0.1).lowered(rounds(*values)) == [4]


def test_by_the_training_loss_lower_is_better():
    assert Terraces(LOCAL, metric="train_loss", patience=2).lowered(rounds(2.0, 1.0, 1.5, 1.2, 0.5, loss=True)) == [4]


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"factor": 1.0}, "factor is 1.0"),
        ({"patience": 0}, "patience is 0"),
        ({"lowerings": -1}, "lowerings is -1"),
        ({"margin": -0.1}, "margin is -0.1"),
    ],
)
def test_settings_out_of_range_are_named(wrong, told):
    with pytest.raises(ValueError, match=told):
        Terraces(LOCAL, **wrong)


def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3))


def parties():
    generator = torch.Generator().manual_seed(0)
    return [
        Client(i, torch.rand(20, 1, 2, 2, generator=generator), torch.randint(3, (20,), generator=generator))
        for i in range(2)
    ]


def test_a_federation_trains_by_them_and_resumes_with_the_same_rates(tmp_path):
    seen = []

    def train(trainer, client, local, seed):
        seen.append(local.learning_rate)
        return federation.train_locally(trainer, client, local, seed)

    run = partial(federation.run, build, parties(), train=train, evaluate=lambda trainer: {"accuracy": 0.5})
    local = Terraces(LOCAL, factor=0.5, patience=2)
    whole = run(rounds=6, local=local)
    assert seen == [0.4] * 6 + [0.2] * 4 + [0.1] * 2  # two clients a round
    file = tmp_path / "state.safetensors"
    run(rounds=4, local=local, checkpoint=file)
    assert torch.equal(run(rounds=6, local=local, checkpoint=file).vector, whole.vector)
    with pytest.raises(ValueError, match="local training"):
        run(rounds=6, local=Terraces(LOCAL, factor=0.5, patience=3), checkpoint=file)


def test_a_metric_that_nobody_measures_is_refused():
    with pytest.raises(ValueError, match="evaluate is None"):
        federation.run(build, parties(), rounds=1, local=Terraces(LOCAL))
    with pytest.raises(ValueError, match="'accuracy' is not in what evaluate returned: loss"):
        federation.run(build, parties(), rounds=2, local=Terraces(LOCAL), evaluate=lambda trainer: {"loss": 1.0})
    result = federation.run(build, parties(), rounds=2, local=LOCAL, evaluate=lambda trainer: {"tar": 1.0})
    assert result.evaluations == [{"tar": 1.0}] * 2  # a rate that is never lowered needs no accuracy
