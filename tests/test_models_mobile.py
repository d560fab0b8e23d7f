"""The small networks against their papers' parameter counts, multiply-adds, shapes and strides."""

from functools import partial

import pytest
import torch
from torch import nn
from torchvision import models as published

from fl_utils import costs, flat
from fl_utils.models import mobile
from fl_utils.training import LocalTraining, Trainer

EVERY = {
    "mobilenet_v1": lambda classes=10, **more: mobile.mobilenet_v1(classes, 0.25, **more),
    "mobilenet_v2": lambda classes=10, **more: mobile.mobilenet_v2(classes, width=0.25, **more),
    "squeezenet": lambda classes=10, **more: mobile.squeezenet(classes, **more),
    "shufflenet_v1": lambda classes=10, **more: mobile.shufflenet_v1(classes, 3, 0.25, **more),
    "shufflenet_v2": lambda classes=10, **more: mobile.shufflenet_v2(classes, 0.5, **more),
}


def counted(build, shape=(3, 224, 224)):
    with torch.device("meta"):
        return costs.count(build(), shape)


def size_of(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: mobile.mobilenet_v2(1000), "mobilenet_v2"),
        (lambda: mobile.squeezenet(1000), "squeezenet1_0"),
        (lambda: mobile.squeezenet(1000, "1_1"), "squeezenet1_1"),
        *(
            (lambda w=w: mobile.shufflenet_v2(1000, w), f"shufflenet_v2_x{str(w).replace('.', '_')}")
            for w in (0.5, 1.0, 1.5, 2.0)
        ),
    ],
)
def test_torchvisions_networks_are_torchvisions(build, name):
    meta = published.get_model_weights(name).DEFAULT.meta
    found = counted(build)
    assert found.parameters == meta["num_params"]
    assert found.multiply_adds / 1e9 == pytest.approx(meta["_ops"], abs=0.0006)
    with torch.device("meta"):
        theirs, ours = published.get_model(name, weights=None).state_dict(), build().state_dict()
    assert {key: value.shape for key, value in theirs.items()} == {key: value.shape for key, value in ours.items()}


def test_a_torchvision_state_gives_torchvisions_outputs():
    theirs = published.mobilenet_v2(weights=None, num_classes=7).eval()
    ours = mobile.mobilenet_v2(7).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("alpha", "size", "multiply_adds", "parameters"),  # Howard et al. 2017, tables 6 and 7, in millions
    [
        (1.0, 224, 569, 4.2),
        (0.75, 224, 325, 2.6),
        (0.5, 224, 149, 1.3),
        (0.25, 224, 41, 0.5),
        (1.0, 192, 418, 4.2),
        (1.0, 160, 290, 4.2),
        (1.0, 128, 186, 4.2),
    ],
)
def test_mobilenet_v1_has_its_papers_costs(alpha, size, multiply_adds, parameters):
    found = counted(lambda: mobile.mobilenet_v1(1000, alpha), (3, size, size))
    assert found.multiply_adds / 1e6 == pytest.approx(multiply_adds, abs=1)
    assert found.parameters / 1e6 == pytest.approx(parameters, abs=0.05)


def test_mobilenet_v1_exactly():
    found = counted(lambda: mobile.mobilenet_v1(1000))
    assert (found.parameters, found.multiply_adds) == (4231976, 568740352)
    convolutions = found.kinds("Conv2d")
    assert len(convolutions) == 27 and convolutions[-1].output_shape == (1024, 7, 7)
    printed = counted(lambda: mobile.mobilenet_v1(1000, strides="table_3_2")).kinds("Conv2d")
    assert printed[-1].output_shape == (1024, 4, 4) and [row.stride for row in printed][-2:] == [2, 1]


