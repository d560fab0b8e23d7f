"""Tables 11 and 12 and section 4.1 of Wang and Guo 2019: distributions, pixels and batches, and today's libraries."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchvision.models as zoo
from torch import nn
from torch.nn import functional

from fl_utils import framework_defaults as defaults
from fl_utils.framework_defaults import FRAMEWORKS, INITIALISATION, NETWORKS, PREPROCESSING, epoch, fans, prepare
from fl_utils.other_frameworks import crops
from fl_utils.papers import published

CONVOLUTION, DENSE = (96, 64, 3, 3), (400, 500)


def drawn(network, framework, seed=0, **settings):
    """The weights of two convolutions and two linear layers, freshly drawn."""
    torch.manual_seed(99)
    model = nn.Sequential(nn.Conv2d(64, 96, 3), nn.Conv2d(64, 96, 3), nn.Linear(500, 400), nn.BatchNorm1d(3))
    defaults.initialise(model, network, framework, seed, **settings)
    return model


@pytest.mark.parametrize(("network", "framework"), INITIALISATION)
def test_weights_have_the_distribution_of_table_12(network, framework):
    """Mean, standard deviation, extremes and a quantile of 55,296 and of 200,000 weights."""
    model, rules = drawn(network, framework), INITIALISATION[network, framework]
    first = rules.first or rules.convolution
    for layer, rule in ((model[0], first), (model[1], rules.convolution), (model[2], rules.dense or rules.convolution)):
        weight, shape = layer.weight.detach().flatten(), tuple(layer.weight.shape)
        scale, n = rule.scale(shape), layer.weight.numel()
        std = scale / math.sqrt(3) if rule.kind == "uniform" else scale
        assert abs(weight.mean()) < 5 * std / math.sqrt(n)
        assert weight.std() == pytest.approx(std, rel=5 / math.sqrt(n))
        inside = 0.5 if rule.kind == "uniform" else 0.3829249  # within half of the scale
        assert (weight.abs() < scale / 2).double().mean() == pytest.approx(inside, abs=5 / math.sqrt(n))
        if rule.kind == "uniform":
            assert 0.999 * scale < weight.abs().max() <= scale
        else:
            assert weight.abs().max() > 3.5 * scale
        assert not layer.bias.any()


def test_table_12_as_printed_is_what_the_code_says():
    paper = published("F4")
    for (network, framework), rules in INITIALISATION.items():
        convolution = str(rules.convolution)
        if rules.first:
            convolution = f"input: {rules.first}; others: {convolution}"
        assert convolution == paper[f"initialisation/{network}/{framework}/convolutional"].value
        dense = str(rules.dense) if rules.dense else "-"
        assert dense == paper[f"initialisation/{network}/{framework}/fully_connected"].value
    assert len(INITIALISATION) == len(NETWORKS) * len(FRAMEWORKS)


def test_the_fans_and_the_caption_s_third_kernel_size():
    assert fans((8, 3, 5, 5)) == (75, 200)
    assert fans((8, 3, 5, 5), printed=True) == (375, 200)
    assert fans((10, 20), printed=True) == fans((10, 20)) == (20, 10)
    weight = torch.empty(8, 3, 5, 5)
    assert nn.init._calculate_fan_in_and_fan_out(weight) == fans(weight.shape)
    with pytest.raises(ValueError, match=r"weight has shape \[3\]"):
        fans((3,))


def test_a_truncated_weight_stays_within_2_and_takes_the_layer_s_own_deviation():
    model = nn.Sequential(nn.Conv2d(64, 64, 3))
    model[0].stddev = 1.5
    defaults.initialise(model, "inception-v3", "pytorch", 0)
    weight = model[0].weight.detach()
    assert 1.99 < weight.abs().max() <= 2
    cut = 2 / 1.5
    density, inside = math.exp(-(cut**2) / 2) / math.sqrt(2 * math.pi), math.erf(cut / math.sqrt(2))
    assert weight.std() == pytest.approx(1.5 * math.sqrt(1 - 2 * cut * density / inside), rel=0.02)


def test_a_dense_layer_that_is_a_convolution_there_has_that_one_s_fan_out():
    """TensorFlow's first dense layer of VGG-16 is a 7 x 7 convolution: fan_out has 49 places."""
    for kernels, fan_out in (({}, 100), ({"0": 7}, 4900)):
        model = nn.Sequential(nn.Linear(64 * 49, 100))
        defaults.initialise(model, "vgg-16", "tensorflow", 0, kernels)
        bound = math.sqrt(6 / (64 * 49 + fan_out))
        assert 0.999 * bound < model[0].weight.abs().max() <= bound
    with pytest.raises(ValueError, match="'1', which is no linear layer"):
        defaults.initialise(model, "vgg-16", "tensorflow", 0, {"1": 7})
    with pytest.raises(ValueError, match="0 has 3136 inputs: no convolution of 5 x 5"):
        defaults.initialise(model, "vgg-16", "tensorflow", 0, {"0": 5})


