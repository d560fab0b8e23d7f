import numpy as np
import pytest
import torch
from torch.nn import functional

from fl_utils import flat, metrics, training
from fl_utils.models.mobile import mobilenet_v2
from fl_utils.models.text import SentimentLSTM
from fl_utils.models.vision import random_flip
from fl_utils.training import LOSSES, LocalTraining, Trainer, client_seed
from small import examples, mlp, with_batch_norm

SETTINGS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.5, "weight_decay": 0.01},
    {"optimizer": "adam", "learning_rate": 0.01},
    {"optimizer": "adam", "learning_rate": 0.01, "weight_decay": 0.1, "clip_norm": 0.5},
    {"clip_norm": 0.3},
    {"batch_size": 0},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("build", [mlp, with_batch_norm])
def test_the_fast_path_equals_torch_optim_and_a_plain_loop(build, settings):
    local = LocalTraining(**{"local_epochs": 3, "batch_size": 8, "learning_rate": 0.1, **settings})
    x, y = examples(45)
    torch.manual_seed(1)
    trainer = Trainer(build)
    model = flat.load(build(), trainer.vector)

    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[local.optimizer]
    # Fused, alike to the bit: a bias before batch norm has gradients of rounding alone, which Adam makes steps of.
    extra = {"momentum": local.momentum} if local.optimizer == "sgd" else {"fused": True}
    optimizer = kind(model.parameters(), local.learning_rate, weight_decay=local.weight_decay, **extra)
    generator = torch.Generator().manual_seed(5)
    torch.manual_seed(5)
    slow_losses = []
    for _ in range(local.local_epochs):
        total = 0.0
        for batch in torch.randperm(45, generator=generator).split(local.batch_size or 45):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x[batch]), y[batch])
            loss.backward()
            if local.clip_norm:
                torch.nn.utils.clip_grad_norm_(model.parameters(), local.clip_norm)
            optimizer.step()
            total += loss.item() * len(batch)
        slow_losses.append(total / 45)

    losses = trainer.train(x, y, local, seed=5)
    torch.testing.assert_close(trainer.vector, flat.flatten(model), atol=1e-6, rtol=1e-6)
    assert losses == pytest.approx(slow_losses, abs=1e-6)


class Layouts(torch.nn.Module):
    """A convolution whose gradients lie channels last, and a parameter that no output depends on."""

    def __init__(self):
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 4, 3)
        self.unused = torch.nn.Parameter(torch.ones(5))

    def forward(self, x):
        return self.convolution(x.contiguous(memory_format=torch.channels_last)).mean((2, 3))