@pytest.mark.parametrize(
    ("groups", "millions"), [(1, 143), (2, 140), (3, 137), (4, 133), (8, 137)]
)  # Zhang et al. 2018, table 1: complexity in multiply-adds
def test_shufflenet_v1_has_its_papers_complexity(groups, millions):
    found = counted(lambda: mobile.shufflenet_v1(1000, groups))
    assert found.multiply_adds / 1e6 == pytest.approx(millions, rel=0.011)
    stages = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}[groups]
    pooled = [row for row in found.rows if row.name == "fc"]
    assert pooled[0].input_shape == (4 * stages,)


def test_shufflenet_v1_unit_by_hand():
    # 1x, 3 groups, first unit of the third stage: 240 channels of 28 x 28 in, 480 of 14 x 14 out
    rows = [row for row in counted(lambda: mobile.shufflenet_v1(1000, 3)).rows if row.name.startswith("stage3.0.")]
    products = [row.multiply_adds for row in rows if row.kind == "Conv2d"]
    assert products == [240 * 120 // 3 * 28 * 28, 9 * 120 * 14 * 14, 120 * 240 // 3 * 14 * 14]


def test_shufflenet_v1_shuffles_between_its_groups():
    torch.manual_seed(0)
    unit = mobile.ShuffleUnit(36, 36, 3, 1, 3).eval()
    x = torch.rand(1, 36, 5, 5)
    changed = x.clone()
    changed[:, :12] = 9 * torch.randn(1, 12, 5, 5)  # the first group alone
    moved = (unit(changed) - unit(x)).abs().amax((0, 2, 3))
    assert moved.view(3, 12).any(1).all()  # in every group of the result


@pytest.mark.parametrize(
    ("groups", "scale", "first", "stage"),  # the first four are the channels of its authors' own code
    [(3, 0.5, 12, 120), (8, 0.5, 16, 192), (3, 2.0, 48, 480), (8, 2.0, 48, 768), (4, 0.25, 8, 64), (1, 0.25, 6, 36)],
)
def test_shufflenet_v1_scales_its_channels(groups, scale, first, stage):
    found = counted(lambda: mobile.shufflenet_v1(10, groups, scale), (3, 64, 64))
    rows = {row.name: row for row in found.rows}
    assert rows["maxpool"].output_shape[0] == first
    assert [rows[f"stage{n}.1.reduce.0"].input_shape[0] for n in (2, 3, 4)] == [stage, 2 * stage, 4 * stage]


@pytest.mark.parametrize(
    ("build", "last"),
    [
        (lambda: mobile.mobilenet_v2(10), 1),
        (lambda: mobile.mobilenet_v2(10, "kuangliu"), 4),
        (lambda: mobile.mobilenet_v2(10, "table_4_1"), 8),
        (lambda: mobile.mobilenet_v1(10, strides="kuangliu"), 2),
        (lambda: mobile.shufflenet_v1(10), 1),
        (lambda: mobile.shufflenet_v1(10, first_stride=1), 2),
        (lambda: mobile.shufflenet_v2(10), 1),
        (lambda: mobile.shufflenet_v2(10, first_stride=1), 2),
    ],
)
def test_strides_set_the_last_map_and_no_parameter(build, last):
    found = counted(build, (3, 32, 32))
    assert found.kinds("Conv2d")[-1].output_shape[1:] == (last, last)


def test_strides_of_table_4_1():
    strides = {name: [] for name in mobile.MOBILENET_V2_STRIDES}
    for name, found in strides.items():
        model = mobile.mobilenet_v2(10, name)
        found += [
            row.stride
            for row in counted(lambda n=name: mobile.mobilenet_v2(10, n), (3, 32, 32)).kinds("Conv2d")
            if row.stride == 2
        ]
        assert size_of(model) == 2236682
    assert [len(strides[name]) for name in ("stock", "kuangliu", "table_4_1")] == [5, 3, 2]


@pytest.mark.parametrize("name", EVERY)
def test_uint8_and_float_inputs_give_the_same(name):
    model = EVERY[name]().eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    out = model(images)
    assert out.shape == (2, 10) and out.dtype == torch.float32
    assert torch.equal(out, model(images.float() / 255))
    with pytest.raises(ValueError, match=r"images are torch.int64, want float in \[0, 1\] or torch.uint8"):
        model(images.long())
    with pytest.raises(ValueError, match=r"images have 3 axes, want 4"):
        model(images[0])


@pytest.mark.parametrize("name", EVERY)
def test_grey_images_and_training(name):
    model = EVERY[name](classes=3, channels=1)
    x = torch.rand(4, 1, 64, 64)
    loss = nn.functional.cross_entropy(model(x), torch.tensor([0, 1, 2, 0]))
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    traced = torch.jit.trace(model.eval(), x)
    assert torch.equal(traced(x), model(x))


@pytest.mark.parametrize("build", [EVERY["mobilenet_v1"], EVERY["mobilenet_v2"]])
def test_group_norm_has_no_statistics(build):
    plain, grouped = build(), build(norm="group")
    assert not [*grouped.buffers()] and [*plain.buffers()]
    assert size_of(plain) == size_of(grouped)
    norms = [layer for layer in grouped.modules() if isinstance(layer, nn.GroupNorm)]
    assert norms and all(layer.num_groups == 8 for layer in norms)
    x = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(grouped.eval()(x)[:1], grouped(x[:1]))


def test_the_network_of_table_6_2():
    model = mobile.small_cnn_600k()
    assert size_of(model) == 320 + 4128 + 576500 + 5010 == 585958
    kinds = " ".join(type(layer).__name__ for layer in model)
    assert kinds == "Conv2d ReLU MaxPool2d Conv2d ReLU MaxPool2d Flatten Linear ReLU Linear"
    assert model(torch.zeros(2, 1, 28, 28, dtype=torch.uint8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: mobile.mobilenet_v2(0), r"classes is 0, want a whole number from 1 on"),
        (lambda: mobile.mobilenet_v2(True), r"classes is True"),
        (lambda: mobile.mobilenet_v2(10, "cifar"), r"strides is 'cifar', want one of 'stock', 'kuangliu', 'table_4_1'"),
        (lambda: mobile.mobilenet_v2(10, width=0), r"width is 0, want a number above 0"),
        (lambda: mobile.mobilenet_v2(10, width=float("nan")), r"width is nan"),
        (lambda: mobile.mobilenet_v2(10, norm="layer"), r"norm is 'layer', want one of 'batch', 'group'"),
        (lambda: mobile.mobilenet_v2(10, dropout=1.0), r"dropout is 1.0, want a number in \[0, 1\)"),
        (lambda: mobile.mobilenet_v2(10, channels=1.5), r"channels is 1.5, want a whole number"),
        (lambda: mobile.mobilenet_v1(10, 1.5), r"alpha is 1.5, want a number in \(0, 1\]"),
        (lambda: mobile.mobilenet_v1(10, strides="table_4_1"), r"strides is 'table_4_1', want one of 'stock'"),
        (lambda: mobile.squeezenet(10, "1.0"), r"version is '1.0', want one of '1_0', '1_1'"),
        (lambda: mobile.shufflenet_v1(10, 5), r"groups is 5, want one of 1, 2, 3, 4, 8"),
        (lambda: mobile.shufflenet_v1(10, scale=-1), r"scale is -1, want a number above 0"),
        (lambda: mobile.shufflenet_v1(10, first_stride=3), r"first_stride is 3, want one of 1, 2"),
        (lambda: mobile.shufflenet_v2(10, 0.75), r"width is 0.75, want one of 0.5, 1.0, 1.5, 2.0"),
        (lambda: mobile.shufflenet_v2(10, first_stride=True), r"first_stride is True, want one of 1, 2"),
        (lambda: mobile.small_cnn_600k("10"), r"classes is '10', want a whole number"),
    ],
)
def test_wrong_parameters_are_one_clear_error(build, message):
    with pytest.raises(ValueError, match=message) as error:
        build()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("strides", mobile.MOBILENET_V2_STRIDES)
