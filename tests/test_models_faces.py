import pytest
import torch
import torchvision.models as torchvision_models
from torch import nn

from fl_utils.models import face_networks, faces
from fl_utils.papers import published
from fl_utils.training import LocalTraining, Trainer

IDENTITIES = 10_575


def on_meta(name, **settings):
    with torch.device("meta"):
        return faces.build(name, IDENTITIES, **settings)


def weights_alone(model):
    """What Caffe's first blobs are in a network without batch normalisation."""
    kinds = (nn.Conv2d, nn.Linear, nn.PReLU)
    return sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, kinds))


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("alexnet", "alexnet-v2"),
        ("densenet121", "densenet-121"),
        ("inception_v3", "inception-v3"),
        ("resnet50", "resnet-50"),
        ("vgg16", "vgg-16"),
        ("vgg16_bn", "vgg-16-bn"),
    ],
)
def test_the_pytorch_column_of_table_2(name, row):
    assert f"{faces.parameters(name, IDENTITIES) / 1e6:.2f}" == published("F1")[f"parameters/{row}/pytorch"].value


@pytest.mark.parametrize(
    ("row", "name", "settings"),
    [
        ("alexnet-v1", "alexnet_v1", {}),
        ("googlenet", "googlenet", {"auxiliary": True}),
        ("vgg-16", "vgg16", {}),
        ("center-loss", "centerloss", {}),
        ("sphereface", "sphereface", {"size": (224, 224)}),
        ("lightcnn-29", "lightcnn9", {}),
    ],
)
def test_the_caffe_column_counts_no_biases(row, name, settings):
    told = published("F1")[f"parameters/{row}/caffe"].value
    assert f"{weights_alone(on_meta(name, **settings)) / 1e6:.2f}" == told


def test_sizes_by_hand():
    stages = [(3, 64, 1), (64, 128, 2), (128, 256, 4), (256, 512, 1)]  # Liu et al. 2017, table 2, 20 layers
    filters = sum(9 * (before * after + 2 * units * after**2) for before, after, units in stages)
    embedding, head = 512 * 7 * 6 * 512, 512 * IDENTITIES
    slopes = sum(after * (1 + 2 * units) for _, after, units in stages)
    assert weights_alone(on_meta("sphereface")) == filters + embedding + head + slopes
    # LightCNN-9's 5x5, then 1x1 and 3x3 of each group, each with twice the outputs it keeps.
    groups = [(48, 96), (96, 192), (192, 128), (128, 128)]
    filters = 25 * 96 + sum(2 * a * a + 18 * a * b for a, b in groups)
    assert weights_alone(on_meta("lightcnn9")) == filters + 128 * 64 * 512 + 256 * IDENTITIES
    # LightCNN-29 has ten residual units more.
    more = sum(36 * width**2 * units for width, units in ((48, 1), (96, 2), (192, 3), (128, 4)))
    assert weights_alone(on_meta("lightcnn29")) - weights_alone(on_meta("lightcnn9")) == more


def test_googlenet_is_the_published_one():
    model = faces.googlenet(1000)
    assert sum(p.numel() for p in model.parameters()) == 6_998_552  # Caffe's bvlc_googlenet, without auxiliary ones
    widths = [sum(w[i] for i in (1, 3, 5, 6)) for w in face_networks.INCEPTIONS.values()]
    assert widths == [256, 480, 512, 512, 512, 528, 832, 832, 1024]  # Szegedy et al. 2015, table 1, output size


@pytest.mark.parametrize(
    ("name", "original", "inside"),
    [
        ("alexnet", torchvision_models.alexnet, "classifier.6."),
        ("densenet121", torchvision_models.densenet121, "classifier."),
    ],
)
def test_torchvisions_weights_give_torchvisions_logits(name, original, inside):
    given = original(weights=None, num_classes=7).eval()
    model = faces.build(name, 7).eval()
    state = given.state_dict()
    head = {key.removeprefix(inside): state.pop(key) for key in list(state) if key.startswith(inside)}
    model.body.load_state_dict(dict(zip(model.body.state_dict(), state.values(), strict=True)))
    model.classifier.load_state_dict(head)
    images = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in faces.IMAGENET)
    with torch.inference_mode():
        torch.testing.assert_close(model(images), given((images / 255 - mean) / std))


@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn"])
def test_vgg_has_torchvisions_layers(name):
    with torch.device("meta"):
        given = getattr(torchvision_models, name)(weights=None, num_classes=7)
        model = faces.build(name, 7)
    assert [p.shape for p in model.parameters()] == [p.shape for p in given.parameters()]
    assert str(model.body[0]) == str(given.features)


