"""Images out of the official layouts: shapes, labels, order; and what is damaged is named."""

import functools
import gzip
import hashlib
import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fl_utils.data import cards, formats, images, partition
from fl_utils.data.examples import Examples, concat

REAL = Path(__file__).resolve().parents[3] / "shared" / "real"
CLASSES = images.CIFAR10_CLASSES


def idx_bytes(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


def write_idx(folder, count=12, packed=False, seed=0):
    """The four files of MNIST with a few random digits."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for split, number in (("train", count), ("t10k", count // 2)):
        pixels = random.integers(0, 256, (number, 28, 28))
        for stem, array in (("images-idx3", pixels), ("labels-idx1", np.arange(number) % 10)):
            data = idx_bytes(array)
            name = f"{split}-{stem}-ubyte"
            (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(data) if packed else data)
    return folder


def picture(colour, size=(6, 4), kind="PNG", mode="RGB"):
    stream = io.BytesIO()
    Image.new(mode, size, colour).save(stream, kind)
    return stream.getvalue()


def write_catsdogs(folder, count=3):
    """train/cat.N.jpg bluish, train/dog.N.jpg reddish; as a folder."""
    (folder / "train").mkdir(parents=True)
    for number in range(count):
        (folder / f"train/cat.{number}.jpg").write_bytes(picture((number, 0, 250), kind="JPEG"))
        (folder / f"train/dog.{number}.jpg").write_bytes(picture((250, 0, number), kind="JPEG"))
    return folder


def zipped(files):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


def contents_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def cifar_batches(count=4):
    random = np.random.default_rng(0)
    for key in formats.CIFAR10_MD5:
        data = random.integers(0, 256, (count, 3072), dtype=np.uint8)
        yield (
            key,
            {b"data": data, b"labels": list(range(count)), b"batch_label": key.encode(), b"filenames": [b"x.png"]},
        )


def test_digits_are_two_parties_at_one_size():
    parties = images.load("digits")
    mnist, optdigits = parties["mnist"], parties["optdigits"]
    assert mnist.x.shape == (5000, 1, 28, 28) and optdigits.x.shape == (1797, 1, 28, 28)
    assert mnist.x.dtype == optdigits.x.dtype == torch.uint8 and mnist.y.dtype == torch.int64
    assert mnist.y.bincount().tolist() == [500] * 10
    assert optdigits.y.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert mnist.x.max() == 255 and 250 <= optdigits.x.max() <= 255
    own = images.load("digits", size=8)
    assert own["mnist"].x.shape == (5000, 1, 8, 8)
    with gzip.open(images.fetch.fetch("digits")["digits.csv.gz"], "rt") as lines:
        first = np.array([float(value) for value in next(lines).split(",")])
    assert np.array_equal(own["optdigits"].x[0].flatten().numpy(), np.rint(first[:64] * 255 / 16))
    assert own["optdigits"].y[0] == first[64]


def test_a_limit_draws_the_same_part_again():
    whole, part = images.load("digits"), images.load("digits", limit=100, seed=3)
    again, other = images.load("digits", limit=100, seed=3), images.load("digits", limit=100, seed=4)
    for party in whole:
        assert len(part[party]) == 100 and torch.equal(part[party].x, again[party].x)
        assert not torch.equal(part[party].x, other[party].x)
        assert np.isin(keys(part[party]), keys(whole[party])).all()


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST/raw"), ("fashion_mnist", "FashionMNIST/raw"), ("mnist", "")]
)
@pytest.mark.parametrize("packed", [False, True])
def test_idx_layouts(tmp_path, name, folder, packed):
    write_idx(tmp_path / folder, packed=packed)
    splits = images.load(name, tmp_path)
    random = np.random.default_rng(0).integers(0, 256, (12, 28, 28))
    assert np.array_equal(splits["train"].x[:, 0].numpy(), random)
    assert splits["train"].y.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1] and len(splits["test"]) == 6
    assert images.load(name, tmp_path, size=14)["test"].x.shape == (6, 1, 14, 14)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("keep", [0, 3, 40, -1])
def test_a_truncated_idx_file_is_named(tmp_path, packed, keep):
    write_idx(tmp_path, packed=packed)
    file = tmp_path / f"t10k-images-idx3-ubyte{'.gz' if packed else ''}"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte") as error:
        images.load("mnist", tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_idx_files_that_do_not_fit_together(tmp_path):
    write_idx(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(11)))
    with pytest.raises(ValueError, match=r"12 images, .*11 labels"):
        images.load("mnist", tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.full(12, 10)))
    with pytest.raises(ValueError, match="label 10, want 0 to 9"):
        images.load("mnist", tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros((12, 1, 1))))
    with pytest.raises(ValueError, match="not an idx file of 1 axes"):
        images.load("mnist", tmp_path)


@pytest.mark.parametrize("form", ["folder", "flat", "train.zip", "dogs-vs-cats.zip"])
def test_catsdogs_layouts(tmp_path, form):
    folder = write_catsdogs(tmp_path / "kaggle", count=11)
    train = zipped(contents_of(folder))
    where = {"folder": folder, "flat": folder / "train"}.get(form, tmp_path)
    if form == "train.zip":
        (tmp_path / form).write_bytes(train)
    elif form == "dogs-vs-cats.zip":
        test = zipped({"test1/1.jpg": picture((0, 0, 0), kind="JPEG")})
        (tmp_path / form).write_bytes(zipped({"sampleSubmission.csv": b"id", "test1.zip": test, "train.zip": train}))
    found = images.load("catsdogs", where)["all"]
    assert found.x.shape == (22, 3, 224, 224) and found.y.tolist() == [0] * 11 + [1] * 11
    means = found.x.float().mean((2, 3))
    assert (means[:11, 2] > 200).all() and (means[11:, 0] > 200).all()
    assert means[10, 0] > means[2, 0]  # cat.10 comes after cat.2
    assert images.load("catsdogs", where, size=32, limit=4)["all"].x.shape == (4, 3, 32, 32)


def test_resizing_is_that_of_torchvision(tmp_path):
    from torchvision.transforms import Resize

    folder = write_catsdogs(tmp_path, count=1)
    noise = np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "train/cat.0.jpg")
    want = np.asarray(Resize((32, 32))(Image.open(folder / "train/cat.0.jpg"))).transpose(2, 0, 1)
    assert np.array_equal(images.load("catsdogs", tmp_path, size=32)["all"].x[0].numpy(), want)


def sixteen_bits():
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40000, dtype=np.uint16)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("broken", [b"", b"no picture", picture((9, 9, 9), (64, 64), "JPEG")[:-300], sixteen_bits()])
@pytest.mark.parametrize("packed", [False, True])
def test_an_unusable_picture_is_named(tmp_path, broken, packed):
    folder = write_catsdogs(tmp_path / "kaggle")
    (folder / "train/dog.1.jpg").write_bytes(broken)
    if packed:
        (tmp_path / "train.zip").write_bytes(zipped(contents_of(folder)))
        folder = tmp_path
    with pytest.raises(ValueError, match=r"train/dog\.1\.jpg: not a usable picture") as error:
        images.load("catsdogs", folder, size=8)
    if broken == sixteen_bits():
        assert "more than 8 bits" in str(error.value)


def test_other_modes_become_rgb(tmp_path):
    folder = write_catsdogs(tmp_path)
    (folder / "train/cat.0.jpg").write_bytes(picture(100, kind="JPEG", mode="L"))
    (folder / "train/cat.1.jpg").write_bytes(picture((0, 255, 255, 0), kind="JPEG", mode="CMYK"))
    (folder / "train/cat.2.jpg").write_bytes(picture((10, 20, 30, 128), mode="RGBA"))
    found = images.load("catsdogs", tmp_path, size=4)["all"].x
    assert found[0].unique().tolist() == [100]
    assert (found[1, 0] > 240).all() and (found[1, 1:] < 15).all()  # no cyan, all magenta and yellow: red
    assert found[2, :, 0, 0].tolist() == [10, 20, 30]


def test_a_truncated_zip_and_a_folder_without_dogs(tmp_path):
    whole = zipped(contents_of(write_catsdogs(tmp_path / "kaggle")))
    (tmp_path / "train.zip").write_bytes(whole[:-200])
    with pytest.raises(ValueError, match=r"train\.zip: truncated or damaged"):
        images.load("catsdogs", tmp_path)
    (tmp_path / "train.zip").write_bytes(zipped({"train/cat.0.jpg": picture((0, 0, 0))}))
    with pytest.raises(ValueError, match=r"train\.zip: no picture of 'dog'"):
        images.load("catsdogs", tmp_path)


@pytest.mark.parametrize("form", ["folder", "inside", "archive"])
def test_cifar10_as_torchvision_keeps_it(tmp_path, form):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for key, batch in cifar_batches():
        (folder / key).write_bytes(pickle.dumps(batch, protocol=2))
    if form == "archive":
        with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as tar:
            tar.add(folder, "cifar-10-batches-py")
        for file in folder.iterdir():
            file.unlink()
    with pytest.warns(UserWarning, match="4 images, not the official batch of 10,000"):
        splits = images.load("cifar10", folder if form == "inside" else tmp_path)
    assert splits["train"].x.shape == (20, 3, 32, 32) and splits["train"].y.tolist() == [0, 1, 2, 3] * 5
    first = next(cifar_batches())[1][b"data"]
    assert np.array_equal(splits["train"].x[:4].numpy().reshape(4, -1), first) and len(splits["test"]) == 4


def test_an_altered_official_batch_and_a_truncated_one_are_refused(tmp_path):
    data = np.zeros((10_000, 3072), dtype=np.uint8)
    whole = pickle.dumps({b"data": data, b"labels": [0] * 10_000}, protocol=2)
    with pytest.raises(ValueError, match="data_batch_1: 10000 images, but not the official md5 c99cafc"):
        formats.cifar_batch(whole, "data_batch_1")
    with pytest.raises(ValueError, match="data_batch_1: not a batch of CIFAR-10"):
        formats.cifar_batch(whole[:-5000], "data_batch_1")
    with pytest.raises(ValueError, match="labels from 0 to 10"):
        formats.cifar_batch(pickle.dumps({b"data": data[:2], b"labels": [0, 10]}), "data_batch_1")


def test_the_official_md5_lets_a_batch_through(monkeypatch, recwarn):
    whole = pickle.dumps({b"data": np.zeros((2, 3072), dtype=np.uint8), b"labels": [0, 9]})
    monkeypatch.setitem(formats.CIFAR10_MD5, "data_batch_1", hashlib.md5(whole).hexdigest())
    assert len(formats.cifar_batch(whole, "x.tar.gz: cifar-10-batches-py/data_batch_1")[1]) == 2 and not recwarn.list


class Attack:
    def __reduce__(self):
        return (eval, ("__import__('os').system('touch ran')",))


def test_a_pickle_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"it asks for builtins\.eval"):
        formats.cifar_batch(pickle.dumps({b"data": Attack()}), "data_batch_1")
    with pytest.raises(ValueError, match=r"it asks for functools\.partial"):
        formats.cifar_batch(pickle.dumps(functools.partial(print)), "data_batch_1")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("form", ["folder", "zip", "zip with a top folder"])
def test_cifar10_as_pictures(tmp_path, form):
    files = {}
    for split, count in (("train", 2), ("test", 1)):
        for label, kind in enumerate(CLASSES):
            for number in range(count):
                files[f"{split}/{kind}/{number:04}.png"] = picture((label, number, 0), (32, 32))
    files["__MACOSX/train/cat/._0000.png"] = b"mac"
    if form == "folder":
        for name, data in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(data)
    else:
        top = "CIFAR-10-images-master/" if "top" in form else ""
        (tmp_path / "cifar10_png.zip").write_bytes(zipped({top + name: data for name, data in files.items()}))
    splits = images.load("cifar10", tmp_path)
    assert splits["train"].x.shape == (20, 3, 32, 32) and splits["test"].y.tolist() == list(range(10))
    assert torch.equal(splits["train"].x[:, 0, 0, 0].long(), splits["train"].y)


def test_bad_arguments_are_named(tmp_path):
    for arguments, said in (
        (("imdb",), "'imdb' is not a data set of images"),
        (("digits", "", 0), "size is 0"),
        (("digits", "", None, 0), "limit is 0"),
    ):
        with pytest.raises(ValueError, match=said):
            images.load(*arguments)
    with pytest.raises(cards.DataNotFound, match=r"kaggle\.com"):
        images.load("catsdogs")
    with pytest.raises(cards.DataNotFound, match=r"lacks .*test"):
        (tmp_path / "train/cat").mkdir(parents=True)
        (tmp_path / "train/cat/0.png").write_bytes(b"")
        cards.locate("cifar10", tmp_path)


def test_a_damaged_table_of_digits(tmp_path):
    for file in images.fetch.fetch("digits").values():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "digits.csv.gz").write_bytes((tmp_path / "digits.csv.gz").read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"digits\.csv\.gz: truncated"):
        images.load("digits", tmp_path)
    (tmp_path / "digits.csv.gz").write_bytes(gzip.compress(b"1,2\n3,300\n"))
    with pytest.raises(ValueError, match=r"digits\.csv\.gz"):
        images.load("digits", tmp_path)


def test_examples_hold_together():
    x = torch.arange(12, dtype=torch.uint8).reshape(3, 1, 2, 2)
    part = Examples(x, torch.tensor([0, 1, 1]), torch.tensor([7, 7, 9]))
    taken = part.take(np.array([2, 0]))
    assert taken.y.tolist() == [1, 0] and taken.groups.tolist() == [9, 7] and torch.equal(taken.x[1], x[0])
    assert len(part.take([])) == 0
    both = concat([part, taken, Examples(x, torch.tensor([0, 0, 0]))])
    assert both.groups.tolist() == [0, 0, 1, 3, 2, 4, 5, 6] and len(both) == 8
    texts = Examples(["a", "b"], torch.tensor([0, 1]))
    assert concat([texts, texts.take([1])]).x == ["a", "b", "b"] and concat([texts]).groups is None
    for bad in (
        lambda: Examples(x, torch.tensor([0, 1])),
        lambda: Examples(x, torch.tensor([0.0, 1, 1])),
        lambda: concat([]),
    ):
        with pytest.raises(ValueError, match="want"):
            bad()
    with pytest.raises(ValueError, match="different shapes"):
        concat([part, texts])
    with pytest.raises(IndexError, match="want 0 to 2"):
        part.take([3])


def keys(examples):
    """One hash per example, by means of its own: what counts as the same must not depend on the code under test."""
    return np.array([hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in examples.x])


def apart(examples, **options):
    parts = partition.split(examples, (0.8, 0.1, 0.1), seed=0, **options)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(examples)))
    hashes = keys(examples)
    seen = [set(hashes[part]) for part in parts]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    for part, share in zip(parts, (0.8, 0.1, 0.1), strict=True):
        assert abs(len(part) - share * len(examples)) <= 0.01 * len(examples) + 1


def check_data_set(name, data_dir, **options):
    found = images.load(name, data_dir, **options)
    apart(concat(found.values()))
    if set(found) == {"train", "test"}:
        train = found["train"].take(partition.unseen(found["train"], found["test"]))
        assert not set(keys(train)) & set(keys(found["test"]))


def test_no_image_of_digits_is_in_train_and_test():
    check_data_set("digits", "")


@pytest.mark.parametrize(("name", "options"), [("mnist", {}), ("catsdogs", {"size": 64}), ("cifar10", {"limit": 8000})])
def test_no_real_image_is_in_train_and_test(name, options):
    if not (REAL / name).is_dir():
        pytest.skip("no real data beside this checkout")
    check_data_set(name, REAL, **options)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_no_image_of_tiny_idx_files_is_in_train_and_test(tmp_path, name):
    write_idx(tmp_path, count=200)
    pixels = np.random.default_rng(0).integers(0, 256, (200, 28, 28))
    pixels[100:] = pixels[:100]  # half of them twice
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(pixels))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(pixels[:100]))
    check_data_set(name, tmp_path)


def test_no_image_of_tiny_cats_and_dogs_is_in_train_and_test(tmp_path):
    folder = write_catsdogs(tmp_path, count=30)
    for number in range(10):
        (folder / f"train/dog.{100 + number}.jpg").write_bytes((folder / f"train/cat.{number}.jpg").read_bytes())
    check_data_set("catsdogs", tmp_path, size=8)


def test_no_image_of_tiny_cifar10_batches_is_in_train_and_test(tmp_path):
    for key, batch in cifar_batches(10):
        batch[b"data"][5:] = batch[b"data"][:5]
        (tmp_path / key).write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.warns(UserWarning, match="not the official"):
        check_data_set("cifar10", tmp_path)


def test_fashion_is_not_taken_for_mnist(tmp_path):
    if not (REAL / "mnist").is_dir():
        pytest.skip("no real data beside this checkout")
    write_idx(tmp_path, packed=True)
    for file in (REAL / "mnist").glob("t10k-*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="labels of mnist, not of fashion_mnist"):
        images.load("fashion_mnist", tmp_path)
    assert len(images.load("mnist", tmp_path)["test"]) == 10_000
