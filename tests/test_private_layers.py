"""Federated averaging with layers that stay with their client."""

import pickle

import pytest
import torch
from torch import nn

from fl_utils import federation
from fl_utils.cohorts import Client, ClientDropped
from fl_utils.private_layers import PrivateLayers
from fl_utils.training import LocalTraining, Trainer, client_seed
from small import LOCAL, clients, examples, plain_mlp, with_batch_norm

HEAD = "6"  # the last layer of with_batch_norm
SIZES = (24, 16, 32)


def run(private, parties, rounds=3, build=with_batch_norm, local=LOCAL, **more):
    return federation.run(build, parties, rounds=rounds, local=local, seed=3, **{**private.settings, **more})


def two_of_three(size=24):
    """A client that knows the first two classes alone."""
    x, y = examples(200, seed=8)
    rows = (y < 2).nonzero().squeeze(1)[:size]
    return Client(7, x[rows], y[rows])


def test_it_is_the_obvious_loop_over_state_dictionaries():
    parties = clients(SIZES)
    private = PrivateLayers(with_batch_norm, parties, [HEAD])
    result = run(private, parties)

    torch.manual_seed(3)
    shared = {name: value.clone() for name, value in Trainer(with_batch_norm).model.state_dict().items()}
    heads = {p.id: {name: shared[name] for name in shared if name.startswith(HEAD)} for p in parties}
    for number in range(3):
        states = []
        for party in parties:
            trainer = Trainer(with_batch_norm)
            trainer.model.load_state_dict({**shared, **heads[party.id]})
            trainer.train(party.x, party.y, LOCAL, client_seed(3, number, party.id))
            states.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
            heads[party.id] = {name: states[-1][name] for name in heads[party.id]}
        for name in shared:
            weighted = [state[name] * size for state, size in zip(states, SIZES, strict=True)]
            shared[name] = sum(weighted) / sum(SIZES)

    trainer = Trainer(with_batch_norm)
    trainer.vector.copy_(result.vector)
    for name, value in trainer.model.state_dict().items():
        if not name.startswith(HEAD):
            torch.testing.assert_close(value, shared[name], msg=name)
    for party in parties:
        with private.of_client(trainer, party.id) as own:
            for name, value in heads[party.id].items():
                torch.testing.assert_close(own.model.state_dict()[name], value)
    assert private.numbers == 8 * 3 + 3


def test_no_head_is_sent():
    parties, seen = clients(SIZES), []
    private = PrivateLayers(with_batch_norm, parties, [HEAD])
    torch.manual_seed(3)
    first = Trainer(with_batch_norm).vector[private.where].clone()

    def watching(old, updates):
        vectors = [(vector.clone(), count) for vector, count in updates]
        seen.append([vector[private.where] for vector, _ in vectors])
        return private.combine(old, vectors)

    result = run(private, parties, rule=watching)
    for number, heads in enumerate(seen):
        wanted = first if number == 0 else torch.full_like(first, -float(number))
        assert len(heads) == 3 and all(torch.equal(head, wanted) for head in heads)
    assert (result.vector[private.where] == -3).all()
    assert len({tuple(own.tolist()) for own in private.of.values()}) == 3


def test_rows_of_nobody_are_out_of_the_loss():
    """Two people under a head of three rows train as under a head of two."""
    party = two_of_three()
    private = PrivateLayers(plain_mlp, [party], ["2"])
    result = run(private, [party], rounds=1, build=plain_mlp)

    torch.manual_seed(3)
    begun = plain_mlp()
    small = Trainer(lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2)))
    with torch.no_grad():
        small.model[0].load_state_dict(begun[0].state_dict())
        small.model[2].weight.copy_(begun[2].weight[:2])
        small.model[2].bias.copy_(begun[2].bias[:2])
    small.train(party.x, party.y, LOCAL, client_seed(3, 0, 7))

    trainer = Trainer(plain_mlp)
    trainer.vector.copy_(result.vector)
    torch.testing.assert_close(trainer.model[0].weight, small.model[0].weight)
    with private.of_client(trainer, 7) as own:
        torch.testing.assert_close(own.model[2].weight[:2], small.model[2].weight)
        assert torch.equal(own.model[2].weight[2], begun[2].weight[2])
        outputs = own.outputs(party.x)
        torch.testing.assert_close(outputs[:, :2], small.outputs(party.x))
        assert (outputs[:, 2] == -torch.inf).all()
    assert torch.isfinite(trainer.outputs(party.x)).all()