@pytest.mark.parametrize("settings", [each for each in SETTINGS if "batch_size" not in each], ids=str)
def test_any_layout_of_gradients_and_an_unused_parameter(settings):
    local = LocalTraining(**{"batch_size": 8, "learning_rate": 0.1, **settings})
    x, y = torch.randn(8, 3, 6, 5, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4
    trainer = Trainer(Layouts)
    model = flat.load(Layouts(), trainer.vector)
    for channels_last in (False, True):  # of the parameters too
        if channels_last:
            model.convolution.to(memory_format=torch.channels_last)
        parameters = list(model.parameters())
        kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[local.optimizer]
        extra = {"momentum": local.momentum} if local.optimizer == "sgd" else {}
        own = flat.load(Layouts(), flat.flatten(model))
        optimizer = kind(own.parameters(), local.learning_rate, weight_decay=local.weight_decay, **extra)
        step = training._stepper(parameters, local)
        for _ in range(3):
            functional.cross_entropy(own(x), y).backward()
            own.unused.grad = torch.zeros(5)  # torch.optim would leave it alone, decay and all
            if local.clip_norm:
                torch.nn.utils.clip_grad_norm_(own.parameters(), local.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            step(training.gradients(functional.cross_entropy(model(x), y), parameters))
        torch.testing.assert_close(flat.flatten(model), flat.flatten(own), atol=1e-6, rtol=1e-6)


def test_gradients_are_autograds_to_the_bit():
    model, (x, y) = with_batch_norm(), examples(20)
    parameters = [*model.parameters(), torch.zeros(3, requires_grad=True)]
    found = training.gradients(functional.cross_entropy(model(x), y), parameters)
    expected = torch.autograd.grad(functional.cross_entropy(model(x), y), parameters, materialize_grads=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    with pytest.raises(ValueError, match=r"the loss has the shape \(20,\): want one number"):
        training.gradients(functional.cross_entropy(model(x), y, reduction="none"), parameters)
    with pytest.raises(RuntimeError, match="does not require grad"):
        training.gradients(torch.ones(()), parameters)


def small_mobile() -> torch.nn.Module:
    return mobilenet_v2(3, "kuangliu", width=0.25, blocks=1)


@pytest.mark.parametrize("build", [with_batch_norm, small_mobile])
def test_a_model_that_moves_trains_on_in_its_new_vector(build):
    x, y = examples(24) if build is with_batch_norm else (torch.rand(8, 3, 16, 16), torch.arange(8) % 3)
    stays, moves = (_trainer(build) for _ in range(2))
    for trainer in (stays, moves):
        trainer.train(x, y, LocalTraining(batch_size=8), seed=1)
    old, new = moves.vector, torch.zeros(7 + len(moves.vector))[7:]
    kept = old.clone()
    moves.move(new)
    assert moves.vector is new
    new.copy_(kept)
    for trainer in (stays, moves):
        trainer.train(x, y, LocalTraining(batch_size=8), seed=2)
    assert torch.equal(new, stays.vector) and torch.equal(new, flat.flatten(moves.model))
    assert torch.equal(old, kept) and not torch.equal(new, kept)
    assert torch.equal(moves.outputs(x), stays.outputs(x))
    with pytest.raises(ValueError, match="this model's state is float32"):
        moves.move(torch.zeros(len(new) - 1))


def frozen_mlp() -> torch.nn.Module:
    model = mlp()
    model[0].weight.requires_grad_(False)
    return model


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("build", [mlp, with_batch_norm, frozen_mlp])
def test_a_training_begins_elsewhere_as_with_a_copy_of_it_and_only_reads_it(build, settings, monkeypatch):
    monkeypatch.setattr(training, "LARGE", 0)
    local, (x, y) = LocalTraining(**{"batch_size": 8, "learning_rate": 0.1, **settings}), examples(45)
    copies, begins = (_trainer(build) for _ in range(2))
    vector, start = begins.vector, torch.randn(len(begins.vector), generator=torch.Generator().manual_seed(7)).abs()
    kept = start.clone()
    for seed in (1, 2):
        copies.vector.copy_(start)
        expected = copies.train(x, y, local, seed)
        assert begins.train(x, y, local, seed, start) == expected
        assert begins.vector is vector and torch.equal(vector, copies.vector)
        assert torch.equal(vector, flat.flatten(begins.model)) and torch.equal(start, kept)
    assert begins.train(x, y, local, 3) == copies.train(x, y, local, 3)
    assert torch.equal(vector, copies.vector) and torch.equal(start, kept)


def test_whatever_ends_a_training_that_began_elsewhere_leaves_the_model_at_home(monkeypatch):
    monkeypatch.setattr(training, "LARGE", 0)
    trainer, (x, y) = _trainer(mlp), examples(20)
    vector, start = trainer.vector, torch.ones_like(trainer.vector)
    with pytest.raises(IndexError):
        trainer.train(x, y + 3, LocalTraining(), 0, start)
    trainer.vector.zero_()
    assert trainer.vector is vector and not flat.flatten(trainer.model).any() and start.all()
    monkeypatch.setattr(training.probe, "few", lambda batches, *_: ())  # all steps left out
    trainer.train(x, y, LocalTraining(), 0, start)
    assert trainer.vector is vector and flat.flatten(trainer.model).all()


def _trainer(build) -> Trainer:
    torch.manual_seed(4)
    return Trainer(build)


def test_training_leaves_the_global_generator_alone():
    trainer, (x, y) = Trainer(mlp), examples(20)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    trainer.train(x, y, LocalTraining(), seed=1)
    assert torch.equal(torch.rand(4), expected)


def test_frozen_parameters_stay():
    trainer, (x, y) = Trainer(frozen_mlp), examples(20)
    before = trainer.vector.clone()
    trainer.train(x, y, LocalTraining(weight_decay=0.1), seed=0)
    assert torch.equal(trainer.vector[:96], before[:96])
    assert not torch.equal(trainer.vector[96:], before[96:])


def test_evaluation_against_values_worked_out_by_hand():
    class Fixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return x

    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0], [2.0, 0.0], [0.0, 2.0]])
    scores = Trainer(Fixed).evaluate(logits, torch.tensor([0, 0, 1, 1, 1]), batch_size=2)
    assert scores.confusion == [[1, 1], [1, 2]]
    assert (scores.accuracy, scores.precision, scores.recall) == (0.6, pytest.approx(2 / 3), pytest.approx(2 / 3))
    right, wrong = np.log1p(np.exp(-2)), np.log1p(np.exp(2))
    assert scores.loss == pytest.approx((3 * right + 2 * wrong) / 5)
    binary = Trainer(Fixed).evaluate(logits[:, 1] - 1, torch.tensor([0, 0, 1, 1, 1]), loss="binary_cross_entropy")
    assert binary.confusion == scores.confusion
    assert binary.loss == pytest.approx((3 * np.log1p(np.exp(-1)) + 2 * np.log1p(np.exp(1))) / 5)


