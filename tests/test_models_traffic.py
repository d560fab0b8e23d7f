"""DCRNN: diffusion against a slow formula, no weight that knows the graph, permutation, curriculum, learning."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from fl_utils import federation, flat
from fl_utils.cohorts import Client
from fl_utils.data import road_network
from fl_utils.models.traffic import DCRNN, DiffusionCell, Roads, diffuse, random_walks, teacher_share, train_on_roads
from fl_utils.training import LocalTraining, Trainer


def graph(sensors, seed=0):
    random = np.random.default_rng(seed)
    return (random.random((sensors, sensors)) * (random.random((sensors, sensors)) < 0.5)).astype(np.float32)


def roads(sensors, steps=2, seed=0):
    return Roads(random_walks(graph(sensors, seed), steps), 55.0, 12.0)


def stacked(walks):
    return walks.transpose(0, 1).reshape(-1, walks.shape[2])


def inputs(batch, sensors, length=12, seed=0):
    return torch.randn(batch, length, sensors, 2, generator=torch.Generator().manual_seed(seed))


def small(**changes):
    torch.manual_seed(0)
    return DCRNN(**{"units": 6, "layers": 2, "steps": 2, "horizon": 4, **changes})


def test_the_walks_are_the_powers_of_both_transition_matrices():
    weights = graph(5)
    weights[3] = 0  # nothing leads on from here
    walks = random_walks(weights, 3).double().numpy()
    wide = weights.astype(np.float64)
    out = np.array([[wide[i, j] / (wide[i].sum() or 1) for j in range(5)] for i in range(5)])
    into = np.array([[wide[j, i] / (wide[:, i].sum() or 1) for j in range(5)] for i in range(5)])
    wanted = [np.eye(5), out, out @ out, out @ out @ out, into, into @ into, into @ into @ into]
    assert np.allclose(walks, wanted, atol=1e-6)
    assert not walks[1][3].any()


def test_one_diffusion_convolution_equals_the_slow_formula():
    """Li et al. 2018, equation 2: the sum over walks and input values of theta times the walked signal, by loops."""
    torch.manual_seed(1)
    walks, cell = random_walks(graph(4), 2), DiffusionCell(3, 2, 2)
    x = torch.randn(2, 4, 3)
    fast = cell.taken(x, stacked(walks)).detach()
    theta = cell.input.detach().view(5, 3, 6)
    for b in range(2):
        for sensor in range(4):
            for q in range(6):
                slow = cell.bias[q].item()
                for m in range(5):
                    for p in range(3):
                        slow += float(theta[m, p, q]) * sum(float(walks[m, sensor, j] * x[b, j, p]) for j in range(4))
                assert math.isclose(float(fast[b, sensor, q]), slow, abs_tol=1e-5)


def test_a_step_of_the_cell_is_that_of_a_gated_unit():
    torch.manual_seed(2)
    walks, cell = stacked(random_walks(graph(4), 1)), DiffusionCell(2, 3, 1)
    x, state = torch.randn(5, 4, 2), torch.randn(5, 4, 3)

    def convolved(signal, weight):
        return diffuse(signal, walks).view(5, 4, -1) @ weight

    gates = torch.sigmoid(convolved(x, cell.input[:, :6]) + convolved(state, cell.gates) + 1)
    reset, update = gates[..., :3], gates[..., 3:]
    candidate = torch.tanh(convolved(x, cell.input[:, 6:]) + convolved(reset * state, cell.candidate))
    wanted = update * state + (1 - update) * candidate
    assert torch.allclose(cell(cell.taken(x, walks), state, walks), wanted, atol=1e-5)


def test_it_has_as_many_weights_as_the_authors():
    assert sum(parameter.numel() for parameter in DCRNN().parameters()) == 372_352


def test_no_weight_knows_the_graph():
    model, vectors = small(), []
    layout = flat.Layout.of(model)
    for sensors in (3, 7, 20):
        model.use(roads(sensors))
        assert flat.Layout.of(model) == layout and model(inputs(2, sensors)).shape == (2, 4, sensors)
        vectors.append(flat.flatten(model))
    assert all(torch.equal(vector, vectors[0]) for vector in vectors)
    assert layout.numel == layout.num_parameters + 1 and layout.names[-1] == "num_batches_tracked"


def test_renaming_the_sensors_renames_the_forecasts():
    model, order = small().eval(), torch.tensor([4, 0, 3, 1, 2])
    x, walks = inputs(3, 5), random_walks(graph(5), 2)
    plain = model.use(Roads(walks, 55.0, 12.0))(x)
    turned = model.use(Roads(random_walks(graph(5)[order][:, order], 2), 55.0, 12.0))(x[:, :, order])
    assert torch.allclose(turned, plain[:, :, order], atol=1e-4)
    assert not torch.allclose(turned, plain, atol=1e-2)


def test_neighbours_matter_and_strangers_do_not():
    weights = np.zeros((4, 4), np.float32)
    weights[0, 1] = weights[2, 3] = 1
    model = small(layers=1, steps=1).eval().use(Roads(random_walks(weights, 1), 0.0, 1.0))
    x = inputs(1, 4)
    changed = x.clone()
    changed[:, :, 1] += 1
    difference = (model(changed) - model(x)).abs().amax((0, 1))
    assert (difference[:2] > 1e-4).all() and (difference[2:] == 0).all()


def test_every_weight_gets_a_gradient():
    model = small().use(roads(5))
    loss = (model(inputs(3, 5, 16)) - 50).abs().mean()
    for name, gradient in zip(
        dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters())), strict=True
    ):
        assert gradient.abs().max() > 0, name


def test_a_forecast_does_not_look_at_the_truth():
    model, x = small(decay=1e6).eval().use(roads(5)), inputs(2, 5, 16)
    other = x.clone()
    other[:, 12:] = 9
    assert torch.equal(model(x), model(other)) and torch.equal(model(x), model(x[:, :12]))
    assert int(model.num_batches_tracked) == 0


def test_while_training_the_decoder_is_shown_the_truth_as_often_as_the_curriculum_says():
    x = inputs(2, 5, 16)
    other = x.clone()
    other[:, 12:] += 1
    always, never = small(decay=1e6).use(roads(5)), small(decay=0.0).use(roads(5))
    assert not torch.equal(always(x), always(other)) and torch.equal(always(x)[:, 0], always(other)[:, 0])
    assert torch.equal(never(x), never(other))
    assert int(always.num_batches_tracked) == 4 and int(never.num_batches_tracked) == 2
    assert torch.equal(always(x), small(decay=1e6).use(roads(5))(x))  # with the truth, the coins decide nothing


def test_the_share_of_truth_falls_from_almost_one_to_nothing():
    shares = [teacher_share(batches, 2000.0) for batches in (0, 10_000, 15_201, 30_000, 1e9)]
    assert shares[0] == 2000 / 2001 and math.isclose(shares[2], 0.5, abs_tol=1e-3) and shares[-1] < 1e-200
    assert shares == sorted(shares, reverse=True) and teacher_share(0, 0.0) == 0


@pytest.mark.parametrize(
    ("attempt", "error", "message"),
    [
        (lambda: small(units=0), ValueError, "units is 0"),
        (lambda: small(decay=-1.0), ValueError, "decay is -1"),
        (lambda: random_walks(np.ones((2, 3)), 1), ValueError, "want a square matrix"),
        (lambda: random_walks(np.ones((2, 2)), 0), ValueError, "steps is 0"),
        (lambda: Roads(torch.ones(3, 2, 2), 50.0, 0.0), ValueError, "std 0.0"),
        (lambda: small().use(roads(5, 1)), ValueError, "3 walks: a network of 2 steps wants 5"),
        (lambda: small()(inputs(2, 5)), RuntimeError, "no roads: call use"),
        (lambda: small().use(roads(5))(inputs(2, 6)), ValueError, "the graph has 5 sensors"),
        (lambda: small().use(roads(5))(inputs(2, 5, 11)), ValueError, r"want \[N, 12 \(\+ 4\), sensors, 2\]"),
    ],
)
def test_what_does_not_fit_is_said(attempt, error, message):
    with pytest.raises(error, match=message):
        attempt()


# training


@pytest.fixture(scope="module")
def parties():
    from fl_utils.forecasts import city

    return [city(name, road_network.simulate(name, 2, 3), stride=6, steps=1) for name in road_network.CITIES]


def build():
    return DCRNN(8, 1, 1, decay=3.0)


LOCAL = LocalTraining(1, 32, 0.01, optimizer="adam", clip_norm=5.0, loss="masked_absolute")


def test_two_epochs_lower_the_loss(parties):
    torch.manual_seed(0)
    trainer = Trainer(build)
    client = parties[0].client(0)
    trainer.model.use(parties[0].roads)
    before = (trainer.outputs(client.x[:, :12]) - client.y)[client.y > 0].abs().mean()
    losses = trainer.train(client.x, client.y, LOCAL.for_epochs(2), seed=1)
    after = (trainer.outputs(client.x[:, :12]) - client.y)[client.y > 0].abs().mean()
    assert losses[1] < losses[0] and after < 0.9 * before


def test_each_client_trains_on_its_own_roads_and_all_weights_are_averaged(parties):
    train = partial(train_on_roads, roads={id: place.roads for id, place in enumerate(parties)})
    clients = [place.client(id) for id, place in enumerate(parties)]
    result = federation.run(build, clients, rounds=1, local=LOCAL, train=train, seed=4)
    alone = [federation.run(build, [client], rounds=1, local=LOCAL, train=train, seed=4).vector for client in clients]
    share = [len(client) / sum(map(len, clients)) for client in clients]
    wanted = share[0] * alone[0] + share[1] * alone[1]
    assert torch.allclose(result.vector, wanted, atol=1e-6) and not torch.allclose(alone[0], alone[1], atol=1e-3)
    assert math.isclose(result.vector[-1], sum(s * math.ceil(len(c) / 32) for s, c in zip(share, clients, strict=True)))


def test_a_resumed_run_ends_where_an_unbroken_one_does(parties, tmp_path):
    train = partial(train_on_roads, roads={0: parties[0].roads})
    run = partial(federation.run, build, [parties[0].client(0)], local=LOCAL, train=train, seed=4)
    whole = run(rounds=2).vector
    run(rounds=1, checkpoint=tmp_path / "a")
    assert torch.equal(run(rounds=2, checkpoint=tmp_path / "a").vector, whole)
    other = partial(train_on_roads, roads={0: Roads(parties[0].roads.walks * 0.5, *(55.0, 12.0))})
    with pytest.raises(ValueError, match="train"):
        federation.run(
            build, [parties[0].client(0)], rounds=2, local=LOCAL, train=other, seed=4, checkpoint=tmp_path / "a"
        )


def test_a_client_without_roads_is_named(parties):
    client = Client(5, parties[0].client(0).x, parties[0].client(0).y)
    with pytest.raises(ValueError, match="client 5 has no roads: there are those of 0"):
        train_on_roads(Trainer(build), client, LOCAL, 0, {0: parties[0].roads})