def test_heads_learn_what_an_average_of_heads_cannot():
    """Two parties call the same three classes by different numbers."""
    x, y = examples(240, seed=1)
    parties = [Client(0, x[:120], y[:120]), Client(1, x[120:], (y[120:] + 1) % 3)]
    private = PrivateLayers(plain_mlp, parties, ["2"])
    local = LocalTraining(5, 8, 0.1)
    trainer = Trainer(plain_mlp)
    trainer.vector.copy_(run(private, parties, 4, plain_mlp, local).vector)
    for party in parties:
        with private.of_client(trainer, party.id):
            assert trainer.evaluate(party.x, party.y).accuracy > 0.9
    trainer.vector.copy_(federation.run(plain_mlp, parties, rounds=4, local=local, seed=3).vector)
    assert min(trainer.evaluate(party.x, party.y).accuracy for party in parties) < 0.7


def test_a_client_drawn_late_begins_with_the_first_state():
    parties = clients((16,) * 6)
    private = PrivateLayers(plain_mlp, parties, ["2"])
    begun = {}

    def train(trainer, client, local, seed):
        begun.setdefault(client.id, trainer.vector[private.where].clone())
        return federation.train_locally(trainer, client, local, seed)

    private.inner = train
    run(private, parties, 4, plain_mlp, client_fraction=0.34)
    torch.manual_seed(3)
    first = Trainer(plain_mlp).vector[private.where]
    assert len(begun) > 2 and all(torch.equal(head, first) for head in begun.values())


def test_a_client_that_drops_out_keeps_the_head_it_had():
    parties = clients(SIZES)
    calls = []

    def train(trainer, client, local, seed):
        calls.append(client.id)
        loss = federation.train_locally(trainer, client, local, seed)
        if calls.count(1) == 2 and client.id == 1:
            raise ClientDropped
        if calls.count(2) == 2 and client.id == 2:
            trainer.vector.fill_(float("nan"))
        return loss

    private = PrivateLayers(with_batch_norm, parties, [HEAD], train=train)
    kept = []
    result = run(private, parties, 2, on_failure="skip", progress=lambda _: kept.append(dict(private.of)))
    assert set(result.rounds[1].left_out) == {1, 2}
    for id in (1, 2):
        assert torch.equal(kept[0][id], kept[1][id])
    assert not torch.equal(kept[0][0], kept[1][0])


def test_a_run_resumed_without_the_heads_is_refused(tmp_path):
    parties, file = clients(SIZES), tmp_path / "state"
    run(PrivateLayers(with_batch_norm, parties, [HEAD]), parties, 1, checkpoint=file)
    with pytest.raises(federation.FederationError, match="after 1 rounds, but private layers were kept for 0"):
        run(PrivateLayers(with_batch_norm, parties, [HEAD]), parties, 2, checkpoint=file)


def test_one_object_serves_one_run():
    parties = clients(SIZES)
    private = PrivateLayers(with_batch_norm, parties, [HEAD])
    run(private, parties, 1)
    with pytest.raises(federation.FederationError, match="each run needs a new PrivateLayers"):
        run(private, parties, 1)


def test_other_processes_are_refused():
    private = PrivateLayers(with_batch_norm, clients(SIZES), [HEAD])
    for part in private.settings.values():
        with pytest.raises(TypeError, match="without an executor"):
            pickle.dumps(part)


def test_another_loss_cannot_be_masked():
    party = two_of_three()
    with pytest.raises(federation.FederationError, match="2 identities of 3: rows are masked out of 'cross_entropy'"):
        run(
            PrivateLayers(plain_mlp, [party], ["2"]), [party], 1, plain_mlp, LocalTraining(1, 8, loss="masked_absolute")
        )


@pytest.mark.parametrize(
    "layers, told",
    [
        (["head"], "Sequential has no 'head'; it has 0, 1, 2"),
        ("2", "want a list of names"),
        ([], "want a list of names"),
        (["0", "2"], "nothing would be averaged"),
    ],
)
def test_layers_that_do_not_fit_are_named(layers, told):
    with pytest.raises(ValueError, match=told):
        PrivateLayers(plain_mlp, clients(SIZES), layers)


def test_labels_beyond_the_head_are_named():
    x, y = examples(10)
    for labels, told in ((y + 3, r"client 4 has labels 3 \.\. 5, the model 3 outputs"), (y - 1, r"labels -1 \.\. 1")):
        with pytest.raises(ValueError, match=told):
            PrivateLayers(plain_mlp, [Client(4, x, labels)], ["2"])


def test_clients_without_layers_of_their_own_are_named():
    parties = clients(SIZES)
    private = PrivateLayers(plain_mlp, parties, ["2"])
    with pytest.raises(ValueError, match="client 0 has no layers of its own yet"), private.of_client(None, 0):
        pass
    with pytest.raises(federation.FederationError, match=r"client 3 is not one of \[0, 1, 2\]"):
        run(private, clients((8, 8, 8, 8)), 1, plain_mlp)
