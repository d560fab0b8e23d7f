import pytest
import torch

from fl_utils import two_class
from fl_utils.data import images, partition
from fl_utils.paths import ROOT

CATSDOGS = ROOT.parent / "shared" / "real"


@pytest.fixture(scope="module")
def digits() -> two_class.Task:
    return two_class.load("digits", "small_cnn", seed=3, pretrain_epochs=1)


def test_two_digits_split_two_to_one_with_nothing_in_both(digits):
    assert digits.names == ("3", "5")
    assert len(digits.train) + len(digits.test) == 1000
    assert digits.test.y.bincount().tolist() == [168, 168]
    assert len(partition.unseen(digits.train, digits.test)) == len(digits.train)


def test_the_network_was_pretrained_on_the_other_digits_and_its_last_layer_is_new(digits):
    torch.manual_seed(0)
    first, second = digits.build(), digits.build()
    assert first.classifier.weight.shape == (2, 64)
    for name, weights in first.features.state_dict().items():
        assert torch.equal(weights, second.features.state_dict()[name])
    assert not torch.equal(first.classifier.weight, second.classifier.weight)
    random = digits.build_random()
    assert not torch.equal(random.features[1].weight, first.features[1].weight)


def test_pretraining_is_a_function_of_the_seed_and_of_the_other_digits_alone():
    everything = images.load("digits")["mnist"]
    rest = everything.take((~torch.isin(everything.y, torch.tensor([3, 5]))).nonzero().squeeze(1).numpy())
    assert set(rest.y.tolist()) == {0, 1, 2, 4, 6, 7, 8, 9}
    small = rest.take(range(0, len(rest), 20))
    weights = [two_class._pretrain(small, 1, seed)["1.weight"] for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert two_class._pretrain(small, 0, 0) is None


def test_clients_hold_disjoint_equal_shares_of_both_classes(digits):
    clients = digits.clients(10, seed=1)
    assert [client.id for client in clients] == list(range(10))
    assert {tuple(client.y.bincount().tolist()) for client in clients} == {(33, 33)}
    everything = torch.cat([client.x for client in clients])
    assert len(set(partition.contents(everything))) == 660
    again = digits.clients(10, seed=1)
    assert all(torch.equal(a.x, b.x) for a, b in zip(clients, again, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "resnet"}, "want one of small_cnn, alexnet, mobilenet_v2"),
        ({"model": "alexnet"}, "want digits with small_cnn, or catsdogs with another"),
        ({"dataset": "mnist"}, "dataset 'mnist'"),
        ({"classes": (3, 3)}, "two different digits"),
        ({"classes": (3, 10)}, "two different digits"),
        ({"num_images": 5000, "pretrain_epochs": 0}, "class 0 has 500 images, 2500 are wanted"),
    ],
)
def test_what_does_not_fit_together_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        two_class.load(**{"dataset": "digits", "model": "small_cnn", "seed": 0, **arguments})


def test_more_submodels_than_images_of_a_class_are_refused(digits):
    with pytest.raises(ValueError, match="submodels is 400: the training set has 332 images of class '3'"):
        digits.clients(400, seed=0)


@pytest.mark.skipif(not (CATSDOGS / "catsdogs").exists(), reason="the real cats and dogs are not here")
def test_real_cats_and_dogs_train_one_step_of_each_large_network():
    from fl_utils.training import LocalTraining, Trainer

    for model in ("mobilenet_v2", "alexnet"):
        task = two_class.load(
            "catsdogs", model, seed=0, data_dir=str(CATSDOGS), image_size=64, num_images=12, test_share=0.34
        )
        assert task.names == ("cat", "dog")
        trainer = Trainer(task.build)
        before = trainer.vector.clone()
        (loss,) = trainer.train(task.train.x, task.train.y, LocalTraining(1, 4, 0.001), seed=0)
        assert loss > 0
        assert not torch.equal(before, trainer.vector)