def test_a_shallow_mobilenet_v2_keeps_the_strides_and_the_shapes(strides):
    def sides(model):
        rows = costs.count(model, (3, 32, 32)).kinds("Conv2d")
        return [row.output_shape[-1] for row in rows]

    with torch.device("meta"):
        whole, shallow = (mobile.mobilenet_v2(10, strides, width=0.25, blocks=n) for n in (0, 1))
        assert len(shallow.features) == 1 + 7 + 1
        assert list(dict.fromkeys(sides(whole))) == list(dict.fromkeys(sides(shallow)))
        assert size_of(mobile.mobilenet_v2(10, strides, width=0.25, blocks=4)) == size_of(whole)
    with pytest.raises(ValueError, match="blocks is -1"):
        mobile.mobilenet_v2(10, blocks=-1)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_narrow_last_layer_changes_nothing_before_it(norm):
    whole, narrow = (mobile.mobilenet_v2(10, width=0.25, norm=norm, blocks=1, last=n) for n in (1280, 320))
    shapes = [[tuple(p.shape) for p in model.parameters()] for model in (whole, narrow)]
    assert shapes[0] == [tuple(p.shape) for p in mobile.mobilenet_v2(10, width=0.25, norm=norm, blocks=1).parameters()]
    assert shapes[0][:-5] == shapes[1][:-5]
    assert shapes[1][-5:] == [(320, 80, 1, 1), (320,), (320,), (10, 320), (10,)]
    assert narrow(torch.rand(2, 3, 16, 16)).shape == (2, 10)
    with pytest.raises(ValueError, match="last is -1"):
        mobile.mobilenet_v2(10, last=-1)


