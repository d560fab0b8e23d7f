"""Differential privacy: the accountants' figures, the budget that cannot be exceeded, and the private step itself."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from fl_utils import federation, gradients, privacy
from fl_utils.aggregation import fedavg
from fl_utils.cohorts import FederationError, client_task
from fl_utils.models.mobile import mobilenet_v2
from fl_utils.models.private import (
    PixelWeights,
    PrivateSentimentLSTM,
    TinyCharacterCNN,
    WordWeights,
    from_twin,
    to_twin,
)
from fl_utils.models.text import SentimentLSTM
from fl_utils.models.vision import SmallCNN
from fl_utils.training import LOSSES, LocalTraining, Trainer, client_seed
from small import clients, plain_mlp, with_batch_norm

# A plan without the accountant: 30 examples, lots of 5, so 6 steps an epoch.
PLAN = privacy.Budget(30, 5, 2, 1 / 30, 1.5, 3.0)
SILENT = replace(PLAN, noise_multiplier=0.0)
LOCAL = LocalTraining(1, learning_rate=0.5)


def run(budgets=None, rounds=(1, 1), local=LOCAL, build=plain_mlp, parties=None, seed=3, **options):
    parties = clients((30,)) if parties is None else parties
    train = privacy.private_training(budgets or {0: PLAN}, rounds, seed, **{"clip_norm": 1.0, **options})
    return federation.run(build, parties, rounds=rounds, local=local, seed=seed, train=train)


# --- accounting


def test_budget_spends_what_it_was_asked_for_and_hardly_less():
    found = privacy.budget(400, 2.0, epochs=3)
    assert (found.lot_size, found.steps_per_epoch, found.steps, found.sample_rate) == (20, 20, 60, 0.05)
    assert found.delta == 1 / 400
    assert 0.99 * 2.0 <= found.epsilon <= 2.0
    assert found.epsilon_prv < found.epsilon  # PRV is the tighter of the two
    assert found.prv_error == ""


def test_rdp_epsilon_is_the_known_one_of_the_gaussian_mechanism():
    """At q = 1 Renyi DP is alpha T / (2 sigma^2), and epsilon its least value over the orders (Balle et al. 2020)."""
    plan = privacy.Budget(100, 100, 4, 1e-3, math.nan, math.nan)
    known = min(
        a * 4 / (2 * 5.0**2) - (math.log(1e-3) + math.log(a)) / (a - 1) + math.log((a - 1) / a) for a in privacy.ORDERS
    )
    assert privacy.spent(5.0, plan)["epsilon"] == pytest.approx(known, rel=1e-9)


def test_epsilon_falls_with_noise_and_grows_with_steps_and_lots():
    plan = privacy.Budget(1000, 30, 10, 1e-3, math.nan, math.nan)

    def epsilon(noise, plan=plan, steps=None):
        return privacy.spent(noise, plan, steps)["epsilon"]

    assert epsilon(2.0) < epsilon(1.0)
    assert epsilon(1.0, steps=10) < epsilon(1.0, steps=300)
    assert epsilon(1.0) < epsilon(1.0, replace(plan, lot_size=60), plan.steps)
    noises = [privacy.budget(1000, e, epochs=2, lot_size=1000).noise_multiplier for e in (0.05, 1.0)]
    assert noises[0] > 10 * noises[1] > 0


def test_prv_without_a_figure_says_why(monkeypatch):
    from opacus.accountants import PRVAccountant

    def too_much(*_, **__):
        raise MemoryError("grid of 10^12 cells")

    monkeypatch.setattr(PRVAccountant, "get_epsilon", too_much)
    found = privacy.spent(1.0, PLAN)
    assert found["epsilon_prv"] is None
    assert found["prv_error"] == "MemoryError: grid of 10^12 cells"
    assert math.isfinite(found["epsilon"])
    assert "would need too large a grid" in privacy.spent(0.01, PLAN)["prv_error"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epsilon": 0.0}, "epsilon is 0.0"),
        ({"epsilon": -1.0}, "epsilon is -1.0"),
        ({"epsilon": math.nan}, "epsilon is nan"),
        ({"epsilon": math.inf}, "epsilon is inf"),
        ({"epsilon": 1e-9, "num_examples": 10**6}, "no noise multiplier"),
        ({"delta": 1.0}, "delta is 1.0"),
        ({"delta": -0.1}, "delta is -0.1"),
        ({"delta": math.nan}, "delta is nan"),
        ({"num_examples": 1}, "N > 1"),
        ({"num_examples": 0}, "num_examples is 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"lot_size": 101}, "lot_size is 101: want 1 to N = 100"),
        ({"lot_size": -1}, "lot_size is -1"),
        ({"lot_size": 0.5}, "lot_size is 0.5"),
    ],
)
def test_wrong_budgets_are_one_clear_error(options, said):
    with pytest.raises(ValueError, match=said):
        privacy.budget(**{"num_examples": 100, "epsilon": 1.0, "epochs": 1, **options})


# --- engines


def small_cnn(norm: bool = False) -> nn.Module:
    groups = 2 if norm else 1
    middle = [nn.GroupNorm(2, 4)] if norm else []
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), *middle, nn.ReLU(), nn.Conv2d(4, 8, 3, padding="same", groups=groups),
        nn.Tanh(), nn.Flatten(), nn.Linear(128, 8), *([nn.LayerNorm(8)] if norm else []), nn.Linear(8, 5, bias=False),
    )  # fmt: skip


def texts(count: int, vocabulary: int = 30) -> torch.Tensor:
    tokens = torch.randint(1, vocabulary, (count, 6))
    tokens[:, 1] = tokens[:, 0]  # a word that comes twice
    for row in range(count):
        tokens[row, row % 7 :] = 0  # and padding, one text of nothing else
    return tokens


def problem(name: str):
    """A model in training mode, a criterion, eight inputs and their labels."""
    torch.manual_seed(0)
    if name in ("cnn", "group-norm cnn"):
        x, y, criterion = torch.randn(8, 1, 8, 8), torch.randint(0, 5, (8,)), LOSSES["cross_entropy"]
        model = small_cnn(norm=name != "cnn")
    else:
        x, y, criterion = texts(8), torch.randint(0, 2, (8,)), LOSSES["binary_cross_entropy"]
        if name == "long texts":
            x = x.repeat(1, 3)
        model = PrivateSentimentLSTM(30, 5, 6, 2, 0.0) if name == "lstm" else WordWeights(30)
    return model.train(), criterion, x, y


def obvious(model, criterion, x, y, clip):
    """The sum of clipped gradients as the paper writes it, one example after the other."""
    total = [torch.zeros_like(p) for p in model.parameters()]
    for index in range(len(x)):
        model.zero_grad()
        criterion(model(x[index : index + 1]), y[index : index + 1]).backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in grads))
        for target, gradient in zip(total, grads, strict=True):
            target += gradient * min(1.0, clip / norm if norm else 1.0)
    model.zero_grad()
    return total


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def clipped(model, criterion, x, y, clip, engine):
    total = [torch.zeros_like(p) for p in model.parameters()]
    with gradients.clipped_sums(model, criterion, clip, engine) as add:
        add(x, y, total)
    return flat(total)


@pytest.mark.parametrize("engine", [*gradients.ENGINES, "auto"])
@pytest.mark.parametrize("name", ["cnn", "group-norm cnn", "lstm", "words", "long texts"])
def test_engines_agree_with_one_example_at_a_time(name, engine):
    model, criterion, x, y = problem(name)
    before = {id(m): set(vars(m)) for m in model.modules()}
    for clip in (0.1, 1e6):  # everything is clipped, nothing is
        right = flat(obvious(model, criterion, x, y, clip))
        assert (clipped(model, criterion, x, y, clip, engine) - right).norm() <= 1e-5 * right.norm()
    # and the model is as it was
    assert all(not m._forward_hooks and not m._backward_hooks for m in model.modules())
    assert {id(m): set(vars(m)) for m in model.modules()} == before
    left = [name for p in model.parameters() for name in vars(p) if name != "_backward_hooks"]
    assert not left
    assert all(p.grad is None for p in model.parameters())


def phone_network(**options) -> nn.Module:
    """Group norm, activations that write into their inputs, images laid out channels last."""
    return mobilenet_v2(5, norm="group", dropout=0.0, **options)


@pytest.mark.parametrize("engine", [*gradients.ENGINES, "auto"])
def test_a_network_that_writes_into_inputs_and_lays_images_out_its_own_way(engine):
    torch.manual_seed(0)
    model, x, y = phone_network(width=0.25, blocks=1).train(), torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 4])
    before = [vars(m).copy() for m in model.modules()]
    assert any(own.get("inplace") for own in before)
    criterion = LOSSES["cross_entropy"]
    right = flat(obvious(model, criterion, x, y, 0.5))
    assert (clipped(model, criterion, x, y, 0.5, engine) - right).norm() <= 1e-5 * right.norm()
    kept = ("inplace", "channels_last")
    for own, module in zip(before, model.modules(), strict=True):
        assert {name: own.get(name) for name in kept} == {name: vars(module).get(name) for name in kept}
    assert model.channels_last


def opacus_sum(model, x, y, clip, mode):
    """The sum of clipped gradients as Opacus' own optimizer has it at zero noise."""
    from opacus import PrivacyEngine

    own = copy.deepcopy(model)
    own.channels_last = False  # Opacus follows neither these nor writing into inputs
    for module in own.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=len(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped, optimizer, _ = PrivacyEngine().make_private(
            module=own, optimizer=torch.optim.SGD(own.parameters(), lr=0.0), data_loader=data, noise_multiplier=0.0,
            max_grad_norm=clip, poisson_sampling=False, grad_sample_mode=mode,
        )  # fmt: skip
        LOSSES["cross_entropy"](wrapped(x), y).backward()
        optimizer.pre_step()
    return flat([parameter.grad for parameter in own.parameters()]) * len(x)


@pytest.mark.parametrize("mode", ["hooks", "functorch"])
@pytest.mark.parametrize("build", [partial(SmallCNN, 5, 32, 512), phone_network], ids=["CNN", "MobileNetV2"])
def test_the_automatic_choice_equals_opacus_at_zero_noise(build, mode):
    torch.manual_seed(0)
    model, y = build().train(), torch.tensor([0, 3, 1, 4])
    x = torch.rand(4, 3, 32, 32) if build is phone_network else torch.rand(4, 1, 28, 28) * 255
    criterion = LOSSES["cross_entropy"]
    ours, theirs = clipped(model, criterion, x, y, 0.5, "auto"), opacus_sum(model, x, y, 0.5, mode)
    assert gradients.choose(model) == "bookkeeping"
    assert (ours - theirs).abs().max() <= 1e-5
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.parametrize("engine", gradients.ENGINES)
def test_removing_an_example_moves_the_sum_by_at_most_the_bound(engine):
    model, criterion, x, y = problem("cnn")
    whole = clipped(model, criterion, x * 50, y, 0.3, engine)
    for out in (0, 5):
        rest = [index for index in range(8) if index != out]
        moved = (whole - clipped(model, criterion, x[rest] * 50, y[rest], 0.3, engine)).norm()
        assert 0.29 < moved <= 0.3 * (1 + 1e-5)


class Mixing(nn.Module):
    """Takes the batch's mean from each example: no batch norm by name, but no gradient per example either."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x):
        return self.linear(x - x.mean(0))


class Behind(nn.Module):
    """Uses a layer's weight without calling the layer a second time."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x):
        return torch.tanh(self.linear(x)) @ self.linear.weight


@pytest.mark.parametrize("engine", ["hooks", "ghost", "bookkeeping"])
@pytest.mark.parametrize("model", [Mixing, Behind])
def test_an_engine_that_would_be_wrong_is_found_out_before_it_is_used(model, engine):
    model, x, y = model().train(), torch.randn(4, 6), torch.tensor([0, 1, 2, 1])
    with pytest.raises(ValueError, match=f"engine '{engine}'"):
        clipped(model, LOSSES["cross_entropy"], x, y, 1.0, engine)
    if isinstance(model, Behind):
        clipped(model, LOSSES["cross_entropy"], x, y, 1.0, "vmap")


@pytest.mark.parametrize(
    ("errors", "accepted"),
    [((0.0,), True), ((0.01, 0.0), True), ((0.01, 0.01, 0.01), False), ((0.1, 0.0), False)],
)
def test_a_small_difference_is_looked_at_again_before_an_engine_is_refused(monkeypatch, errors, accepted):
    """As a unit makes it that rounding turns off: on some examples, not on all."""
    model, criterion, x, y = problem("cnn")
    tried, right = iter(errors), gradients._loop

    @contextmanager
    def slightly_wrong(*arguments):
        with right(*arguments) as loop:

            def add(x, y, total):
                loop(x, y, total)
                torch._foreach_mul_(total, 1 + next(tried, 0.0))

            yield add

    monkeypatch.setattr(gradients, "_bookkeeping", slightly_wrong)
    with nullcontext() if accepted else pytest.raises(ValueError, match=r"relative error 0\.[01]"):
        clipped(model, criterion, x, y, 1.0, "bookkeeping")
    assert next(tried, None) is None or not accepted


def test_what_has_no_gradient_per_example_is_refused_by_name():
    for model, said in [
        (with_batch_norm(), "'1' is BatchNorm1d.*use group norm"),
        (SentimentLSTM(10, 2, 2, 1), "'lstm' is LSTM.*PrivateSentimentLSTM"),
    ]:
        with pytest.raises(ValueError, match=said):
            gradients.check_model(model)
    model = plain_mlp()
    model.register_buffer("mean", torch.zeros(3))
    with pytest.raises(ValueError, match=r"\['mean'\]"):
        gradients.check_model(model)
    with pytest.raises(ValueError, match="engine is 'magic'"):
        privacy.private_training({}, [1], 0, clip_norm=1.0, engine="magic")


def test_the_lstm_twin_has_the_same_state_and_outputs():
    torch.manual_seed(1)
    plain, private = SentimentLSTM(30, 5, 6, 2).eval(), PrivateSentimentLSTM(30, 5, 6, 2).eval()
    private.load_state_dict(from_twin(plain.state_dict()))
    tokens = texts(20)
    torch.testing.assert_close(private(tokens), plain(tokens))
    with torch.no_grad():
        private.embedding.weight[0] = 7.0  # as noise would leave it
    before = private(tokens)
    plain.load_state_dict(to_twin(private.state_dict()))
    torch.testing.assert_close(before[1:7], plain(tokens)[1:7])  # those with a word at least


def test_small_models_give_one_output_per_example():
    assert WordWeights(30)(texts(7)).tolist() == [0.0] * 7
    assert PixelWeights(11, 17)(torch.zeros(2, 1, 17, 17, dtype=torch.uint8)).tolist() == [[0.0] * 11] * 2
    assert TinyCharacterCNN(11, 16)(torch.zeros(2, 1, 16, 16, dtype=torch.uint8)).shape == (2, 11)
    assert TinyCharacterCNN(11, 25, 3)(torch.zeros(2, 1, 25, 25, dtype=torch.uint8)).shape == (2, 11)


# --- the private step


def test_without_noise_and_clipping_full_lots_are_plain_gradient_descent():
    party = clients((30,))
    everybody = replace(SILENT, lot_size=30)
    ours = run({0: everybody}, parties=party, clip_norm=1e6)
    plain = federation.run(plain_mlp, party, rounds=[1, 1], local=replace(LOCAL, batch_size=0), seed=3)
    torch.testing.assert_close(ours.vector, plain.vector, rtol=1e-5, atol=1e-6)


def test_the_physical_batch_does_not_change_the_result():
    results = [run({0: SILENT}, physical_batch=size).vector for size in (1, 3, 256)]
    torch.testing.assert_close(results[0], results[2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(results[1], results[2], rtol=1e-5, atol=1e-6)
    assert not torch.equal(results[2], run({0: SILENT}, seed=4).vector)


def test_lots_are_drawn_by_poisson_sampling(monkeypatch):
    sizes = []

    def nothing(x, y, total):
        sizes.append(len(x))

    monkeypatch.setattr(gradients, "_bookkeeping", lambda *_: _given(nothing))
    many = privacy.Budget(30, 3, 100, 1 / 30, 1.0, 1.0)  # 1000 lots
    monkeypatch.setattr(gradients, "_try", lambda *_: None)
    run({0: many}, rounds=(100,))
    empty = many.steps - len(sizes)
    assert sum(sizes) / many.steps == pytest.approx(3.0, abs=0.2)  # binomial: standard error 0.05
    assert empty == pytest.approx(1000 * 0.9**30, abs=25)  # 42 expected, standard deviation 6
    assert len(set(sizes)) > 5


class _given:
    def __init__(self, value):
        self.value = value

    def __enter__(self):
        return self.value

    def __exit__(self, *_):
        return None


def test_noise_has_the_deviation_that_the_budget_pays_for():
    """Lots of (nearly) nobody: what moves the model is the noise, sigma * C / lot a step, also in empty lots."""
    plan = privacy.Budget(30, 1, 10, 1 / 30, 2.5, 1.0)

    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 500)
            nn.init.zeros_(self.layer.weight)

        def forward(self, x):
            return self.layer(x * 0)[:, :3] * 0  # no gradient but the noise

    found = run({0: plan}, rounds=(10,), build=Frozen, clip_norm=0.4, local=LocalTraining(1, learning_rate=1.0))
    steps, weights = 10 * 30, found.vector[:3000]
    assert weights.std().item() == pytest.approx(2.5 * 0.4 / 1 * math.sqrt(steps), rel=0.05)
    assert abs(weights.mean().item()) < 4 * weights.std().item() / math.sqrt(3000)


def test_runs_are_reproducible_and_draw_new_noise_every_round():
    same = [run().vector for _ in range(2)]
    assert torch.equal(*same)
    state = torch.random.get_rng_state()
    steps = []
    trainer = Trainer(plain_mlp)
    start = trainer.vector.clone()
    train = privacy.private_training({0: PLAN}, (1, 1), 3, clip_norm=1.0)
    for number in range(2):
        new, loss = client_task(plain_mlp, "cpu", train, LOCAL, 3, number, start, clients((30,))[0], trainer)
        steps.append(new.clone())
    assert math.isnan(loss)  # the loss of private examples is not released
    assert not torch.equal(*steps)
    assert state.numel() == torch.random.get_rng_state().numel()


def test_momentum_and_adam_are_post_processing():
    for local in (LocalTraining(1, momentum=0.9), LocalTraining(1, optimizer="adam", learning_rate=0.01)):
        assert torch.isfinite(run(local=local).vector).all()


def test_federated_parties_each_spend_their_own_budget_and_average_by_examples():
    parties = clients((30, 20))
    budgets = {0: PLAN, 1: replace(PLAN, num_examples=20, lot_size=4)}
    together = run(budgets, rounds=(2,), parties=parties).vector
    alone = [run(budgets, rounds=(2,), parties=[party]).vector for party in parties]
    torch.testing.assert_close(together, fedavg(alone, [30, 20]))


def test_a_run_beyond_the_budget_stops_before_it_trains():
    with pytest.raises(privacy.BudgetExceeded, match="budget for 2 epochs, and the rounds have 3"):
        privacy.private_training({0: PLAN}, (1, 1, 1), 3, clip_norm=1.0)
    train = privacy.private_training({0: PLAN}, (1, 1), 3, clip_norm=1.0)
    for options, said in [
        ({"rounds": 3}, "round 2: client 0 failed: BudgetExceeded"),
        ({"rounds": [2, 1]}, "round 0: client 0 failed: BudgetExceeded"),
        ({"rounds": 2, "seed": 4}, "round 0: client 0 failed: BudgetExceeded"),
        ({"rounds": 3, "on_failure": "skip"}, "round 2: no client"),
    ]:
        with pytest.raises(FederationError, match=said):
            federation.run(plain_mlp, clients((30,)), local=LOCAL, train=train, **{"seed": 3, **options})
    trainer = Trainer(plain_mlp)
    before = trainer.vector.clone()
    with pytest.raises(privacy.BudgetExceeded):
        train(trainer, clients((30,))[0], LOCAL, client_seed(3, 2, 0))
    assert torch.equal(trainer.vector, before)


def test_run_finds_each_client_its_budget():
    local = LocalTraining(batch_size=1)
    result, budgets = privacy.run(
        plain_mlp,
        clients((30, 20)),
        epsilon=5.0,
        epochs=3,
        average_interval=2,
        lot_multiple=0.5,
        local=local,
        clip_norm=1,
    )
    assert [len(result.rounds), budgets[0].lot_size, budgets[1].lot_size] == [2, 3, 2]
    assert [budgets[0].delta, budgets[1].delta] == [1 / 30, 1 / 20]
    assert all(own.epochs == 3 and own.epsilon <= 5.0 for own in budgets.values())
    for multiple in (0.05, 6.0, math.nan):
        with pytest.raises(ValueError, match=rf"a lot of {multiple} sqrt\(N\) with N = 30 records"):
            privacy.lot_of(30, multiple)


def test_clients_and_settings_that_do_not_fit_are_refused():
    for options, said in [
        ({"budgets": {1: PLAN}}, "client 0 has no budget"),
        ({"budgets": {0: replace(PLAN, num_examples=29)}}, "has 30 examples, its budget is for 29"),
        ({"local": replace(LOCAL, clip_norm=1.0)}, "sets clip_norm 1.0: want 0"),
        ({"build": with_batch_norm}, "BatchNorm1d"),
    ]:
        with pytest.raises(FederationError, match=said):
            run(**options)
    for options, said in [({"clip_norm": 0.0}, "clip_norm is 0.0"), ({"physical_batch": 0}, "physical_batch is 0")]:
        with pytest.raises(ValueError, match=said):
            run(**options)


def test_training_travels_and_belongs_to_the_checkpoint(tmp_path):
    train = privacy.private_training({0: PLAN}, (1, 1), 3, clip_norm=1.0)
    assert pickle.loads(pickle.dumps(train)).keywords == train.keywords
    file = tmp_path / "run.safetensors"
    go = partial(federation.run, plain_mlp, clients((30,)), rounds=2, local=LOCAL, seed=3, checkpoint=file)
    first = go(train=train)
    assert torch.equal(go(train=train).vector, first.vector)
    other = privacy.private_training({0: replace(PLAN, noise_multiplier=1.4)}, (1, 1), 3, clip_norm=1.0)
    with pytest.raises(ValueError, match="different: train"):
        go(train=other)
