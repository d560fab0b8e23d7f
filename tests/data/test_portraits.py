"""Portraits out of the official layouts, written here; what is damaged is named; the drawn ones are worth learning."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from fl_utils.data import cards, portrait_drawing, portraits
from fl_utils.data.portraits import Portraits


def picture(colour, size=(24, 30)):
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "JPEG")
    return stream.getvalue()


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def write_all_age_faces(root, lists=True, aligned="aglined faces"):
    """Three women and three men; the red of each picture is its age."""
    folder = root / "All-Age-Faces Dataset"
    names = ["00000A02", "00042A35", "07380A80", "07381A03", "10000A41", "13321A79"]
    for name in names:
        write(folder / aligned / f"{name}.jpg", picture((2 * int(name[-2:]), 0, 0)))
        write(folder / "original images" / f"{name}.jpg", b"never read")
        write(folder / "key points" / f"{name}.txt", "0 0")
    if lists:
        write(folder / "image sets" / "train.txt", "00000A02.jpg 0\n00042A35.jpg 0\n07381A03.jpg 1\n")
        write(folder / "image sets" / "val.txt", "07380A80 0\r\n13321A79 1\r\n")
    return folder


def write_appa_real(root, categories="appa-real-release"):
    """Two portraits in each split; the green of each picture is twice its real age."""
    folder = root / "appa-real-release"
    number = 0
    for split in ("train", "valid", "test"):
        ages, genders = ["file_name,num_ratings,apparent_age_avg,apparent_age_std,real_age"], []
        for gender in ("male", "female"):
            age = 10 + 7 * number
            write(folder / split / f"{number:06}.jpg", b"never read")
            write(folder / split / f"{number:06}.jpg_face.jpg", picture((0, 2 * age, 0)))
            ages.append(f"{number:06}.jpg,38,{age + 0.5},4.1,{age}")
            genders.append(f"{number:06}.jpg,{gender},caucasian,nomakeup,modernphoto,neutral")
            number += 1
        write(folder / f"gt_avg_{split}.csv", "\n".join(ages) + "\n")
        head = "file,gender,race,makeup,time,happiness"
        write(root / categories / f"allcategories_{split}.csv", "\r\n".join([head, *genders]))
    return folder


UTK = ["1_0_0_20161219140623097", "26_1_3_20170104234334526", "116_1_2_20170112220255296", "24_0_1_20170116220224657 "]


def write_utkface(folder, end=".jpg.chip.jpg"):
    for name in UTK:
        write(folder / f"{name}{end}", picture((0, 0, 2 * int(name.split("_")[0]))))
    return folder


@pytest.mark.parametrize("lists", [True, False])
@pytest.mark.parametrize("where", ["", "own", "all_age_faces"])
def test_all_age_faces(tmp_path, lists, where):
    root = tmp_path / "all_age_faces" if where == "all_age_faces" else tmp_path
    folder = write_all_age_faces(root, lists, "aligned faces" if where == "own" else "aglined faces")
    found = portraits.load("all_age_faces", folder if where == "own" else tmp_path, size=12)["all_age_faces"]
    assert found.x.shape == (6, 3, 12, 12) and found.x.dtype == torch.uint8
    assert found.gender.tolist() == [0, 0, 0, 1, 1, 1] and found.age.tolist() == [2, 35, 80, 3, 41, 79]
    assert (found.x[:, 0].float().mean((1, 2)) - 2 * found.age).abs().max() < 3  # each picture with its own label


def test_all_age_faces_lists_must_agree_with_the_names(tmp_path):
    lists = write_all_age_faces(tmp_path) / "image sets"
    write(lists / "val.txt", "07380A80.jpg 0\n07381A03.jpg 0\n")
    with pytest.raises(ValueError, match=r"val\.txt, line 2: '07381A03\.jpg 0' says female, its serial number male"):
        portraits.load("all_age_faces", tmp_path)
    write(lists / "val.txt", "07380A80.jpg\n")
    with pytest.raises(ValueError, match=r"val\.txt, line 1: '07380A80\.jpg'; want a line such as"):
        portraits.load("all_age_faces", tmp_path)
    write(lists / "val.txt", b"\xff\xfe0")
    with pytest.raises(ValueError, match=r"val\.txt: not a text in UTF-8"):
        portraits.load("all_age_faces", tmp_path)


@pytest.mark.parametrize("name", ["13322A20", "0001A20", "00001A2", "somebody"])
def test_all_age_faces_picture_without_a_label(tmp_path, name):
    folder = write_all_age_faces(tmp_path)
    write(folder / "aglined faces" / f"{name}.jpg", picture((0, 0, 0)))
    with pytest.raises(
        ValueError, match=rf"{name}\.jpg: no label in its name: want a serial number from 00000 to 13321"
    ):
        portraits.load("all_age_faces", tmp_path)


@pytest.mark.parametrize("categories", ["appa-real-release", "", "allcategories_trainvalidtest_split"])
def test_appa_real(tmp_path, categories):
    folder = write_appa_real(tmp_path, categories)
    found = portraits.load("appa_real", tmp_path, size=12)["appa_real"]
    assert found.gender.tolist() == [1, 0] * 3 and found.age.tolist() == [10, 17, 24, 31, 38, 45]
    assert (found.x[:, 1].float().mean((1, 2)) - 2 * found.age).abs().max() < 3
    if categories == "appa-real-release":
        assert torch.equal(portraits.load("appa_real", folder, size=12)["appa_real"].x, found.x)


@pytest.mark.parametrize(
    ("table", "old", "new", "said"),
    [
        (
            "gt_avg_valid.csv",
            "real_age",
            "age",
            r"gt_avg_valid\.csv: no column real_age: it has file_name, num_ratings",
        ),
        ("gt_avg_valid.csv", ",24\n", ",old\n", r"gt_avg_valid\.csv, line 2: real_age is 'old', want whole years"),
        ("gt_avg_valid.csv", ",24\n", ",240\n", r"gt_avg_valid\.csv, line 2: real_age is '240', want .* 0 to 120"),
        ("gt_avg_valid.csv", ",24\n", "\n", r"gt_avg_valid\.csv, line 2: real_age is None"),
        ("gt_avg_valid.csv", "000003.jpg", "000002.jpg", r"line 3: a second and another real_age of 000002\.jpg"),
        (
            "gt_avg_valid.csv",
            "000003.jpg",
            "000033.jpg",
            r"000003\.jpg_face\.jpg: no label: .*gt_avg_valid\.csv has no",
        ),
        ("allcategories_test.csv", "gender", "sex", r"allcategories_test\.csv: no column gender"),
        ("allcategories_test.csv", ",female,", ",?,", r"line 3: gender is '\?', want female or male"),
        ("allcategories_test.csv", "000005", "000006", r"000005\.jpg_face\.jpg: no label: .*allcategories_test\.csv"),
    ],
)
def test_appa_real_tables_that_do_not_hold(tmp_path, table, old, new, said):
    path = write_appa_real(tmp_path) / table
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=said) as error:
        portraits.load("appa_real", tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_appa_real_row_without_a_picture_is_counted_and_a_missing_table_named(tmp_path):
    folder = write_appa_real(tmp_path)
    (folder / "test" / "000005.jpg_face.jpg").unlink()
    with pytest.warns(UserWarning, match="1 rows of gt_avg"):
        assert len(portraits.load("appa_real", tmp_path)["appa_real"]) == 5
    (folder / "allcategories_train.csv").unlink()
    with pytest.raises(cards.DataNotFound, match=r"lacks .*allcategories_train\.csv"):
        portraits.load("appa_real", tmp_path)


@pytest.mark.parametrize("end", [".jpg", ".jpg.chip.jpg"])
@pytest.mark.parametrize("inside", ["UTKFace", "crop_part1", ""])
def test_utkface(tmp_path, end, inside):
    write_utkface(tmp_path / inside, end)
    found = portraits.load("utkface", tmp_path, size=12)["utkface"]
    labels = sorted(zip(found.age.tolist(), found.gender.tolist(), strict=True))
    assert labels == [(1, 1), (24, 1), (26, 0), (116, 0)]  # 0 female, 1 male: turned round
    assert (found.x[:, 2].float().mean((1, 2)) - 2 * found.age).abs().max() < 3


def test_utkface_both_forms_are_one_portrait_and_names_that_lack_a_field_are_counted(tmp_path):
    write_utkface(tmp_path / "UTKFace")
    for name in UTK:
        write(tmp_path / "UTKFace" / f"{name}.jpg", b"never read")
    for name in ("61_1_20170109142408075.jpg.chip.jpg", "53__0_20170116184028385.jpg.chip.jpg"):
        write(tmp_path / "UTKFace" / name, picture((0, 0, 0)))
    with pytest.warns(UserWarning, match=r"left out 2 pictures whose names lack a field, such as 53__0_2017"):
        assert len(portraits.load("utkface", tmp_path)["utkface"]) == 4
    for name in ("25_2_0_20170116174525125.jpg", "250_1_0_20170116174525125.jpg", "portrait.jpg"):
        write(tmp_path / "UTKFace" / name, picture((0, 0, 0)))
        with pytest.raises(ValueError, match=rf"{name}: no label in its name: want \[age\]_\[gender\]_\[race\]"):
            portraits.load("utkface", tmp_path)
        (tmp_path / "UTKFace" / name).unlink()


def test_utkface_without_one_label(tmp_path):
    write(tmp_path / "UTKFace" / "61_1_20170109142408075.jpg", picture((0, 0, 0)))
    with pytest.warns(UserWarning, match="left out 1"), pytest.raises(ValueError, match="no portrait of utkface"):
        portraits.load("utkface", tmp_path)


@pytest.mark.parametrize("broken", [b"", b"no picture", picture((9, 9, 9), (64, 64))[:-300]])
@pytest.mark.parametrize("name", ["all_age_faces", "appa_real", "utkface"])
def test_a_damaged_picture_is_named(tmp_path, name, broken):
    writers = {"all_age_faces": write_all_age_faces, "appa_real": write_appa_real, "utkface": write_utkface}
    writers[name](tmp_path)
    damaged = {
        "all_age_faces": "All-Age-Faces Dataset/aglined faces/10000A41.jpg",
        "appa_real": "appa-real-release/valid/000003.jpg_face.jpg",
        "utkface": f"{UTK[1]}.jpg.chip.jpg",
    }[name]
    write(tmp_path / damaged, broken)
    with pytest.raises(ValueError, match="not a usable picture") as error:
        portraits.load(name, tmp_path)
    assert str(tmp_path / damaged) in str(error.value)


@pytest.mark.parametrize("name", ["all_age_faces", "appa_real", "utkface"])
def test_not_there_says_where_to_get_it(tmp_path, name):
    assert not cards.fetchable(cards.load(name))
    for data_dir, said in (("", "no registry package"), (tmp_path, "not found"), (tmp_path / "no", "does not exist")):
        with pytest.raises(cards.DataNotFound, match=said) as error:
            portraits.load(name, data_dir)
        assert cards.load(name).official["place"] in str(error.value)


def test_limit_and_bad_arguments(tmp_path):
    write_all_age_faces(tmp_path)
    whole = portraits.load("all_age_faces", tmp_path)["all_age_faces"]
    drawn = [portraits.load("all_age_faces", tmp_path, limit=3, seed=seed)["all_age_faces"] for seed in range(6)]
    assert whole.x.shape[2:] == (64, 64) and all(len(part) == 3 for part in drawn)
    assert len({tuple(part.age.tolist()) for part in drawn}) > 1
    kept = whole.age.tolist()
    assert all(
        [kept.index(age) for age in part.age.tolist()] == sorted(map(kept.index, part.age.tolist())) for part in drawn
    )
    for arguments, said in (
        (("imdb",), "'imdb' is not a data set of portraits: there are all_age_faces, appa_real, utkface"),
        (("utkface", "", 0), "size is 0"),
        (("utkface", "", 8, 0), "limit is 0"),
    ):
        with pytest.raises(ValueError, match=said):
            portraits.load(*arguments)


def test_targets_and_bands():
    age = torch.tensor([0, 17, 18, 34, 35, 54, 55, 99])
    found = Portraits(torch.zeros(8, 3, 4, 4, dtype=torch.uint8), torch.arange(8) % 2, age)
    assert torch.equal(found.examples("gender").y, torch.arange(8) % 2)
    assert found.examples("age", [18, 35, 55]).y.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    every_year = list(range(1, 101))  # the authors' 101 classes
    assert portraits.bands(torch.tensor([0, 1, 50, 100, 116]), every_year).tolist() == [0, 1, 50, 100, 100]
    assert portraits.midpoints(every_year).tolist() == list(range(101))
    assert portraits.midpoints([18, 35, 55]).tolist() == [8.5, 26.0, 44.5, 64.5]
    assert portraits.midpoints([20]).tolist() == [9.5, 29.5]
    for edges in ([], [0, 10], [20, 20], [30, 20], [1.5], [True]):
        with pytest.raises(ValueError, match=r"age_edges are .*: want ascending whole numbers of years"):
            found.examples("age", edges)
    with pytest.raises(ValueError, match="target is 'race': want one of 'gender', 'age'"):
        found.examples("race")
    with pytest.raises(ValueError, match=r"street: 8 examples, all of one class of age with age_edges \[110\]"):
        found.examples("age", [110], "street")
    with pytest.raises(ValueError, match="gender is torch"):
        Portraits(found.x, age[:3], age)


@pytest.fixture(scope="module")
def drawn():
    return portrait_drawing.load(24, 400, seed=0)


def test_drawn_portraits_are_balanced_and_depend_on_the_seed_alone(drawn):
    for party, found in drawn.items():
        assert found.x.shape == (400, 3, 24, 24) and found.x.dtype == torch.uint8
        assert found.gender.sum() == 200 and found.age.min() >= 1 and found.age.max() <= 85
        assert min(np.bincount(found.examples("age", [18, 35, 55]).y.numpy())) > 30
        assert (found.x.float().std((1, 2, 3)) > 10).all()  # none is blank
        again, other = (portrait_drawing.draw(party, 400, 24, seed) for seed in (0, 1))
        assert torch.equal(found.x, again.x) and torch.equal(found.age, again.age)
        assert not torch.equal(found.x, other.x) and not torch.equal(found.age, other.age)
    studio, street = drawn.values()
    assert not torch.equal(studio.gender, street.gender)
    small, large = (portrait_drawing.draw("studio", 50, size, 0) for size in (16, 48))
    assert torch.equal(small.age, large.age)  # the same people at another size
    shrunk = torch.nn.functional.avg_pool2d(large.x.float(), 3)
    assert np.corrcoef(shrunk.flatten(), small.x.flatten())[0, 1] > 0.9


def pixels(found):
    return found.x.float().flatten(1).numpy() / 255 - 0.5


def probe(x, y, ridge=100):
    """A linear classifier by least squares: what needs no network to be seen."""
    middle, coded = x.mean(0), np.eye(y.max() + 1, dtype=np.float32)[y]
    centred = x - middle
    weights = np.linalg.solve(centred.T @ centred + ridge * np.eye(x.shape[1], dtype=np.float32), centred.T @ coded)
    return lambda others, labels: (((others - middle) @ weights + coded.mean(0)).argmax(1) == labels).mean()


@pytest.mark.parametrize(("target", "least"), [("gender", 0.12), ("age", 0.03)])
def test_drawn_portraits_can_be_learned_and_less_of_it_holds_for_the_other_party(target, least):
    found = {party: portrait_drawing.draw(party, 2000, 16, seed=1) for party in portrait_drawing.STYLES}
    data = {party: (pixels(p), p.examples(target, [18, 35, 55]).y.numpy()) for party, p in found.items()}
    models = {party: probe(x[:1500], y[:1500]) for party, (x, y) in data.items()}
    score = {(a, b): models[a](data[b][0][1500:], data[b][1][1500:]) for a in models for b in models}
    for party, (_, y) in data.items():
        assert np.bincount(y).max() / len(y) + least < score[party, party] < 0.93  # above chance, not trivial
    at_home = score["studio", "studio"] + score["street", "street"]
    assert at_home > score["studio", "street"] + score["street", "studio"] + 0.1


def test_the_parties_look_different(drawn):
    x = np.concatenate([pixels(found) for found in drawn.values()])
    party = np.repeat([0, 1], 400)
    half = np.arange(800) % 2 == 0
    assert probe(x[half], party[half])(x[~half], party[~half]) > 0.8
    ages = [found.age.float() for found in drawn.values()]
    assert ages[0].mean() - ages[1].mean() > 5  # the street's people are younger


def test_bad_drawings_are_refused():
    for arguments, said in (
        (("school", 10), "'school' draws no portraits: there are studio, street"),
        (("street", 1), "count is 1, want at least 2"),
        (("street", 10, 7), "size is 7, want at least 8"),
    ):
        with pytest.raises(ValueError, match=said):
            portrait_drawing.draw(*arguments)
