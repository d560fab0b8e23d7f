"""Sizes of pictures and models are those of real files."""

import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from fl_utils import data_usage, flat
from fl_utils.data.cards import DataNotFound
from fl_utils.data.imagenette import SYNSETS
from fl_utils.models import mobile

REAL = Path(__file__).resolve().parents[2] / "shared" / "real"


def test_png_sizes_are_those_of_pillows_files():
    x = torch.randint(0, 256, (2, 3, 9, 7), dtype=torch.uint8)
    for images in (x, x[:, :1]):
        expected = []
        for image in images:
            stream = io.BytesIO()
            pixels = image.permute(1, 2, 0).numpy()
            Image.fromarray(pixels[..., 0] if len(image) == 1 else pixels).save(stream, "PNG")
            expected.append(len(stream.getvalue()))
            assert torch.equal(torch.tensor(list(Image.open(stream).tobytes())), image.permute(1, 2, 0).flatten())
        assert data_usage.png_sizes(images) == expected
    for wrong in (x.float(), x[0], x[:0], x[:, :2]):
        with pytest.raises(ValueError, match=r"want torch.uint8 \[N, 1 or 3, H, W\]"):
            data_usage.png_sizes(wrong)


def test_the_sizes_that_need_no_data_of_the_users():
    digits = data_usage.picture_size("mnist", limit=50)
    assert digits.pictures == 50 and 150 < digits.bytes < 500 and digits.measured == "written as PNG"
    cifar, nette = data_usage.picture_size("cifar10"), data_usage.picture_size("imagenette")
    assert cifar.bytes == 170498071 / 60000 and "cifar-10-python.tar.gz" in cifar.measured
    assert nette.bytes == 1557161267 / 13394 and nette.pictures == 9469 + 3925
    small = data_usage.archive_size("imagenette", "imagenette2-160.tgz")
    assert 7_000 < small.bytes < 8_000
    with pytest.raises(ValueError, match="'svhn' is not measured here: want one of mnist, cifar10, imagenette"):
        data_usage.picture_size("svhn")
    with pytest.raises(ValueError, match=r"the card imagenette knows no size of 'x.tgz'"):
        data_usage.archive_size("imagenette", "x.tgz")


def test_the_users_own_files(tmp_path):
    for split, count in (("train", 2), ("val", 1)):
        for synset in SYNSETS:
            for number in range(count):
                file = tmp_path / "imagenette2" / split / synset / f"{number}.JPEG"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(bytes(100 if split == "train" else 400))
    found = data_usage.picture_size("imagenette", tmp_path)
    assert (found.bytes, found.pictures, found.measured) == (200.0, 30, "its files")
    with pytest.raises(DataNotFound, match="cifar10: not found"):
        data_usage.picture_size("cifar10", tmp_path)


@pytest.mark.skipif(not (REAL / "cifar10").exists(), reason="the real CIFAR-10 is not here")
def test_real_cifar10_as_png():
    found = data_usage.picture_size("cifar10", REAL, limit=40)
    assert found.pictures == 40 and 1_500 < found.bytes < 3_200


def test_state_bytes_are_those_of_the_file(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2))
    torch.save(model.state_dict(), tmp_path / "archive")
    assert data_usage.state_bytes(model) == (tmp_path / "archive").stat().st_size
    with torch.device("meta"):
        absent = mobile.mobilenet_v2(10)
    assert data_usage.state_bytes(absent) == data_usage.state_bytes(mobile.mobilenet_v2(10))


def test_update_bytes_shrink_with_the_bits():
    model = mobile.mobilenet_v2(10, width=0.25)
    found = data_usage.update_bytes(model)
    assert list(found) == [32, 16, 8, 4]
    assert 0 < found[32] - 4 * flat.flatten(model).numel() < 100  # the frame
    layers = [layer.weight for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    weights, channels = sum(weight.numel() for weight in layers), sum(len(weight) for weight in layers)
    assert found[32] - found[16] == pytest.approx(2 * weights, abs=8)
    assert found[16] - found[8] == weights - 8 * channels  # a scale and a bias each
    assert found[8] - found[4] == pytest.approx(weights / 2, abs=len(layers))
    with pytest.raises(ValueError, match=r"bits is 5\.5"):
        data_usage.update_bytes(model, [5.5])