def test_macro_averages_and_a_class_never_predicted():
    scores = metrics.scores([0, 1, 2, 2], [0, 0, 1, 1], classes=4)
    assert scores.precision == pytest.approx((0.5 + 0 + 0 + 0) / 4)
    assert scores.recall == pytest.approx((1 + 0 + 0 + 0) / 4)
    assert len(scores.confusion) == 4
    with pytest.raises(ValueError, match="2 targets and 1 predictions"):
        metrics.scores([0, 1], [0], classes=2)
    with pytest.raises(ValueError, match="predictions lie from 0 to 2: want classes from 0 to 1"):
        metrics.scores([0, 1], [0, 2], classes=2)


@pytest.mark.parametrize("classes", [2, 3, 12])
def test_scores_are_scikit_learns(classes):
    from sklearn.metrics import confusion_matrix, precision_score, recall_score

    draw = np.random.default_rng(classes)
    targets, predictions = draw.integers(0, classes, (2, 40))
    predictions[predictions == 1] *= classes == 2  # with more classes, one that is never predicted
    how = {"average": "binary"} if classes == 2 else {"average": "macro", "labels": range(classes)}
    scores = metrics.scores(targets, predictions, classes)
    assert scores.precision == pytest.approx(precision_score(targets, predictions, zero_division=0, **how))
    assert scores.recall == pytest.approx(recall_score(targets, predictions, zero_division=0, **how))
    assert scores.confusion == confusion_matrix(targets, predictions, labels=range(classes)).tolist()


def test_the_lstm_reads_each_text_to_its_own_end():
    torch.manual_seed(0)
    model = SentimentLSTM(50, embedding=8, hidden=6).eval()
    long = torch.randint(1, 50, (1, 9))
    padded = torch.cat([long, torch.zeros(1, 5, dtype=torch.long)], 1)
    batch = torch.cat([padded, torch.randint(1, 50, (1, 14)), torch.zeros(1, 14, dtype=torch.long)])
    torch.testing.assert_close(model(batch)[:1], model(long))
    assert model(batch).shape == (3,)


def test_flips_mirror_about_half_and_only_mirror():
    images = torch.randint(0, 256, (400, 3, 4, 5), dtype=torch.uint8)
    flipped = random_flip(images, torch.Generator().manual_seed(0))
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    same = (flipped == images).flatten(1).all(1)
    assert (mirrored | same).all()
    assert 150 < mirrored.sum() < 250


def test_client_seeds_differ_and_depend_on_nothing_else():
    seeds = {client_seed(s, r, c) for s in range(4) for r in range(10) for c in range(50)}
    assert len(seeds) == 2000
    assert client_seed(1, 2, 3) == client_seed(1, 2, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"local_epochs": 0}, "local_epochs is 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"optimizer": "lion"}, "'sgd' or 'adam'"),
        ({"optimizer": "adam", "momentum": 0.9}, "belongs to 'sgd'"),
        ({"loss": "hinge"}, "'cross_entropy', 'binary_cross_entropy'"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        LocalTraining(**settings)


def test_no_examples_or_uneven_ones_are_refused():
    trainer, (x, y) = Trainer(mlp), examples(5)
    for xs, ys in [(x[:0], y[:0]), (x, y[:4])]:
        with pytest.raises(ValueError, match="examples and"):
            trainer.train(xs, ys, LocalTraining(), 0)
    assert set(LOSSES) == {"cross_entropy", "binary_cross_entropy", "masked_absolute"}


def test_a_missing_reading_counts_in_no_loss():
    outputs, targets = torch.tensor([[1.0, 5.0], [3.0, 4.0]]), torch.tensor([[2.0, 0.0], [float("nan"), 1.0]])
    assert LOSSES["masked_absolute"](outputs, targets) == pytest.approx((1 + 3) / 2)
    assert LOSSES["masked_absolute"](outputs, torch.zeros(2, 2)) == 0
    outputs.requires_grad_()
    LOSSES["masked_absolute"](outputs, targets).backward()
    assert outputs.grad.tolist() == [[-0.5, 0.0], [0.0, 0.5]]
