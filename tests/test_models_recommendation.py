"""Neural collaborative filtering: against its formula, cut and whole alike, and able to learn."""

import pytest
import torch
from torch.nn import functional

from fl_utils.models.recommendation import AuxiliaryBottom, NeuralCollaborativeFiltering, RatingBottom

SIZES = {"users": 6, "items": 5, "embedding": 3, "width": 4, "outputs": 7, "hidden": 2, "mean": 3.4}


def draw(rows=9, features=8):
    torch.manual_seed(0)
    pairs = torch.stack([torch.randint(SIZES["users"], (rows,)), torch.randint(SIZES["items"], (rows,))], 1)
    return pairs, torch.randn(rows, features)


@pytest.mark.parametrize("features", [0, 8])
def test_the_formula(features):
    pairs, x = draw()
    model = NeuralCollaborativeFiltering(features=features, **SIZES)
    found = model(pairs, x if features else None)
    bottom, top = model.bottom, model.top
    for row, (user, item) in enumerate(pairs):
        p, q = bottom.user.weight[user], bottom.item.weight[item]
        z = top.own.weight @ torch.cat([p[3:6], q[3:6]]) + top.own.bias
        if features:
            z = z + model.interactive.weight @ torch.tanh(
                model.auxiliary.linear.weight @ x[row] + model.auxiliary.linear.bias
            )
        deep = functional.elu(top.upper.weight @ functional.elu(z) + top.upper.bias)
        h = top.output.weight[0]
        expected = top.output.bias[0] + p[6] + q[6] + h[:3] @ (p[:3] * q[:3]) + h[3:] @ deep
        assert abs(found[row] - expected) < 1e-5


def test_it_begins_at_the_mean():
    pairs, _ = draw(200)
    assert abs(NeuralCollaborativeFiltering(**SIZES)(pairs).mean() - SIZES["mean"]) < 0.7


def test_the_parts_are_the_whole():
    pairs, x = draw()
    model = NeuralCollaborativeFiltering(features=8, **SIZES)
    parts = model.top(model.bottom(pairs), model.interactive(model.auxiliary(x)))
    assert torch.equal(parts, model(pairs, x))
    assert model.bottom(pairs).shape == (9, 1 + 3 * 3)


def test_activations_stay_within_what_is_encrypted():
    assert AuxiliaryBottom(8, 4)(1e6 * torch.randn(50, 8)).abs().max() <= 1


def test_features_are_given_where_they_are_wanted_and_only_there():
    pairs, x = draw()
    with pytest.raises(ValueError, match="without auxiliary features"):
        NeuralCollaborativeFiltering(**SIZES)(pairs, x)
    with pytest.raises(ValueError, match=r"no features: this network wants \[n, 8\]"):
        NeuralCollaborativeFiltering(features=8, **SIZES)(pairs)


def test_it_learns_what_only_the_features_say():
    torch.manual_seed(1)
    pairs, x = draw(256)
    y = 3 + torch.tanh(x[:, 0]) - torch.tanh(x[:, 1])
    errors = {}
    for features in (0, 8):
        model = NeuralCollaborativeFiltering(features=features, **SIZES)
        optimizer = torch.optim.Adam(model.parameters(), 0.02)
        for _ in range(150):
            loss = functional.mse_loss(model(pairs, x if features else None), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        errors[features] = loss.item()
    assert errors[8] < 0.1 * errors[0]


def test_every_user_and_item_has_a_place():
    bottom = RatingBottom(6, 5, 3)
    with pytest.raises(IndexError):
        bottom(torch.tensor([[6, 0]]))
