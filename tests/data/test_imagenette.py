"""ImageNette in its official layouts, written here with small pictures; what is damaged is named."""

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import Imagenette

from fl_utils.data import cards, imagenette

COUNTS = {"train": 2, "val": 1}  # pictures of each synset


def jpeg(colour, size=(20, 12), mode="RGB", kind="JPEG"):
    stream = io.BytesIO()
    Image.new(mode, size, colour).save(stream, kind)
    return stream.getvalue()


def write(folder):
    """A folder with train and val: the picture of label l has the grey level 20 l + 10."""
    for split, count in COUNTS.items():
        for label, synset in enumerate(imagenette.SYNSETS):
            (folder / split / synset).mkdir(parents=True)
            for number in range(count):
                level = 20 * label + 10
                file = folder / split / synset / f"{synset}_{9 - number}.JPEG"
                file.write_bytes(jpeg((level, level, level)))
    return folder


def packed(folder, archive, top="imagenette2-160"):
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, top)
    return archive


@pytest.fixture
def pictures(tmp_path):
    return write(tmp_path / "imagenette2")


@pytest.mark.parametrize("form", ["itself", "parent", "named", "320", "160", "archive", "archive's folder"])
def test_official_layouts(tmp_path, pictures, form):
    where = {"itself": pictures, "parent": tmp_path}.get(form)
    if form == "named":
        where = tmp_path / "all"
        where.mkdir()
        pictures.rename(where / "imagenette")
    elif form in ("320", "160"):
        pictures.rename(tmp_path / f"imagenette2-{form}")
        where = tmp_path
    elif form.startswith("archive"):
        (tmp_path / "archives").mkdir()
        where = packed(pictures, tmp_path / "archives" / "imagenette2-160.tgz")
        where = where.parent if form == "archive's folder" else where
    splits = imagenette.load("imagenette", where, 8)
    assert list(splits) == ["train", "val"]
    for split, count in COUNTS.items():
        assert splits[split].x.shape == (10 * count, 3, 8, 8) and splits[split].x.dtype == torch.uint8
        assert splits[split].y.tolist() == [label for label in range(10) for _ in range(count)]
        levels = splits[split].x.float().mean((1, 2, 3))
        assert (levels - (20 * splits[split].y + 10)).abs().max() < 2
    sizes = imagenette.file_sizes(where)
    assert [len(sizes[split]) for split in COUNTS] == [20, 10]
    level = 10
    assert sizes["val"][0] == len(jpeg((level, level, level)))


def test_the_classes_are_torchvisions():
    assert {synset: names[0] for synset, names in Imagenette._WNID_TO_CLASS.items()} == imagenette.SYNSETS
    assert list(imagenette.SYNSETS) == sorted(imagenette.SYNSETS) and len(imagenette.CLASSES) == 10
    card = cards.load("imagenette")
    assert card.examples == {"train": 9469, "val": 3925} and not cards.fetchable(card)


def test_the_middle_is_cut_out_and_the_shape_kept(pictures):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200  # the middle square
    file = pictures / "val/n01440764/n01440764_9.JPEG"
    Image.fromarray(wide).save(file, "JPEG", quality=100, subsampling=0)
    assert imagenette.load("imagenette", pictures, 10)["val"].x[0].float().mean() > 185
    Image.fromarray(wide.transpose(1, 0, 2)).save(file, "JPEG", quality=100, subsampling=0)
    assert imagenette.load("imagenette", pictures, 10)["val"].x[0].float().mean() > 185
    assert imagenette.load("imagenette", pictures)["val"].x.shape == (10, 3, 224, 224)


@pytest.mark.parametrize(
    ("mode", "colour", "kind"),
    [("L", 130, "JPEG"), ("CMYK", (0, 0, 0, 125), "JPEG"), ("RGBA", (130, 130, 130, 9), "PNG")],
)
def test_grey_cmyk_and_png_become_rgb(pictures, mode, colour, kind):
    file = pictures / "train/n02102040/n02102040_8.JPEG"
    file.write_bytes(jpeg(colour, mode=mode, kind=kind))
    x = imagenette.load("imagenette", pictures, 8)["train"].x[2]
    assert (x.float() - 130).abs().max() < 4


def test_a_limit_draws_the_same_part_again(pictures):
    part, again = (imagenette.load("imagenette", pictures, 8, limit=7, seed=1)["train"] for _ in range(2))
    other = imagenette.load("imagenette", pictures, 8, limit=7, seed=2)["train"]
    assert len(part) == 7 and torch.equal(part.x, again.x) and torch.equal(part.y, again.y)
    assert part.y.tolist() != other.y.tolist()
    assert (part.x.float().mean((1, 2, 3)) - (20 * part.y + 10)).abs().max() < 2
    assert part.y.tolist() == sorted(part.y.tolist())


@pytest.mark.parametrize("keep", [0, 2, 300, -40])
def test_a_damaged_picture_is_named(pictures, keep):
    file = pictures / "val/n03417042/n03417042_9.JPEG"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"val/n03417042/n03417042_9.JPEG: not a usable picture") as error:
        imagenette.load("imagenette", pictures, 8)
    assert str(pictures) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_a_truncated_archive_is_named(tmp_path, pictures, keep):
    archive = packed(pictures, tmp_path / "imagenette2-160.tgz")
    data = archive.read_bytes()
    archive.write_bytes(data[: int(keep * len(data))])
    for read in (lambda: imagenette.load("imagenette", archive, 8), lambda: imagenette.file_sizes(archive)):
        with pytest.raises(ValueError, match=r"imagenette2-160.tgz: truncated or damaged"):
            read()


def test_missing_and_foreign_classes_are_named(pictures):
    synset = pictures / "val" / "n03888257"
    synset.rename(pictures / "val" / "n02086240")  # a dog of ImageWoof
    with pytest.raises(ValueError, match=r"val/n02086240 is no synset of ImageNette"):
        imagenette.load("imagenette", pictures, 8)
    (pictures / "val" / "n02086240").rename(pictures / "apart")
    with pytest.raises(ValueError, match=r"no picture in val of n03888257 \(parachute\)"):
        imagenette.load("imagenette", pictures, 8)


def test_hidden_files_are_not_pictures(pictures):
    (pictures / "val/n03888257/._n03888257_9.JPEG").write_bytes(b"mac")
    assert len(imagenette.load("imagenette", pictures, 8)["val"]) == 10


def test_what_is_wrong_with_the_request_is_said(tmp_path, pictures):
    with pytest.raises(cards.DataNotFound, match=r"imagenette: no registry package carries it"):
        imagenette.load("imagenette", "", 8)
    with pytest.raises(cards.DataNotFound, match=r"imagenette2.tgz"):
        imagenette.load("imagenette", tmp_path / "apart", 8)
    with pytest.raises(ValueError, match=r"'imagewoof' is not read here"):
        imagenette.load("imagewoof", pictures, 8)
    for wrong in ({"size": 0}, {"limit": 0}, {"size": 2.5}):
        with pytest.raises(ValueError, match=r"want a whole number from 1 on"):
            imagenette.load("imagenette", pictures, **wrong)
