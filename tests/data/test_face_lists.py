"""Official lists of faces, written here in their own layouts, good and damaged; scoring where faces are missing."""

import importlib
import time

import numpy as np
import pytest
from PIL import Image

from fl_utils import templates, verification
from fl_utils.data import cards
from fl_utils.data.cards import DataNotFound
from fl_utils.data.face_lists import (
    NAMES,
    boxed,
    cropped,
    names_of,
    overlapping,
    overview,
    people,
    require_disjoint,
)
from fl_utils.data.face_lists_protocols import dfw, ijb_a_quality, umdfaces_track, vggface2_templates
from fl_utils.data.identities import Gallery, listed_pairs
from fl_utils.verification import Pairs, kfold_accuracy, similarities, tar_at_far


def write(path, shade=100, size=(20, 24), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade % 256,) * 3).convert(mode).save(path)


def text(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


PEOPLE = ("Ada_Lovelace", "Alan_Turing", "Grace_Hopper", "Jose_Alvarez")


def lfw(root, folder="lfw"):
    for number, who in enumerate(PEOPLE):
        for image in (1, 2, 3):
            write(root / folder / who / f"{who}_{image:04d}.jpg", 40 * number + image)
    a, b, c, d = PEOPLE
    text(root / "pairs.txt", "2\t1", f"{a}\t1\t2", f"{a}\t3\t{b}\t1", f"{c}\t1\t3", f"{c}\t2\t{d}\t2")
    return root


def test_every_set_has_a_card_without_a_source():
    for name in (*NAMES, "ijb_a", "dfw"):
        card = cards.load(name)
        assert not cards.fetchable(card) and card.layouts
    for name in NAMES:
        with pytest.raises(DataNotFound, match="Get it from"):
            people(name)
    with pytest.raises(ValueError, match=r"name is 'megaface', part 'train': want one of lfw, casia_webface"):
        people("megaface")
    with pytest.raises(ValueError, match="part 'val'"):
        people("vggface2", part="val")


@pytest.mark.parametrize("folder", ["lfw", "lfw_funneled", "lfw/lfw", "."])
def test_lfw_and_its_pairs(tmp_path, folder):
    lfw(tmp_path, folder)
    if folder == "lfw/lfw":
        (tmp_path / "pairs.txt").rename(tmp_path / "lfw" / "pairs.txt")
    gallery, pairs = listed_pairs(people("lfw", tmp_path))
    assert list(gallery.people) == sorted(PEOPLE, key=lambda who: (len(who), who))
    assert pairs.same.tolist() == [True, False] * 2 and pairs.folds.tolist() == [0, 0, 1, 1]
    names = [file.name for _, file in gallery.rows()]
    assert [names[row] for row in (pairs.first[3], pairs.second[3])] == [
        "Grace_Hopper_0002.jpg",
        "Jose_Alvarez_0002.jpg",
    ]
    next(tmp_path.rglob("Jose_Alvarez_0002.jpg")).unlink()
    with pytest.raises(ValueError, match=r"pairs\.txt, line 5: lfw has no picture Jose_Alvarez/Jose_Alvarez_0002\.jpg"):
        listed_pairs(people("lfw", tmp_path))


def test_lists_of_impostors_alone_or_of_none(tmp_path):
    gallery = people("lfw", lfw(tmp_path))
    a, b, _, _ = PEOPLE
    listed = text(tmp_path / "pairs.txt", "1\t1", f"{a}\t1\t{b}\t1", f"{a}\t2\t{b}\t3")
    with pytest.raises(ValueError, match=r"pairs\.txt: 2 pairs, 0 of them genuine: want some of either kind"):
        listed_pairs(gallery)
    listed.unlink()
    with pytest.raises(DataNotFound, match="lfw: no list of pairs"):
        listed_pairs(people("lfw", tmp_path))


def test_webface_by_number_and_drawn(tmp_path):
    for number in (45, 99, 100, 117):
        for image in range(1, 5):
            write(tmp_path / "CASIA-WebFace" / f"{number:07d}" / f"{image:03d}.jpg", number)
    gallery = people("casia_webface", tmp_path)
    assert list(gallery.people) == ["0000045", "0000099", "0000100", "0000117"]
    assert overview(gallery) == (4, 16, 4)
    few, again, other = (people("casia_webface", tmp_path, "train", 2, 3, seed) for seed in (0, 0, 3))
    assert overview(few) == (2, 6, 3) and few.people == again.people != other.people
    assert people("casia_webface", tmp_path / "CASIA-WebFace").people == gallery.people
    with pytest.raises(ValueError, match="identities is -1"):
        people("casia_webface", tmp_path, identities=-1)


def vggface2(root, kind="pose", subjects=2, where="meta"):
    listed = []
    for subject in range(1, subjects + 1):
        for image in range(30 if kind == "pose" else 20):
            write(root / "test" / f"n{subject:06d}" / f"{image:04d}_01.jpg", image)
            listed.append(f"n{subject:06d}/{image:04d}_01.jpg")
    text(root / where / f"test_{kind}temp_imglist.txt", *listed)
    return listed


@pytest.mark.parametrize(("kind", "where"), [("pose", "meta"), ("pose", "."), ("age", "meta")])
def test_vggface2_and_its_templates(tmp_path, kind, where):
    vggface2(tmp_path, kind, where=where)
    gallery, found = vggface2_templates(tmp_path, kind)
    views = found.views
    assert views == (("front", "three-quarter", "profile") if kind == "pose" else ("young", "mature"))
    assert found.members.shape == (2, len(views), 2, 5)
    files = [f"{who}/{file.name}" for who, file in gallery.rows()]
    for subject in (0, 1):
        listed = [files[row] for row in found.members[subject].ravel()]
        assert listed == [f"n{subject + 1:06d}/{image:04d}_01.jpg" for image in range(10 * len(views))]
    assert people("vggface2", tmp_path, "test").people.keys() == {"n000001", "n000002"}
    with pytest.raises(DataNotFound, match=r"no folder .*train"):
        people("vggface2", tmp_path)
    with pytest.raises(ValueError, match="kind is 'smile': want one of pose, age"):
        vggface2_templates(tmp_path, "smile")


def test_damaged_lists_of_templates(tmp_path):
    listed = vggface2(tmp_path)
    path = tmp_path / "meta" / "test_posetemp_imglist.txt"
    text(path, *listed[:-1])
    with pytest.raises(ValueError, match="29 pictures of n000002: want 30 of each subject"):
        vggface2_templates(tmp_path, "pose")
    text(path, "")
    with pytest.raises(ValueError, match="0 pictures of anybody: want 30 of each subject"):
        vggface2_templates(tmp_path, "pose")
    text(path, *listed[:-1], "n000002/9999_01.jpg")
    with pytest.raises(ValueError, match=r"imglist\.txt, line 60: no picture 'n000002/9999_01\.jpg'"):
        vggface2_templates(tmp_path, "pose")
    path.write_bytes(b"\xff\xfe\x81")
    with pytest.raises(ValueError, match=r"imglist\.txt: not a text file"):
        vggface2_templates(tmp_path, "pose")
    path.unlink()
    with pytest.raises(DataNotFound, match=r"0 files test_posetemp_imglist\.txt or meta/test_posetemp"):
        vggface2_templates(tmp_path, "pose")


def test_vggface2s_boxes_cut_out_the_face(tmp_path):
    vggface2(tmp_path, "age", 1)
    picture = np.zeros((40, 30, 3), dtype=np.uint8)
    picture[10:30, 5:25] = 200
    Image.fromarray(picture).save(tmp_path / "test/n000001/0000_01.jpg", quality=100)
    gallery = people("vggface2", tmp_path, "test")
    table = [f'"n000001/{image:04d}_01",5,10,20,20' for image in range(20)]
    path = text(tmp_path / "bb_landmark" / "loose_bb_test.csv", "NAME_ID,X,Y,W,H", *table, '"n000009/0001_01",1,1,2,2')
    loaded = boxed(gallery, path).load(16, align="box")
    assert loaded.x[0].float().mean() > 195 and (boxed(gallery, path).load(16, 1, "box").x[1:].float() < 30).all()
    text(path, "NAME_ID,X,Y,W,H", *table[1:])
    with pytest.raises(ValueError, match=r"no box of n000001/0000_01 \(1 of 20 lack one\)"):
        boxed(gallery, path)
    for line, said in (
        ("5,10,0,20", "W '0'.*above 0"),
        ("5,10,x,20", "W 'x'"),
        ("5,nan,2,2", "Y 'nan'"),
        ("5", "under Y"),
    ):
        text(path, "NAME_ID,X,Y,W,H", *table[1:], f'"n000001/0000_01",{line}')
        with pytest.raises(ValueError, match=rf"loose_bb_test\.csv, line 21: .*{said}"):
            boxed(gallery, path)
    text(path, "NAME_ID,X,Y,W", *table)
    with pytest.raises(ValueError, match="no column H; want NAME_ID, X, Y, W, H"):
        boxed(gallery, path)
    with pytest.raises(ValueError, match=r"0000_01\.jpg: vggface2 has no box of it"):
        gallery.load(16, align="box")


@pytest.mark.parametrize("below", [".", "train_msra"])
def test_deepglints_list(tmp_path, below):
    numbers = " ".join(map(str, np.linspace(3, 18, 10)))
    listed = []
    for label, who in enumerate(("m.0107_f", "m.02mjmr")):
        for image in range(3):
            write(tmp_path / below / "msra" / who / f"{image}-FaceId-0.jpg", image)
            listed.append(f"msra/{who}/{image}-FaceId-0.jpg {label} {numbers}")
    text(tmp_path / "msra_lmk", *listed)
    gallery = people("ms_celeb_1m", tmp_path)
    assert overview(gallery) == (2, 6, 3) and gallery.landmarks.keys() == {
        f"{who}/{image}-FaceId-0.jpg" for who in gallery.people for image in range(3)
    }
    assert len(gallery.load(12)) == 6 and len(people("ms_celeb_1m", tmp_path, identities=1)) == 3
    for bad, said in (
        ("msra/m.1/0.jpg", "want folder/file.jpg, label"),
        ("msra/m.0107_f/9.jpg 7 1 2", "m.0107_f has the label 7, and 0 before"),
    ):
        text(tmp_path / "msra_lmk", *listed, bad)
        with pytest.raises(ValueError, match=rf"msra_lmk, line 7: .*{said}"):
            people("ms_celeb_1m", tmp_path)
    text(tmp_path / "msra_lmk", "else/m.1/0.jpg 0")
    with pytest.raises(ValueError, match=r"line 1: no picture else/m\.1/0\.jpg in"):
        people("ms_celeb_1m", tmp_path)
    text(tmp_path / "msra_lmk", "")
    with pytest.raises(ValueError, match="no pictures listed"):
        people("ms_celeb_1m", tmp_path)


def umdfaces(root):
    for batch, group in ((1, ("aamir_khan", "abel_reyes")), (2, ("zoe_bell",))):
        folder = root / f"umdfaces_batch{batch}"
        table = ["SUBJECT_ID,FILE,FACE_X,FACE_Y,FACE_WIDTH,FACE_HEIGHT,YAW,PITCH,ROLL"]
        for subject, who in enumerate(group):
            for image in range(1, 5):
                write(folder / who / f"{who}_{image:04d}.jpg", image)
                table.append(f"{subject},{who}/{who}_{image:04d}.jpg,2.5,3,12,12,{10 * image},0,0")
        text(folder / f"umdfaces_batch{batch}_ultraface.csv", *table)
    a, b = ("aamir_khan/aamir_khan_000", "zoe_bell/zoe_bell_000")
    lines = [f"{a}{i}.jpg,{a}{i + 1}.jpg,1" for i in (1, 2, 3)] + [f"{a}{i}.jpg,{b}{i}.jpg,0" for i in (1, 2, 3)]
    text(root / "umdfaces_test_easy.csv", *lines)
    return lines


def test_umdfaces_and_its_tracks(tmp_path):
    listed = umdfaces(tmp_path)
    gallery = people("umdfaces", tmp_path)
    assert overview(gallery) == (3, 12, 4) and gallery.load(8, align="box").x.shape == (12, 3, 8, 8)
    assert set(gallery.boxes.values()) == {(2.5, 3, 14.5, 15)} and len(people("umdfaces", tmp_path, identities=1)) == 4
    kept, pairs = umdfaces_track(tmp_path, "easy")
    files = [file.name for _, file in kept.rows()]
    assert pairs.same.tolist() == [True] * 3 + [False] * 3 and len(kept) == 7
    assert (files[pairs.first[4]], files[pairs.second[4]]) == ("aamir_khan_0002.jpg", "zoe_bell_0002.jpg")
    assert len(kept.load_found(8, align="box").failures) == 0
    for bad, said in (
        ("aamir_khan/aamir_khan_0001.jpg", "want two pictures and 1"),
        ("aamir_khan/aamir_khan_0001.jpg zoe_bell/zoe_bell_0009.jpg 0", "no picture zoe_bell/zoe_bell_0009"),
        ("aamir_khan/aamir_khan_0001.jpg,zoe_bell/zoe_bell_0001.jpg,1", "is labelled 1, of aamir_khan and zoe_bell"),
    ):
        text(tmp_path / "umdfaces_test_easy.csv", *listed, bad)
        with pytest.raises(ValueError, match=rf"test_easy\.csv, line 7: .*{said}"):
            umdfaces_track(tmp_path, "easy")
    text(tmp_path / "umdfaces_test_easy.csv", *listed[3:])
    with pytest.raises(ValueError, match="3 pairs, 0 of them genuine"):
        umdfaces_track(tmp_path, "easy")
    text(tmp_path / "umdfaces_test_easy.csv", *listed)
    (tmp_path / "umdfaces_batch2/zoe_bell/zoe_bell_0003.jpg").unlink()
    with pytest.raises(ValueError, match=r"no picture .*zoe_bell_0003\.jpg \(1 of 7 are missing\)"):
        umdfaces_track(tmp_path, "easy")
    with pytest.raises(DataNotFound, match=r"0 files \*difficult\*\.csv"):
        umdfaces_track(tmp_path, "difficult")
    with pytest.raises(ValueError, match="track is 'hard'"):
        umdfaces_track(tmp_path, "hard")


def ijb_a(root):
    head = "TEMPLATE_ID,SUBJECT_ID,FILE,MEDIA_ID,SIGHTING_ID,FACE_X,FACE_Y,FACE_WIDTH,FACE_HEIGHT"
    faces = [f"{10 + i},{1 + i % 2},img/{i}.jpg,1,2,2,3,10,12" for i in range(6)] + ["3,2,img/0.jpg,1,2,8,3,10,12"]
    text(root / "IJB-A_11_sets/split1/train_1.csv", head, *faces[:4])
    text(root / "IJB-A_11_sets/split1/verify_metadata_1.csv", head, *faces[3:])
    for image in range(6):
        write(root / f"images/img/{image}.jpg", image)
    return text(
        root / "quality.txt", "img/0.jpg 1 10", "img/0.jpg 2 70.5", "img/1.jpg: 30", "img/2.jpg,59.9", "img/3.jpg 60"
    )


@pytest.mark.parametrize("below", ["", "IJB-A_11_sets"])
def test_ijb_a_by_quality(tmp_path, below):
    listed = ijb_a(tmp_path)
    with pytest.warns(UserWarning, match=r"quality\.txt: no number for 2 of 7 faces"):
        groups = ijb_a_quality(tmp_path / below, listed, (30, 60))
    named = {group: [(who, file.name) for who, file in gallery.rows()] for group, gallery in groups.items()}
    assert named == {
        "low": [("1", "0.jpg")],
        "middle": [("2", "1.jpg"), ("1", "2.jpg")],
        "high": [("2", "0.jpg"), ("2", "3.jpg")],
    }
    assert next(iter(groups["high"].boxes.values())) == (2, 3, 12, 15)
    assert groups["high"].load(8, 1, "box").x.shape == (2, 1, 8, 8)


@pytest.mark.filterwarnings("ignore:.*no number for")
def test_qualities_of_nobody(tmp_path):
    listed = ijb_a(tmp_path)
    good = listed.read_text().splitlines()
    for bad, said in (
        ("img/9.jpg 3", "no face img/9.jpg"),
        ("img/1.jpg 1 3", "no face img/1.jpg 1 in"),
        ("img/0.jpg 3", "img/0.jpg shows 2, 1: say between"),
        ("img/1.jpg good", "want a picture and a number"),
        ("img/1.jpg", "want a picture and a number"),
    ):
        text(listed, *good, bad)
        with pytest.raises(ValueError, match=rf"quality\.txt, line 6: .*{said}"):
            ijb_a_quality(tmp_path, listed, (30, 60))
    text(listed, *good)
    with pytest.raises(ValueError, match=r"bounds are \(60, 30\)"):
        ijb_a_quality(tmp_path, listed, (60, 30))
    (tmp_path / "images/img/3.jpg").unlink()
    with pytest.raises(ValueError, match=r"no picture .*3\.jpg \(1 of 2 are missing\)"):
        ijb_a_quality(tmp_path, listed, (30, 60))


def disguised(root):
    """Two subjects, of whom the second's pictures are listed in between; the list has a blank after a slash."""
    files = ["Ada/Ada.jpg", "Ada/Ada_a.jpg", "Bob B/Bob B.jpg", "Ada/Ada_h_001.jpg", "Bob B/Bob B_I_001.jpg"]
    for number, file in enumerate(files):
        write(root / "Testing_data" / file, number)
    listed = [f"Testing_data/{file}".replace("Bob B/", "Bob B/ ") for file in files]
    text(root / "Testing_data_face_name.txt", *listed)
    boxes = [f"{name} 1 2 {10 + n} 20" for n, name in enumerate(listed)]
    text(root / "Testing_data_face_coordinate.txt", *boxes)
    kinds = ["01212", "10222", "92002", "33303", "44440"]  # below the diagonal: not looked at
    text(root / "Testing_data_mask_matrix.txt", *(" ".join(row) for row in kinds))
    return kinds


def test_disguised_faces(tmp_path):
    disguised(tmp_path)
    gallery, kinds = dfw(tmp_path)
    assert [file.name for _, file in gallery.rows()] == [
        "Ada.jpg",
        "Ada_a.jpg",
        "Ada_h_001.jpg",
        "Bob B.jpg",
        "Bob B_I_001.jpg",
    ]
    assert (kinds == kinds.T).all() and kinds.diagonal().sum() == 0
    assert kinds[0].tolist() == [0, 1, 1, 2, 2] and kinds[2].tolist() == [1, 2, 0, 0, 3]
    assert gallery.boxes["Bob B", tmp_path / "Testing_data/Bob B/Bob B_I_001.jpg"] == (1, 2, 14, 20)
    assert len(gallery.load_found(8, align="box").failures) == 0
    features = np.random.default_rng(0).normal(size=(5, 4))
    found = templates.tar_masked(features, kinds, (0.2,))
    assert (found.genuine, found.impostor) == (2, 6)
    with pytest.raises(ValueError, match="part is 'Validation'"):
        dfw(tmp_path, "Validation")
    with pytest.raises(DataNotFound, match=r"0 files Training_data_face_name\.txt"):
        dfw(tmp_path, "Training")


def test_disguised_faces_damaged(tmp_path):
    rows = disguised(tmp_path)
    matrix, names = tmp_path / "Testing_data_mask_matrix.txt", tmp_path / "Testing_data_face_name.txt"
    for bad, said in (
        (rows[:4], "4 lines of digits; want 5"),
        (["0121", *rows[1:]], "line 1: 4 digits"),
        (["012x2"], "x 5"),
    ):
        text(matrix, *bad)
        with pytest.raises(ValueError, match=rf"mask_matrix\.txt.*{said}"):
            dfw(tmp_path)
    text(matrix, *rows, rows[0])
    with pytest.raises(ValueError, match=r"line 6: 5 digits; want a matrix of 5 x 5"):
        dfw(tmp_path)
    text(matrix, *rows)
    boxes = tmp_path / "Testing_data_face_coordinate.txt"
    good = boxes.read_text().splitlines()
    text(boxes, *good[:4])
    with pytest.raises(ValueError, match=r"Bob B_I_001\.jpg has no coordinates \(1 of 5 lack them\)"):
        dfw(tmp_path)
    text(boxes, *good[:4], "Testing_data/Ada/Ada.jpg 1 2 3")
    with pytest.raises(ValueError, match=r"coordinate\.txt, line 5: .*want a picture, left, top, right and bottom"):
        dfw(tmp_path)
    text(names, *names.read_text().splitlines(), "Testing_data/Ada/Ada_9.jpg")
    with pytest.raises(ValueError, match=r"face_name\.txt, line 6: no picture: 'Testing_data/Ada/Ada_9\.jpg'"):
        dfw(tmp_path)


def known(name, *who):
    return Gallery(name, {each: (f"{each}/1.jpg",) for each in who})


def test_people_in_training_and_test_are_found_by_name(tmp_path):
    test = known("lfw", *PEOPLE)
    train = known("umdfaces", "grace_hopper", "josé_álvarez", "someone_else")
    assert overlapping(train, test) == ["grace_hopper", "josé_álvarez"]
    with pytest.raises(
        ValueError, match="2 of 3 identities of umdfaces are also tested on: grace_hopper, josé_álvarez;"
    ):
        require_disjoint(train, test)
    require_disjoint(train.without(overlapping(train, test)), test)
    assert overview(train.without(overlapping(train, test))) == (1, 1, 1)
    text(
        tmp_path / "identity_meta.csv",
        "Class_ID, Name, Sample_Num, Flag, Gender",
        'n000077, "Grace, Hopper", 319, 1, f',
    )
    text(tmp_path / "names.txt", "0000045 Alan_Turing", "0000099 Nobody Known")
    names = names_of(tmp_path / "identity_meta.csv") | names_of(tmp_path / "names.txt")
    assert names == {"n000077": "Grace, Hopper", "0000045": "Alan_Turing", "0000099": "Nobody Known"}
    webface, faces2 = known("casia_webface", "0000045", "0000099"), known("vggface2", "n000077")
    assert overlapping(webface, test, faces2, names=names) == ["0000045"]
    assert overlapping(faces2, test, webface, names=names) == ["n000077"]
    text(tmp_path / "names.txt", "0000045")
    with pytest.raises(ValueError, match=r"names\.txt, line 1: '0000045'; want an identity and a name"):
        names_of(tmp_path / "names.txt")


def test_identities_without_a_name_are_not_compared_in_silence():
    webface, number = known("casia_webface", "0000045"), known("ijb_a low", "45")
    for test in (known("lfw", *PEOPLE), number, known("vggface2", "n000045")):
        with pytest.raises(ValueError, match="identity without a name"):
            overlapping(webface, test)
    assert overlapping(webface, known("casia_webface", "0000045")) == ["0000045"]
    freebase = known("ms_celeb_1m", "m.0107_f", "m.01")
    assert overlapping(freebase, known("rfw African", "m.01")) == ["m.01"]


def faulty(root):
    """LFW with a picture that is damaged, one of 16 bits and one in grey."""
    lfw(root)
    damaged = root / "lfw/Ada_Lovelace/Ada_Lovelace_0002.jpg"
    damaged.write_bytes(damaged.read_bytes()[:200])
    deep = root / "lfw/Jose_Alvarez/Jose_Alvarez_0002"
    deep.with_suffix(".jpg").unlink()
    Image.fromarray(np.zeros((20, 20), dtype=np.uint16)).save(deep.with_suffix(".png"))
    write(root / "lfw/Grace_Hopper/Grace_Hopper_0001.jpg", 90, mode="L")
    return listed_pairs(people("lfw", root))


def test_pictures_that_are_none_are_refused_or_named_and_counted(tmp_path):
    gallery, pairs = faulty(tmp_path)
    with pytest.raises(ValueError, match=r"Ada_Lovelace_0002\.jpg: not a usable picture"):
        gallery.load(16)
    loaded = gallery.load_found(16)
    assert loaded.examples.x.shape == (8, 3, 16, 16) and loaded.found.sum() == 6
    assert (loaded.examples.x[~loaded.found] == 0).all() and len(loaded.usable()) == 6
    grey = [file.name for _, file in gallery.rows()].index("Grace_Hopper_0001.jpg")
    assert loaded.found[grey] and (loaded.examples.x[grey] == 90).all()
    first, second = loaded.lines(pairs)
    assert first.startswith("Ada_Lovelace/Ada_Lovelace_0002.jpg: not a usable picture") and first.endswith(
        "pairs with it: 1"
    )
    assert "Jose_Alvarez_0002.png" in second and "more than 8 bits a channel" in second


def test_crops_and_the_list_of_their_failures(tmp_path):
    gallery, pairs = listed_pairs(people("lfw", lfw(tmp_path)))
    crops = tmp_path / "crops"
    for who, file in gallery.rows():
        write(crops / who / f"{file.stem}.png", 7, (9, 9))
    (crops / "Grace_Hopper/Grace_Hopper_0003.png").unlink()
    with pytest.raises(ValueError, match=r"no crop of Grace_Hopper/Grace_Hopper_0003\.jpg, and failures\.csv gives no"):
        cropped(gallery, crops)
    text(crops / "failures.csv", "file,reason", "Grace_Hopper/Grace_Hopper_0003.jpg,no face")
    found = cropped(gallery, crops)
    assert [who for who, _ in found.rows()] == [who for who, _ in gallery.rows()]
    loaded = found.load_found(9)
    assert loaded.lines(pairs) == ["Grace_Hopper/Grace_Hopper_0003.jpg: no face; pairs with it: 1"]
    assert (loaded.examples.x[loaded.found] == 7).all()
    with pytest.raises(ValueError, match=r"Grace_Hopper_0003\.jpg: no face"):
        found.load(9)


FOUND = np.array([True, True, True, False])
SIX = Pairs([0, 0, 1, 0, 1, 0], [1, 2, 2, 3, 3, 1], [True, False, False, True, False, True], [0, 0, 0, 1, 1, 1])


def test_a_pair_without_a_face_is_wrong_left_out_or_refused():
    rows = np.array([[1.0, 0], [1, 0], [0, 1], [np.nan, np.nan]])
    scores = similarities(rows, SIX, FOUND)
    assert scores[[0, 1, 2, 5]].tolist() == [1, 0, 0, 1] and np.isnan(scores[[3, 4]]).all()
    with pytest.raises(ValueError, match="similarity 3 is not finite"):
        kfold_accuracy(scores, SIX.same, SIX.folds)
    folds = np.array([0, 0, 1, 1, 0, 1])  # in either a genuine and an impostor pair that are right, and one without
    wrong = kfold_accuracy(scores, SIX.same, folds, undetected="wrong")
    left = kfold_accuracy(scores, SIX.same, folds, undetected="left out")
    assert wrong.mean == pytest.approx(2 / 3) and left.mean == 1
    assert wrong.thresholds.tolist() == left.thresholds.tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="undetected is 'ignored': want one of 'refuse', 'wrong', 'left out'"):
        kfold_accuracy(scores, SIX.same, folds, undetected="ignored")
    with pytest.raises(ValueError, match=r"3 pairs \(3 more without a face\), 3 of them genuine"):
        kfold_accuracy(np.where(SIX.same, 1, np.nan), SIX.same, 2, undetected="wrong")
    with pytest.raises(ValueError, match="found has shape"):
        similarities(rows, SIX, FOUND[:3])
    with pytest.raises(ValueError, match="features of picture 3 have length nan"):
        similarities(rows, SIX)