@pytest.mark.parametrize(("name", "width"), [("vgg16", 4096), ("resnet50", 2048), ("inception_v3", 2048),
                                            ("densenet121", 1024), ("googlenet", 1024), ("googlenet_bn", 1024),
                                            ("alexnet_v1", 4096), ("lightcnn29", 256), ("centerloss", 512),
                                            ("sphereface", 512), ("iresnet50", 512)])  # fmt: skip
def test_features_are_the_penultimate_layer(name, width):
    size = {"lightcnn29": (128, 128), "iresnet50": (112, 112), "inception_v3": (299, 299), "alexnet_v1": (227, 227)}
    size = size.get(name, (112, 96) if name in ("centerloss", "sphereface") else (224, 224))
    with torch.device("meta"):
        model = faces.build(name, 9).eval()
        images = torch.empty(2, 3, *size, dtype=torch.uint8)
        assert model.features(images).shape == (2, width) and model(images).shape == (2, 9)
        assert model.classifier.in_features == width


def test_only_googlenet_and_inception_have_auxiliary_classifiers():
    with torch.device("meta"):
        model = faces.build("inception_v3", 9, auxiliary=True)
        images = torch.empty(2, 3, 299, 299)
        assert [logits.shape for logits in model.all_logits(images)] == [(2, 9), (2, 9)]
        assert len(model.eval().all_logits(images)) == 1
        model = faces.build("googlenet", 9, auxiliary=True)
        images = torch.empty(2, 3, 224, 224)
        assert [logits.shape for logits in model.all_logits(images)] == [(2, 9)] * 3
        assert model(images).shape == (2, 9)


@pytest.mark.parametrize("name", faces.SMALL_MODELS)
def test_grey_colour_and_float_images_are_one_and_the_same(name):
    torch.manual_seed(0)
    model = faces.small(name, 5, (40, 32)).eval()
    grey = torch.randint(0, 256, (2, 1, 40, 32), dtype=torch.uint8)
    with torch.inference_mode():
        found = model.features(grey)
        torch.testing.assert_close(model.features(grey.expand(-1, 3, -1, -1)), found, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(model.features(grey / 255), found)
        torch.testing.assert_close(model(grey), model.classifier(found))
    assert faces.small(name, 5, 48, channels=3)(grey.new_zeros(2, 1, 48, 48)).shape == (2, 5)


@pytest.mark.parametrize("name", faces.SMALL_MODELS)
def test_small_networks_learn(name):
    torch.manual_seed(0)
    patterns = torch.randint(0, 200, (4, 1, 32, 32))
    y = torch.arange(4).repeat(6)
    x = (patterns[y] + torch.randint(0, 56, (24, 1, 32, 32))).to(torch.uint8)
    trainer = Trainer(lambda: faces.small(name, 4, 32))
    epochs = 30 if name == "lightcnn" else 10  # it starts slowly
    losses = trainer.train(x, y, LocalTraining(epochs, 12, 0.003, optimizer="adam"), seed=1)
    assert losses[-1] < 0.6 * losses[0]


def test_settings_change_the_network():
    deeper = [faces.parameters("sphereface", 10, depth=depth) for depth in (4, 10, 20, 36, 64)]
    assert deeper == sorted(deeper)
    assert faces.parameters("vgg16", 10, width=32) < faces.parameters("vgg16", 10)
    assert faces.small("resnet10", 10, width=8).width == 64


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: faces.build("resnet", 3), "name is 'resnet': want one of alexnet_v1"),
        (lambda: faces.small("vgg16", 3), "name is 'vgg16': want one of alexnet, vgg"),
        (lambda: faces.build("resnet50", 0), "classes is 0"),
        (lambda: faces.build("resnet50", 3, depth=34), "a setting of resnet50 is 'depth': want one of"),
        (lambda: faces.build("sphereface", 3, depth=5), "depth is 5: want one of 4, 10, 20, 36, 64"),
        (lambda: faces.build("lightcnn29", 3, width=40), "width is 40: want a multiple of 3"),
        (lambda: faces.build("centerloss", 3, size=(40, 40)), "nothing is left"),
        (lambda: faces.build("vgg16", 3, channels=2), "channels is 2"),
        (lambda: faces.small("vgg", 3, 16), "at least 32 pixels"),
    ],
)
def test_bad_settings_are_named(call, says):
    with pytest.raises(ValueError, match=says), torch.device("meta"):
        call()


def test_bad_images_are_named():
    model = faces.small("resnet10", 3)
    for images, says in (
        (torch.zeros(2, 2, 48, 48), "2 channels: want 1"),
        (torch.zeros(1, 48, 48), "3 axes"),
        (torch.zeros(2, 1, 48, 48, dtype=torch.int64), "int64"),
    ):
        with pytest.raises(ValueError, match=says):
            model(images)
