import subprocess
import sys

import pytest
import torch

from fl_utils.models import vision
from fl_utils.models.resnet import resnet
from fl_utils.models.text import SentimentLSTM


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_sizes_are_those_of_the_papers():
    assert parameters(vision.two_nn()) == 199_210  # McMahan et al. 2017, section 3
    assert parameters(vision.SmallCNN(10, 32, 512)) == 1_663_370  # the CNN of the same section
    assert parameters(vision.alexnet(2)) == 57_012_034  # torchvision's, last layer of two
    # Hu et al. 2020, section 3.4: embedding 512, two LSTM layers of 256; by hand, for a vocabulary of 1,000.
    lstm = 4 * 256 * (512 + 256) + 2 * 1024 + 4 * 256 * (256 + 256) + 2 * 1024
    assert parameters(SentimentLSTM(1000)) == 1000 * 512 + lstm + 257


def test_normalisation_is_the_one_of_torchvision():
    from torchvision.transforms.functional import normalize

    images = torch.randint(0, 256, (2, 3, 5, 5), dtype=torch.uint8)
    ours = vision.Normalize(vision.IMAGENET_MEAN, vision.IMAGENET_STD)(images)
    torch.testing.assert_close(ours, normalize(images.float() / 255, vision.IMAGENET_MEAN, vision.IMAGENET_STD))


def test_weights_are_taken_but_for_the_last_layer(tmp_path):
    from torchvision.models import mobilenet_v2

    given = mobilenet_v2(weights=None)
    torch.save(given.state_dict(), tmp_path / "weights.pth")
    model = vision.mobilenet_v2(2, tmp_path / "weights.pth")[1]
    assert torch.equal(model.features[0][0].weight, given.features[0][0].weight)
    assert model.classifier[1].weight.shape == (2, 1280)


@pytest.mark.parametrize("content", ["others", b"junk", b""])
def test_a_file_that_is_not_these_weights_is_named(tmp_path, content):
    path = tmp_path / "weights.pth"
    if content == "others":
        torch.save({"features.0.weight": torch.zeros(3)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="do not fit MobileNetV2"):
        vision.mobilenet_v2(2, path)


def test_a_pickle_that_would_run_code_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save(Trap(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="do not fit"):
        vision.mobilenet_v2(2, tmp_path / "weights.pth")


@pytest.mark.parametrize("depth", [18, 34])
def test_residual_networks_are_those_of_torchvision(depth):
    import torchvision.models as zoo

    ours, theirs = resnet(depth, 10), getattr(zoo, f"resnet{depth}")(num_classes=10)
    shapes = [tuple(tensor.shape) for tensor in ours.state_dict().values()]
    assert sorted(shapes) == sorted(tuple(tensor.shape) for tensor in theirs.state_dict().values())
    # The same layers in the same order: with torchvision's weights ours computes what theirs does.
    ordered = [name for name in theirs.state_dict() if "downsample" not in name]
    ours_ordered = [name for name in ours.state_dict() if "downsample" not in name]
    state = dict(zip(ours_ordered, (theirs.state_dict()[name] for name in ordered), strict=True))
    shortcuts = [name for name in ours.state_dict() if "downsample" in name]
    state |= zip(shortcuts, (t for n, t in theirs.state_dict().items() if "downsample" in n), strict=True)
    ours.load_state_dict(state)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = theirs.eval()((images.float() / 255 - 0.5) / 0.5)
        torch.testing.assert_close(ours.eval()(images), expected, rtol=1e-4, atol=1e-4)


def test_a_residual_network_takes_small_grey_images():
    model = resnet(10, 62, width=8, channels=1, dropout=0.5, stem="small").eval()
    images = torch.randint(0, 256, (3, 1, 20, 20), dtype=torch.uint8)
    embedding = model.features(images)
    assert embedding.shape == (3, 64)
    torch.testing.assert_close(model(images), model.classifier(embedding))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"depth": 12}, "depth is 12: want one of 10, 18, 34"),
        ({"stem": "tiny"}, "stem is 'tiny'"),
        ({"width": 0}, "width is 0"),
        ({"mean": (0.1, 0.2)}, "mean and std have 2 and 3 values"),
    ],
)
def test_an_impossible_residual_network_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        resnet(**{"depth": 18, "classes": 2, **wrong})


def test_torchvision_comes_without_the_compiler():
    code = (
        "import sys, fl_utils.models.mobile; assert not any(name.startswith('torch._dynamo') for name in sys.modules);"
        "from torchvision.ops import roi_align; import torch._dynamo.utils as real;"
        "asked = sys.modules['torchvision.ops.roi_align'].is_compile_supported;"
        "assert asked('cpu') == real.is_compile_supported('cpu'); assert real.__file__"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_compiler_itself_is_not_in_the_way():
    code = (
        "import fl_utils.models, torch, torch._dynamo; assert torch._dynamo.utils.counters is not None;"
        "import torchvision; assert torch.compile(lambda x: x + 1, backend='eager')(torch.ones(2)).sum() == 4"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