def test_the_same_seed_draws_the_same_and_norms_are_left_alone():
    one, same, other = (drawn("vgg-16", "caffe", seed) for seed in (1, 1, 2))
    assert torch.equal(one[0].weight, same[0].weight)
    assert not torch.equal(one[0].weight, other[0].weight)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model[1].weight.data.fill_(7.0)
    defaults.initialise(model, "resnet-50", "caffe", 0)
    assert (model[1].weight == 7).all()


@pytest.mark.parametrize(
    ("network", "build"),
    [("resnet-50", zoo.resnet50), ("densenet-121", zoo.densenet121)],
)
def test_torchvision_begins_residual_and_dense_networks_so_today(network, build):
    """ResNet-50: fan_out; DenseNet-121: fan_in; their last layer: PyTorch's own for linear layers."""
    model, rules = build(weights=None), INITIALISATION[network, "pytorch"]
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 50_000:
            assert layer.weight.std().item() == pytest.approx(rules.convolution.std(layer.weight.shape), rel=0.02)
        if isinstance(layer, nn.Linear):
            assert layer.weight.abs().max().item() == pytest.approx(rules.dense.scale(layer.weight.shape), rel=1e-3)


def test_torchvision_begins_vgg_s_linear_layers_otherwise_than_table_12(monkeypatch):
    """Convolutions as printed; linear layers N(0, 0.01), where the table has PyTorch's own. (On no memory at all.)"""
    calls = []
    monkeypatch.setattr(nn.init, "normal_", lambda weight, mean, std: calls.append((tuple(weight.shape), mean, std)))
    monkeypatch.setattr(nn.init, "kaiming_normal_", lambda weight, **how: calls.append((tuple(weight.shape), how)))
    with torch.device("meta"):
        zoo.vgg16(weights=None, num_classes=10)
    assert ((512, 512, 3, 3), {"mode": "fan_out", "nonlinearity": "relu"}) in calls
    assert [call[0] for call in calls[-3:]] == [(4096, 25088), (4096, 4096), (10, 4096)]
    assert {call[1:] for call in calls[-3:]} == {(0, 0.01)}
    assert str(INITIALISATION["vgg-16", "pytorch"].convolution) == "N(0, sqrt(2/fan_out))"


def test_torchvision_s_inception_has_deviation_01_in_its_linear_layer_too():
    model = zoo.inception_v3(weights=None, init_weights=True, aux_logits=False)
    assert model.Mixed_7c.branch3x3_1.conv.weight.std().item() == pytest.approx(0.1, rel=0.02)
    assert model.fc.weight.std().item() == pytest.approx(0.1, rel=0.02)  # Table 12: uniform, 0.022
    assert INITIALISATION["inception-v3", "pytorch"].dense.scale((1000, 2048)) == pytest.approx(0.0221, rel=1e-2)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: defaults.initialise(nn.Linear(2, 2), "vgg", "caffe", 0), "network is 'vgg'"),
        (lambda: defaults.initialise(nn.Linear(2, 2), "vgg-16", "theano", 0), "framework 'theano'"),
        (lambda: defaults.initialise(nn.ReLU(), "vgg-16", "caffe", 0), "a ReLU without convolutions"),
        (lambda: prepare(torch.zeros(1, 3, 8, 8), "vgg-16", "caffe", 7), r"images are torch.float32 \[1, 3, 8, 8\]"),
        (lambda: prepare(picture(2, 8), "vgg-16", "caffe", 7), r"torch.uint8 \[1, 2, 8, 8\]"),
        (lambda: prepare(picture(3, 8), "vgg-16", "caffe", 0), "size is 0"),
        (lambda: prepare(picture(3, 8), "lightcnn-29", "pytorch", 7), "network is 'lightcnn-29'"),
        (lambda: list(epoch([1, 2], 0, "caffe")), "batch_size is 0"),
        (lambda: list(epoch([], 2, "caffe")), r"order has shape \[0\]"),
        (lambda: list(epoch([1, 2], 3, "tensorflow")), "2 examples, batch_size 3: TensorFlow drops them all"),
        (lambda: list(epoch([1, 2], 3, "mxnet")), "framework is 'mxnet'"),
    ],
)
def test_what_the_tables_do_not_have_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def picture(channels=3, side=8, value=None, n=1):
    if value is not None:
        return torch.tensor(value, dtype=torch.uint8).reshape(1, -1, 1, 1).expand(n, -1, side, side).contiguous()
    return torch.randint(256, (n, channels, side, side), generator=torch.Generator().manual_seed(3)).to(torch.uint8)


