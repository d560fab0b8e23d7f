"""The paper's character network: its size, its layers, and its variant for differentially private training."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from fl_utils import flat
from fl_utils.models.characters import CharacterCNN
from fl_utils.training import LocalTraining, Trainer


def count(model: nn.Module, kind: type) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


def pictures(number: int, size: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (number, 1, size, size), dtype=torch.uint8, generator=torch.manual_seed(0))


def test_size_is_the_papers():
    """Hu et al. 2020, section 3.4: 11 units, 3-layer MLP; section 4.2: 55.3 MB of weights. They are MiB: 14.5 million
    floats are 58 million bytes. Ours are 55.24 with batch norm's statistics; the tolerance of 0.1 is the file's own
    book-keeping, which the paper does not state."""
    model = CharacterCNN()
    assert (count(model, nn.Conv2d), count(model, nn.Linear), count(model, nn.MaxPool2d)) == (11, 3, 4)
    assert sum(p.numel() for p in model.parameters()) == 14_472_235
    assert flat.Layout.of(model).numel * 4 / 2**20 == pytest.approx(55.3, abs=0.1)
    channels = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert channels == [64, 128, 128, 256, 256, 384, 384, 384, 512, 512, 512]
    assert [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)] == [
        (2048, 1024),
        (1024, 256),
        (256, 3755),
    ]


def test_initial_weights_are_the_authors():
    model = CharacterCNN(classes=2)
    last = [module for module in model.modules() if isinstance(module, nn.Conv2d)][-1]
    assert last.weight.std().item() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)


def test_batch_norm_has_the_authors_momentum():
    norms = [m for m in CharacterCNN(3, 0.1, 16).modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert len(norms) == 11 + 2 and {norm.momentum for norm in norms} == {0.66}


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("size", [8, 15, 24, 64])
def test_any_size_and_width(size, norm):
    model = CharacterCNN(5, 0.1, size, norm)
    assert model(pictures(3, size)).shape == (3, 5)
    assert count(model, nn.Conv2d) == 11


def test_a_last_batch_of_one_trains():
    trainer = Trainer(lambda: CharacterCNN(2, 0.1, 8))
    before = trainer.vector.clone()
    trainer.train(pictures(3, 8), torch.tensor([0, 1, 0]), LocalTraining(2, 2, 0.01), seed=0)
    assert trainer.vector.isfinite().all() and not torch.equal(before, trainer.vector)


def test_it_learns_to_tell_characters_apart():
    from fl_utils.data import drawn

    strokes = drawn.load("alphanumeric", 16, 2, 40)["strokes"]
    torch.manual_seed(0)
    trainer = Trainer(lambda: CharacterCNN(2, 0.1, 16))
    trainer.train(strokes.x, strokes.y, LocalTraining(6, 10, 0.003, optimizer="adam"), seed=0)
    assert (trainer.outputs(strokes.x).argmax(1) == strokes.y).float().mean() > 0.85


def test_group_norm_leaves_examples_alone():
    """One backward pass per example, by vmap, gives the gradients that each has alone; no module keeps state."""
    model = CharacterCNN(4, 0.1, 16, "group")
    assert not list(model.buffers())
    assert not any(getattr(module, "inplace", False) for module in model.modules())
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    x, y = pictures(3), torch.tensor([0, 3, 1])

    def loss(weights, image, label):
        return functional.cross_entropy(functional_call(model, weights, (image[None],)), label[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0))(weights, x, y)
    for index in range(3):
        alone = torch.autograd.grad(loss(dict(model.named_parameters()), x[index], y[index]), list(model.parameters()))
        for one, (name, many) in zip(alone, each.items(), strict=True):
            torch.testing.assert_close(many[index], one, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_opacus_accepts_group_norm():
    from opacus.validators import ModuleValidator

    assert ModuleValidator.validate(CharacterCNN(4, 0.1, 16, "group")) == []
    assert ModuleValidator.validate(CharacterCNN(4, 0.1, 16, "batch"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "layer"}, "norm is 'layer': want 'batch' or 'group'"),
        ({"classes": 0}, "classes is 0: want at least 1"),
        ({"image_size": 7}, "image_size is 7: want at least 8"),
        ({"width": 0.0}, "width is 0.0: want a number above 0"),
    ],
)
def test_impossible_networks_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        CharacterCNN(**{"classes": 3, **arguments})


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="images of 32x32 pixels: this network was built for image_size 64"):
        CharacterCNN(3, 0.1)(pictures(1, 32))
