"""Batch norm's statistics under federated averaging: averaged, kept local, estimated anew on the server."""

import pickle

import pytest
import torch
from torch import nn

from fl_utils import federation, statistics
from fl_utils.aggregation import fedavg
from fl_utils.federation import ClientDropped
from fl_utils.training import LocalTraining, Trainer, client_seed
from small import LOCAL, clients, examples, plain_mlp, with_batch_norm

SIZES = (24, 16, 24)
X, Y = examples(60, seed=5)


def run(how, rounds=2, parties=None, images=None, build=with_batch_norm, **more):
    settings = statistics.settings(how, build, X, Y, images)
    return federation.run(build, parties or clients(SIZES), rounds=rounds, local=LOCAL, seed=3, **settings, **more)


def norms(vector):
    """Mean, variance and counter of the first batch norm, in a model that holds ``vector``."""
    trainer = Trainer(with_batch_norm)
    trainer.vector.copy_(vector)
    first = trainer.model[1]
    return first.running_mean, first.running_var, first.num_batches_tracked


def test_averaged_is_what_the_federation_does_unasked():
    plain = federation.run(with_batch_norm, clients(SIZES), rounds=2, local=LOCAL, seed=3)
    result = run("averaged")
    assert torch.equal(result.vector, plain.vector)
    trainer = Trainer(with_batch_norm)
    trainer.vector.copy_(plain.vector)
    assert result.evaluations[-1]["accuracy"] == trainer.evaluate(X, Y).accuracy


def test_the_weights_do_not_depend_on_the_statistics():
    trainable = Trainer(with_batch_norm).layout.num_parameters
    averaged, kept, anew = (run(how, images=X if how == "re_estimated" else None) for how in statistics.HOW)
    for other in (kept, anew):
        assert torch.equal(averaged.vector[:trainable], other.vector[:trainable])
        assert not torch.equal(averaged.vector[trainable:], other.vector[trainable:])


def test_kept_statistics_are_those_of_each_clients_own_steps():
    parties, trainer = clients(SIZES), Trainer(with_batch_norm)
    torch.manual_seed(3)
    weights = Trainer(with_batch_norm).vector.clone()
    buffers = {party.id: None for party in parties}
    scores = []
    for number in range(3):
        vectors = []
        for party in parties:
            trainer.vector.copy_(weights)
            for buffer, own in zip(
                trainer.model.buffers(), buffers[party.id] or [], strict=buffers[party.id] is not None
            ):
                buffer.copy_(own)
            trainer.train(party.x, party.y, LOCAL, client_seed(3, number, party.id))
            buffers[party.id] = [buffer.clone() for buffer in trainer.model.buffers()]
            vectors.append(trainer.vector.clone())
        weights[: trainer.layout.num_parameters] = fedavg(vectors, SIZES)[: trainer.layout.num_parameters]
        scores = []
        for party in parties:
            trainer.vector.copy_(weights)
            for buffer, own in zip(trainer.model.buffers(), buffers[party.id], strict=True):
                buffer.copy_(own)
            scores.append(trainer.evaluate(X, Y).accuracy)
    last = run("kept_local", rounds=3, parties=parties).evaluations[-1]
    assert last["accuracy"] == pytest.approx(sum(scores) / 3, abs=1e-9)
    assert (last["lowest"], last["highest"]) == (min(scores), max(scores))


def test_a_server_without_statistics_has_those_of_a_new_model():
    mean, variance, rounds = norms(run("kept_local", rounds=2).vector)
    assert (mean == 0).all() and (variance == 1).all() and rounds == 2


def test_clients_that_were_never_drawn_start_afresh_and_are_not_evaluated():
    parties = clients((16,) * 8)
    how = statistics.settings("kept_local", with_batch_norm, X, Y)
    kept = how["rule"].__self__
    drawn = federation.run(with_batch_norm, parties, rounds=2, local=LOCAL, seed=3, client_fraction=0.25, **how)
    seen = {id for one in drawn.rounds for id in one.cohort}
    assert set(kept.of) == seen and len(seen) < 8
    steps = {id: LOCAL.local_epochs * 2 * sum(id in one.cohort for one in drawn.rounds) for id in seen}
    for id, own in kept.of.items():
        assert own[kept.counters].tolist() == [steps[id]] * 2