NETWORKS = [
    partial(mobile.mobilenet_v2, 5, "kuangliu", width=0.25, dropout=0.0, blocks=1),
    partial(mobile.shufflenet_v2, 5, 0.5, 1, units=1),
]
PUBLISHED = [published.MobileNetV2, published.ShuffleNetV2]


@pytest.mark.parametrize(("build", "network"), list(zip(NETWORKS, PUBLISHED, strict=True)))
def test_channels_last_changes_no_gradient(build, network):
    torch.manual_seed(0)
    ours = build().double().train()
    x = torch.rand(6, 3, 16, 16, dtype=torch.double)
    found = []
    for ours.channels_last in (False, True, False):
        found.append(torch.autograd.grad(ours(x).square().sum(), list(ours.parameters())))
    plain = torch.autograd.grad(network.forward(ours, x).square().sum(), list(ours.parameters()))
    assert all(torch.allclose(one, last, atol=1e-9, rtol=1e-7) for one, last in zip(plain, found[1], strict=True))
    for one, other, again in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-9, rtol=1e-7)
        assert torch.equal(one, again)


@pytest.mark.parametrize("build", NETWORKS)
def test_a_layout_for_training_stays_bound_and_is_gone_for_evaluation(build):
    trainer = Trainer(build)
    before = [parameter.stride() for parameter in trainer.model.parameters()]
    x, y = torch.rand(8, 3, 16, 16), torch.arange(8) % 5
    trainer.train(x, y, LocalTraining(1, 4, 0.1, "adam"), seed=0)
    assert torch.equal(flat.flatten(trainer.model), trainer.vector)
    assert [parameter.stride() for parameter in trainer.model.parameters()] != before
    trainer.evaluate(x, y)
    assert [parameter.stride() for parameter in trainer.model.parameters()] == before
    trainer.vector.zero_()
    assert not any(parameter.any() for parameter in trainer.model.parameters())


def test_a_shallow_shufflenet_v2_has_so_many_units_a_stage():
    with torch.device("meta"):
        assert [len(mobile.shufflenet_v2(10, 0.5, units=5).get_submodule(f"stage{n}")) for n in (2, 3, 4)] == [4, 5, 4]
    with pytest.raises(ValueError, match="units is 'half'"):
        mobile.shufflenet_v2(10, 0.5, units="half")