@pytest.mark.parametrize(
    ("network", "framework", "wanted"),
    [  # red 200, green 100, blue 0
        ("vgg-16", "pytorch", [(200 / 255 - 0.485) / 0.229, (100 / 255 - 0.456) / 0.224, -0.406 / 0.225]),
        ("densenet-121", "tensorflow", [76.32, -16.779, -103.939]),
        ("inception-v3", "tensorflow", [400 / 255 - 1, 200 / 255 - 1, -1]),
        ("inception-v3", "caffe", [-87.1 / 255, -2.7 / 255, 65.4 / 255]),
        ("lightcnn-29", "caffe", [-87.1 / 255, -2.7 / 255, 65.4 / 255]),
    ],
)
def test_a_colour_becomes_what_table_11_makes_of_it(network, framework, wanted):
    x = prepare(picture(value=[200, 100, 0]), network, framework, 7)
    assert x.dtype == torch.float32
    assert x.shape == (1, 3, 7, 7)
    assert torch.allclose(x[0], torch.tensor(wanted)[:, None, None].expand(3, 7, 7), atol=1e-5)


def test_lightcnn_trains_with_other_constants_than_it_is_evaluated_with():
    x = prepare(picture(value=[255, 0, 127]), "lightcnn-29", "caffe", 7, torch.Generator().manual_seed(0))
    assert torch.allclose(x[0, :, 0, 0], torch.tensor([-0.5 / 127.5, -1.0, 1.0]), atol=1e-6)


def test_constants_are_the_printed_ones():
    paper = published("F4")
    for row, (training, evaluation) in PREPROCESSING.items():
        for when, recipe in (("training", training), ("evaluation", evaluation)):
            for channel, mean, std in zip(recipe.order, recipe.mean, recipe.std, strict=True):
                colour = {"R": "red", "G": "green", "B": "blue"}[channel]
                for kind, ours in (("mean", mean), ("std", std)):
                    if cell := paper.get(f"preprocessing/{row}/{when}/{kind}/{colour}"):
                        assert cell.number == ours
            steps = paper.get(f"preprocessing/{row}/{when}/steps")
            if steps:
                assert ("flip" in steps.value, "BGR" in steps.value, "distort colours" in steps.value) == (
                    recipe.flip,
                    recipe.order == "BGR",
                    recipe.colours,
                )


def test_for_evaluation_the_middle_is_cut_out():
    """8 x 8 pictures, crops of 7: of an odd rest the upper left is taken; nothing is scaled."""
    images = picture(side=8)
    for framework in FRAMEWORKS:
        recipe = PREPROCESSING[defaults.group("vgg-16", framework)][1]
        x = prepare(images, "vgg-16", framework, 7)
        back = (x * torch.tensor(recipe.std)[:, None, None] + torch.tensor(recipe.mean)[:, None, None]) * recipe.full
        back = back.flip(1) if framework == "caffe" else back
        assert torch.allclose(back, images[:, :, :7, :7].float(), atol=1e-3)


def test_sides_are_scaled_as_the_framework_does_it():
    """24 x 16 pictures for 7: TensorFlow keeps the shape (12 x 8), Caffe makes 8 x 8 of it."""
    columns = torch.arange(16).mul(10).to(torch.uint8).expand(1, 3, 24, 16).contiguous()
    rows = torch.arange(24).mul(10).to(torch.uint8)[:, None].expand(1, 3, 24, 16).contiguous()
    mean = torch.tensor(PREPROCESSING["tensorflow/vgg-style"][1].mean)[:, None, None]
    for images, start, step in ((columns, 5, 20), (rows, 45, 20)):
        x = prepare(images, "vgg-16", "tensorflow", 7)[0] + mean
        line = x[0, 3] if images is columns else x[0, :, 3]
        inner = start + step * torch.arange(7.0)
        assert torch.allclose(line[1:6], inner[1:6], atol=1e-3)
    for seed in range(3):
        x = prepare(rows, "vgg-16", "caffe", 7, torch.Generator().manual_seed(seed))[0, 0, :, 3] * 255 + 87.1
        assert torch.allclose(x[2:5].diff(), torch.full((2,), 30.0), atol=1e-2)  # 24 rows on 8