def test_rates_with_pairs_without_a_face():
    scores = np.array([0.9, 0.2, np.nan, np.nan, 0.5, 0.4, 0.3, 0.1])
    same = np.array([True, True, True, False, False, False, False, False])
    # wrong: of three genuine pairs 0.9 is above 0.5; of five impostors one may be accepted, so 0.4 bounds
    assert tar_at_far(scores, same, 0.2, "wrong") == pytest.approx(1 / 3)
    assert tar_at_far(scores, same, 0.8, "wrong") == pytest.approx(2 / 3)  # never 1: one has no face
    assert tar_at_far(scores, same, 0.25, "left out") == 0.5
    with pytest.raises(ValueError, match="with 4 impostor pairs: one of them is more; want 5"):
        tar_at_far(scores, same, 0.2, "left out")
    with pytest.raises(ValueError, match="similarity 2 is not finite"):
        tar_at_far(scores, same, 0.2)


def test_six_thousand_pairs_of_512_numbers_in_seconds():
    random = np.random.default_rng(0)
    features = random.normal(size=(7000, 512)).astype(np.float32)
    first, same = random.integers(0, 3500, 6000), np.arange(6000) % 600 < 300
    features[3500:] += 0.5 * features[:3500]
    second = np.where(same, first + 3500, (first + 1 + random.integers(0, 3000, 6000)) % 3500 + 3500)
    pairs = Pairs(first, second, same, np.arange(6000) // 600)
    importlib.import_module("sklearn.metrics")  # seconds of its own, once
    started = time.process_time()
    scores = verification.similarities(features, pairs, random.random(7000) > 0.001)
    accuracy = kfold_accuracy(scores, pairs.same, pairs.folds, undetected="wrong")
    rate = tar_at_far(scores, pairs.same, 0.001, "wrong")
    assert time.process_time() - started < 4
    assert 0.95 < accuracy.mean < 1 and 0.9 < rate < 1 and len(accuracy.thresholds) == 10