def test_re_estimated_are_the_means_of_the_servers_images():
    result = run("re_estimated", images=X)
    trainer = Trainer(with_batch_norm)
    trainer.vector.copy_(result.vector)
    with torch.no_grad():
        activations = trainer.model[0](X)
    mean, variance, _ = norms(result.vector)
    torch.testing.assert_close(mean, activations.mean(0))
    torch.testing.assert_close(variance, activations.var(0))
    assert result.evaluations[-1]["accuracy"] == trainer.evaluate(X, Y).accuracy


def test_after_one_short_round_averaged_statistics_lag_behind():
    """One step with momentum 0.1 leaves nine tenths of the mean of a new model; inputs are far from zero."""
    one_step = LocalTraining(1, 0, 0.01)
    parties = [federation.Client(party.id, party.x + 20, party.y) for party in clients(SIZES)]
    means = {}
    for how in ("averaged", "re_estimated"):
        settings = statistics.settings(how, with_batch_norm, X + 20, Y, X + 20 if how == "re_estimated" else None)
        result = federation.run(with_batch_norm, parties, rounds=1, local=one_step, seed=3, **settings)
        means[how] = norms(result.vector)[0].abs().mean().item()
    assert means["averaged"] == pytest.approx(0.1 * means["re_estimated"], rel=0.2)


def test_the_rule_and_the_training_that_were_given_are_used():
    def train(trainer, client, local, seed):
        if client.id == 1:
            raise ClientDropped
        return federation.train_locally(trainer, client, local, seed)

    how = statistics.settings("kept_local", with_batch_norm, X, Y, rule=federation.polyak_rule, train=train)
    result = federation.run(with_batch_norm, clients(SIZES), rounds=1, local=LOCAL, seed=3, on_failure="skip", **how)
    assert list(result.rounds[0].left_out) == [1] and set(how["rule"].__self__.of) == {0, 2}
    two = [party for party in clients(SIZES) if party.id != 1]
    plain = federation.run(with_batch_norm, two, rounds=1, local=LOCAL, seed=3, rule=federation.polyak_rule)
    trainable = Trainer(with_batch_norm).layout.num_parameters
    assert torch.equal(result.vector[:trainable], plain.vector[:trainable])


def test_evaluating_leaves_the_servers_state_alone():
    how = statistics.settings("kept_local", with_batch_norm, X, Y)
    before_after = []

    def evaluate(trainer):
        before = trainer.vector.clone()
        found = how["evaluate"](trainer)
        before_after.append(torch.equal(before, trainer.vector))
        return found

    federation.run(with_batch_norm, clients(SIZES), rounds=1, local=LOCAL, **{**how, "evaluate": evaluate})
    assert before_after == [True]


def test_a_run_resumed_without_the_clients_statistics_is_refused(tmp_path):
    file = tmp_path / "state"
    run("kept_local", rounds=1, checkpoint=file)
    with pytest.raises(federation.FederationError, match="statistics were kept for 0 rounds"):
        run("kept_local", rounds=2, checkpoint=file)


def test_other_processes_are_refused():
    how = statistics.settings("kept_local", with_batch_norm, X, Y)
    for part in (how["train"], how["rule"]):
        with pytest.raises(TypeError, match="without an executor"):
            pickle.dumps(part)


class GroupNormed(nn.Module):
    """Takes batches of 6 numbers; normalises groups of channels."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.GroupNorm(2, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize(
    "build", [plain_mlp, GroupNormed, lambda: nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False))]
)
@pytest.mark.parametrize("how", ["kept_local", "re_estimated"])
def test_a_model_without_running_statistics_is_refused(build, how):
    with pytest.raises(ValueError, match="no batch norm with running statistics"):
        statistics.settings(how, build, X, Y, X if how == "re_estimated" else None)


def test_a_model_without_batch_norm_is_averaged():
    assert 0 <= run("averaged", build=GroupNormed).evaluations[-1]["accuracy"] <= 1


@pytest.mark.parametrize(
    "arguments, told",
    [
        (("local", with_batch_norm, X, Y), "how is 'local': want one of averaged, kept_local, re_estimated"),
        (("re_estimated", with_batch_norm, X, Y), "images: none"),
        (("re_estimated", with_batch_norm, X, Y, X[:1]), "images: 1"),
        (("averaged", with_batch_norm, X, Y, X), "images: 60"),
        (("kept_local", with_batch_norm, X, Y[:3]), "60 examples and 3 labels"),
    ],
)
def test_what_does_not_fit_is_named(arguments, told):
    with pytest.raises(ValueError, match=told):
        statistics.settings(*arguments)