def test_training_crops_are_places_and_flips_of_the_picture():
    """An 8 x 8 picture has four places of 7 x 7, each upright or mirrored: all eight come, and nothing else."""
    image = picture(side=8)
    x = prepare(image.expand(400, -1, -1, -1), "resnet-50", "tensorflow", 7, torch.Generator().manual_seed(1))
    x = x + torch.tensor(PREPROCESSING["tensorflow/vgg-style"][0].mean)[:, None, None]
    possible = [image[0, :, i : i + 7, j : j + 7].float() for i in (0, 1) for j in (0, 1)]
    possible += [each.flip(2) for each in possible]
    found = torch.stack([((x - each).abs().amax((1, 2, 3)) < 1e-3) for each in possible])
    assert (found.sum(0) == 1).all()
    counts = found.sum(1)
    assert counts.min() > 25  # 50 expected, standard deviation 6.6
    assert counts.max() < 80


def test_a_box_is_cut_out_and_interpolated():
    images = picture(side=12, n=3).float()
    top, left, high, wide = (
        torch.tensor(v, dtype=torch.float32) for v in ([0, 2, 5], [1, 0, 4], [12, 4, 7], [6, 12, 3])
    )
    x = crops.sampled(images, top, left, high, wide, 5)
    for n in range(3):
        t, f, h, w = (int(v[n]) for v in (top, left, high, wide))
        cut = images[n : n + 1, :, t : t + h, f : f + w]
        wanted = functional.interpolate(cut, size=(5, 5), mode="bilinear", align_corners=False)
        assert torch.allclose(x[n : n + 1], wanted, atol=1e-3)


def test_random_boxes_have_the_areas_and_shapes_asked_for():
    """Coordinates as pixels: their range in a crop tells the box. Areas from 8 to 100 %, 3:4 to 4:3, all inside."""
    ramp = torch.arange(64.0)
    images = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64), torch.zeros(64, 64)]).expand(
        800, -1, -1, -1
    )
    x = crops.boxes(images, 64, 0.08, torch.Generator().manual_seed(0))
    wide, high = (x[:, c].amax((1, 2)) - x[:, c].amin((1, 2)) + 1 for c in (0, 1))
    share, ratio = wide * high / 64**2, wide / high
    assert x.min() > -1e-3
    assert x.max() < 63.001
    assert 0.075 < share.min() < 0.12
    assert share.max() > 0.9
    assert ratio.min() > 0.7  # rounding to whole pixels widens 3:4 a little
    assert ratio.max() < 1.43
    assert 0.4 < share.mean() < 0.54  # evenly drawn; the largest fit less often


def test_colours_change_in_inception_s_training_alone_and_stay_in_range():
    grey = picture(value=[100, 150, 200], n=64)
    x = prepare(grey, "inception-v3", "tensorflow", 7, torch.Generator().manual_seed(0))
    assert x.min() >= -1
    assert x.max() <= 1
    assert x[:, :, 3, 3].std(0).min() > 0.05
    assert prepare(grey, "inception-v3", "pytorch", 7, torch.Generator().manual_seed(0))[:, :, 3, 3].std(0).max() < 1e-5


def test_a_grey_picture_is_taken_for_three_equal_channels():
    grey = picture(channels=1)
    for framework in FRAMEWORKS:
        assert torch.equal(
            prepare(grey, "vgg-16", framework, 7), prepare(grey.expand(-1, 3, -1, -1), "vgg-16", framework, 7)
        )


@pytest.mark.parametrize(
    ("framework", "wanted"),
    [
        ("caffe", [[7, 3, 5], [1, 9, 0], [4, 7, 3]]),
        ("pytorch", [[7, 3, 5], [1, 9, 0], [4]]),
        ("tensorflow", [[7, 3, 5], [1, 9, 0]]),
    ],
)
def test_the_last_smaller_batch(framework, wanted):
    assert [batch.tolist() for batch in epoch([7, 3, 5, 1, 9, 0, 4], 3, framework)] == wanted


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_where_nothing_is_left_over_all_do_the_same(framework):
    assert np.array_equal(np.concatenate(list(epoch(np.arange(6), 3, framework))), np.arange(6))


def test_caffe_begins_again_as_often_as_it_must():
    assert [batch.tolist() for batch in epoch([5, 6], 5, "caffe")] == [[5, 6, 5, 6, 5]]
