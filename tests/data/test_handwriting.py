"""Handwriting out of its official formats: polarity, frame, labels, writers; and what is damaged is named."""

import functools
import io
import json
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from fl_utils.data import cards, handwriting, hwdb

REAL = Path(__file__).resolve().parents[3] / "shared" / "real"
NUMERALS, ALPHABET = handwriting.NUMERALS, handwriting.ALPHABET


def tag(character):
    """2 bytes, as .gnt files have them: letters and digits stand in the first."""
    return character.encode("gb2312").ljust(2, b"\0")


def sample(character, pixels):
    height, width = pixels.shape
    return struct.pack("<I2sHH", 10 + pixels.size, tag(character), width, height) + pixels.tobytes()


def page(characters, seed=0, height=40, width=30):
    """A writer's .gnt: on white (255), each character a grey bar whose row tells which character it is."""
    random = np.random.default_rng(seed)
    samples = []
    for place, character in enumerate(characters):
        pixels = np.full((height, width), 255, np.uint8)
        pixels[4 * (place % 8) : 4 * (place % 8) + 4] = random.integers(0, 100)
        samples.append(sample(character, pixels))
    return b"".join(samples)


def write_casia(root, characters="啊阿埃", writers=(1001, 1002, 1241)):
    for writer in writers:
        folder = root / ("HWDB1.1trn_gnt" if writer < 1241 else "HWDB1.1tst_gnt")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{writer}-c.gnt").write_bytes(page(characters, writer))
    return root


def hit_images(count, side=128, ink=255):
    """Each picture a bar of ink on the other grey, in a row that tells its number."""
    pixels = np.full((count, side, side), 255 - ink, np.uint8)
    for number in range(count):
        pixels[number, 10 * (number % 10) + 5 : 10 * (number % 10) + 15, 20:100] = ink
    return struct.pack("<IBB", count, side, side) + pixels.tobytes()


def hit_labels(characters, header=True):
    codes = b"".join(map(tag, characters))
    return (struct.pack("<HB", len(characters), 2) if header else b"") + codes


def write_hit(root, characters="0A啊阿埃", writers=(1, 2, 10), header=True, ink=255, labels="labels"):
    root.mkdir(parents=True, exist_ok=True)
    for writer in writers:
        (root / f"{writer}_images").write_bytes(hit_images(len(characters), ink=ink))
    (root / labels).write_bytes(hit_labels(characters, header))
    return root


def zipped(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def picture(pixels, kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def refused(said, *arguments, **options):
    """The one-line message of the ValueError that loading raises."""
    with pytest.raises(ValueError, match=said) as error:
        handwriting.load(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_level_1_is_in_the_order_of_its_codes():
    characters = hwdb.characters()
    assert len(set(characters)) == 3755 and characters[0] == "啊" and characters[-1] == "座"
    codes = [character.encode("gb2312") for character in characters]
    assert codes == sorted(codes) and [hwdb.place(code) for code in codes] == list(range(3755))
    assert [hwdb.place(tag(other)) for other in "7aZ。，亍鼾"] == [-1] * 7  # the last two are level 2


# CASIA


def test_gnt_files_become_framed_images_with_high_ink(tmp_path):
    write_casia(tmp_path, "a啊,阿9埃")
    found = handwriting.load("casia_hwdb", tmp_path)["casia"]
    assert found.x.dtype == torch.uint8 and found.x.shape == (9, 1, 64, 64)
    assert found.y.tolist() == [0, 1, 2] * 3 and found.groups.tolist() == [1001] * 3 + [1002] * 3 + [1241] * 3
    # 40 x 30 in the frame of 56: 56 x 42, from row 4 and column 11
    assert not found.x[:, 0, :4].any() and not found.x[:, 0, 60:].any()
    assert not found.x[:, 0, :, :11].any() and not found.x[:, 0, :, 53:].any()
    for place, image in enumerate(found.x[:3, 0]):
        bar = (2 * place + 1) * 4  # its row before, among a, 啊, the comma, 阿, 9, 埃
        rows = image[:, 32].float()
        centre = float((rows * torch.arange(64)).sum() / rows.sum())
        assert abs(centre - (4 + (bar + 1.5) * 56 / 40)) < 1 and image.max() > 140


def test_gnt_pixels_are_kept_exactly_where_nothing_is_scaled(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (28, 20), dtype=np.uint8)
    (tmp_path / "1001-c.gnt").write_bytes(sample("啊", pixels) + sample("阿", 255 - pixels))
    found = handwriting.load("casia_hwdb", tmp_path, size=32)["casia"].x.numpy()
    assert np.array_equal(found[0, 0, 2:30, 6:26], 255 - pixels) and np.array_equal(found[1, 0, 2:30, 6:26], pixels)
    assert int(found[0].sum()) == int((255 - pixels.astype(int)).sum())


def test_the_first_characters_in_code_order_and_the_drawn_writers(tmp_path):
    write_casia(tmp_path, "座一啊丁", writers=range(1001, 1011))
    whole = handwriting.load("casia_hwdb", tmp_path)["casia"]
    assert whole.y.tolist() == [3, 2, 0, 1] * 10  # 啊 B0A1, 丁 B6A1, 一 D2BB, 座 D7F9
    two = handwriting.load("casia_hwdb", tmp_path, classes=2)["casia"]
    assert two.y.tolist() == [0, 1] * 10
    some = [handwriting.load("casia_hwdb", tmp_path, writers=4, seed=seed)["casia"] for seed in (0, 0, 1)]
    kept = [sorted(set(part.groups.tolist())) for part in some]
    assert len(kept[0]) == 4 and kept[0] == kept[1] != kept[2]
    assert torch.equal(some[0].x, whole.take(np.flatnonzero(np.isin(whole.groups, kept[0]))).x)


@pytest.mark.parametrize("form", ["other folders", "deeper", "flat", "zip", "one zip", "zip as data_dir"])
def test_casia_layouts(tmp_path, form):
    whole = handwriting.load("casia_hwdb", write_casia(tmp_path / "a"))["casia"]
    where, writers = tmp_path / "b", 3
    where.mkdir()
    files = {path.name: path.read_bytes() for path in sorted((tmp_path / "a").glob("*/*.gnt"))}
    if form in ("other folders", "deeper"):
        trn, tst = {"deeper": ("HWDB1.1trn_gnt/HWDB1.1trn_gnt", "HWDB1.1tst_gnt/x")}.get(
            form, ("Gnt1.1Train", "Gnt1.1Test")
        )
        for name, data in files.items():
            path = where / (trn if name < "1241" else tst) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    elif form == "flat":
        for name, data in files.items():
            (where / name).write_bytes(data)
    else:
        zipped(where / "HWDB1.1trn_gnt.zip", {n: d for n, d in files.items() if n < "1241"} | {"readme.txt": b"x"})
        if form == "zip":
            zipped(where / "HWDB1.1tst_gnt.zip", {f"HWDB1.1tst_gnt/{n}": d for n, d in files.items() if n >= "1241"})
        else:
            writers = 2
        if "as data_dir" in form:
            where = where / "HWDB1.1trn_gnt.zip"
    found = handwriting.load("casia_hwdb", where)["casia"]
    assert torch.equal(found.x, whole.x[: 3 * writers]) and torch.equal(found.groups, whole.groups[: 3 * writers])


def test_an_alz_inside_the_zip_is_explained(tmp_path):
    zipped(tmp_path / "HWDB1.1tst_gnt.zip", {"HWDB1.1tst_gnt.alz": b"ALZ\x01"})
    refused(r"HWDB1\.1tst_gnt\.zip: no \.gnt file; an \.alz in it has to be unpacked", "casia_hwdb", tmp_path)
    data = bytearray((tmp_path / "HWDB1.1tst_gnt.zip").read_bytes())
    (tmp_path / "HWDB1.1tst_gnt.zip").write_bytes(data[:-10])
    refused(r"HWDB1\.1tst_gnt\.zip: truncated or damaged", "casia_hwdb", tmp_path)


def broken_pages():
    good = page("啊阿埃")
    size = len(good) // 3
    return {
        "empty, want the samples": b"",
        f"sample 3 at byte {2 * size:,} is truncated: {size - 7:,} of its {size:,} bytes": good[:-7],
        f"sample 3 at byte {2 * size:,} is truncated: 9 bytes are left": good[: 2 * size + 9],
        "sample 2 at byte 1,210 says that it has 1,211 bytes, but 30 x 40 pixels": good[:size]
        + struct.pack("<I2sHH", size + 1, tag("阿"), 30, 40)
        + good[size + 10 :],
        "sample 1 at byte 0 has 0 x 40 pixels": struct.pack("<I2sHH", 10, tag("阿"), 0, 40),
        "sample 1 at byte 0 says that": b"\x89PNG\r\n\x1a\n" + bytes(range(1, 100)),
        "sample 2 at byte 1,210: the tag code ff ff is no character of GB2312": good[:size]
        + good[size : size + 4]
        + b"\xff\xff"
        + good[size + 6 :],
    }


@pytest.mark.parametrize("said", broken_pages())
def test_a_damaged_gnt_is_named_with_the_sample(tmp_path, said):
    write_casia(tmp_path)
    file = tmp_path / "HWDB1.1tst_gnt/1241-c.gnt"
    file.write_bytes(broken_pages()[said])
    assert refused(said, "casia_hwdb", tmp_path).startswith(f"{file}: ")


def test_gnt_names_must_tell_the_writers(tmp_path):
    (tmp_path / "x.gnt").write_bytes(page("啊阿"))
    refused(r"x\.gnt: want the writer's number", "casia_hwdb", tmp_path)
    write_casia(tmp_path)
    (tmp_path / "HWDB1.1trn_gnt/1241-c.gnt").write_bytes(page("啊阿"))
    refused(r"1241-c\.gnt: a second file of writer 1241", "casia_hwdb", tmp_path)


# HIT-OR3C


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("ink", [0, 255])
def test_hit_in_both_variants_and_polarities(tmp_path, header, ink):
    write_hit(tmp_path, header=header, ink=ink, labels="labels" if header else "labels.txt")
    found = handwriting.load("hit_or3c", tmp_path)["hit"]
    assert found.x.shape == (9, 1, 64, 64) and found.y.tolist() == [0, 1, 2] * 3
    assert found.groups.tolist() == [1] * 3 + [2] * 3 + [10] * 3
    assert not found.x[:, 0, :4].any() and found.x.amax((1, 2, 3)).eq(255).all()
    for number, image in enumerate(found.x[:3, 0], 2):  # after 0 and A
        rows = image.float().sum(1)
        assert abs(float((rows * torch.arange(64)).sum() / rows.sum()) - (4 + (10 * number + 9.5) * 56 / 128)) < 1


def test_hit_folders_with_labels_each_or_above(tmp_path):
    write_hit(tmp_path / "own/GB1", "啊阿")
    write_hit(tmp_path / "own/digit", "012")
    assert handwriting.load("hit_or3c", tmp_path / "own")["hit"].y.tolist() == [0, 1] * 3
    write_hit(tmp_path / "above/trn", "啊阿", (1, 2))
    write_hit(tmp_path / "above/tst", "啊阿", (3,))
    (tmp_path / "above/trn/labels").rename(tmp_path / "above/labels")
    (tmp_path / "above/tst/labels").unlink()
    found = handwriting.load("hit_or3c", tmp_path / "above", writers=2, classes=2)["hit"]
    assert len(found) == 4 and len(found.groups.unique()) == 2


def test_damaged_hit_files_are_named(tmp_path):
    (write_hit(tmp_path / "a") / "labels").unlink()
    with pytest.raises(cards.DataNotFound, match=r"lacks labels\|labels\.txt"):
        handwriting.load("hit_or3c", tmp_path / "a")
    root, good = write_hit(tmp_path / "b"), hit_images(5)
    for data, said in (
        (b"", r"2_images: 0 bytes, its header alone has 6: empty"),
        (good[:-1], r"2_images: .*, but 5 samples of 128 x 128 pixels .* make 81,926: truncated"),
        (good + b"x", r"2_images: .*: damaged"),
        (hit_images(4), r"2_images has 4 samples, but .*labels has 5 labels"),
    ):
        (root / "2_images").write_bytes(data)
        refused(said, "hit_or3c", root)
    (root / "2_images").write_bytes(good)
    labels = hit_labels("0A啊阿埃")
    for data, said in (
        (b"", r"labels: empty"),
        (labels[:-2], r"labels: 11 bytes, but its header announces 5 labels of 2 bytes"),
        (labels[3:-2] + b"\xff\xff", r"labels: the tag code ff ff is no character"),
    ):
        (root / "labels").write_bytes(data)
        refused(said, "hit_or3c", root)
    (root / "labels").write_bytes(labels)
    (root / "one_images").write_bytes(good)
    refused(r"one_images: want the writer's number", "hit_or3c", root)


def test_a_folder_of_hit_without_labels(tmp_path):
    write_hit(tmp_path / "a", "啊阿")
    write_hit(tmp_path / "b", "啊阿", (7,))
    (tmp_path / "b/labels").unlink()
    refused(r"7_images: no labels or labels\.txt beside it", "hit_or3c", tmp_path)


def test_casia_and_hit_together_number_the_characters_that_both_have(tmp_path):
    write_casia(tmp_path / "casia_hwdb", "阿啊一座")
    write_hit(tmp_path / "hit_or3c", "丁阿座一")
    both = handwriting.load("casia_hwdb+hit_or3c", tmp_path, size=16)
    assert list(both) == ["casia", "hit"]
    assert both["casia"].y.tolist() == [0, 1, 2] * 3 and both["hit"].y.tolist() == [0, 2, 1] * 3  # 阿, 一, 座
    two = handwriting.load("casia_hwdb+hit_or3c", tmp_path, size=16, classes=2)
    assert two["casia"].y.tolist() == two["hit"].y.tolist() == [0, 1] * 3
    assert handwriting.load("casia_hwdb", tmp_path, size=16)["casia"].y.tolist() == [1, 0, 2, 3] * 3
    write_hit(tmp_path / "hit_or3c", "丁七")
    refused("no character of GB2312's level 1 in both", "casia_hwdb+hit_or3c", tmp_path)
    refused("only casia_hwdb and hit_or3c share", "casia_hwdb+chinese_mnist", tmp_path)


# Chinese MNIST


def numeral(writer, number, code, ink=255):
    """64 x 64: a bright block, in a row that tells the code and a column that tells the writer."""
    pixels = np.full((64, 64), 255 - ink, np.uint8)
    pixels[4 * code : 4 * code + 4, 4 * writer : 4 * writer + 4 * number] = ink
    return picture(pixels, "JPEG")


def chinese_mnist(writers=5, samples=1, codes=15, ink=255):
    every = [(w, s, c) for w in range(1, writers + 1) for s in range(1, samples + 1) for c in range(1, codes + 1)]
    return {f"input_{w}_{s}_{c}.jpg": numeral(w, s, c, ink) for w, s, c in every}


@pytest.mark.parametrize("form", ["data/data", "data", "", "chinese-mnist.zip"])
def test_chinese_mnist_layouts(tmp_path, form):
    files = {f"data/{name}" if form.endswith("zip") else name: data for name, data in chinese_mnist().items()}
    if form.endswith("zip"):
        zipped(tmp_path / form, {"chinese_mnist.csv": b"suite_id", **files})
    else:
        (tmp_path / form).mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (tmp_path / form / name).write_bytes(data)
    parties = handwriting.load("chinese_mnist", tmp_path)
    assert list(parties) == ["first", "second"] and [len(p) for p in parties.values()] == [45, 30]
    writers = [set(party.groups.tolist()) for party in parties.values()]
    assert not writers[0] & writers[1] and writers[0] | writers[1] == {1, 2, 3, 4, 5}
    for party in parties.values():
        assert party.x.shape[1:] == (1, 64, 64) and int(party.x[0, 0, 0, 0]) < 20
        rows = party.x[:, 0].float().sum(2).argmax(1) // 4  # the code is read off the picture
        assert torch.equal(rows - 1, party.y)
        columns = party.x[:, 0].float().sum(1).argmax(1) // 4
        assert torch.equal(columns, party.groups)


def test_chinese_mnist_parties_do_not_depend_on_the_seed_and_dark_ink_is_turned(tmp_path):
    for name, data in chinese_mnist(writers=8, codes=3, ink=0).items():
        (tmp_path / name).write_bytes(data)
    loads = [handwriting.load("chinese_mnist", tmp_path, classes=3, writers=2, seed=seed) for seed in range(6)]
    kept = {party: [set(found[party].groups.tolist()) for found in loads] for party in ("first", "second")}
    assert not set.union(*kept["first"]) & set.union(*kept["second"])
    assert all(len(writers) == 2 for writers in kept["first"]) and len(set(map(frozenset, kept["first"]))) > 1
    assert loads[0]["first"].x.float().mean() < 20 and loads[0]["first"].x.max() > 235
    refused("no picture of class 4 \\('三'\\): 12 of 15 classes", "chinese_mnist", tmp_path)
    (tmp_path / "input_1_1_3.jpg").write_bytes(numeral(1, 1, 3)[:200])
    refused(r"input_1_1_3\.jpg: not a usable picture", "chinese_mnist", tmp_path, classes=3)
    (tmp_path / "input_1_1_16.jpg").write_bytes(numeral(1, 1, 3))
    refused(r"input_1_1_16\.jpg: class 16, want 1 to 15", "chinese_mnist", tmp_path, classes=3)


def test_one_writer_makes_no_two_parties(tmp_path):
    for name, data in chinese_mnist(writers=1).items():
        (tmp_path / name).write_bytes(data)
    refused("one suite", "chinese_mnist", tmp_path)


# Chars74K


@functools.cache
def hand(size, centre, canvas=(300, 400)):
    """Dark ink on white, RGB: a ring of ``size`` pixels around ``centre``."""
    image = Image.new("RGB", canvas[::-1], "white")
    (x, y), radius = centre, size / 2
    ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), outline=(20, 20, 20), width=12)
    return picture(np.asarray(image))


@functools.cache
def chars74k(classes=62, fonts=2, writers=2):
    files = {}
    for label in range(1, classes + 1):
        for font in range(1, fonts + 1):
            pixels = np.full((128, 128), 255, np.uint8)
            pixels[2 * label - 2 : 2 * label, 20:100] = 0
            files[f"Fnt/Sample{label:03}/img{label:03}-{font:05}.png"] = picture(pixels)
        for writer in range(1, writers + 1):
            small = label > 36  # lower case
            image = hand(80 if small else 160, (100 + 40 * writer, 120))
            files[f"Hnd/Img/Sample{label:03}/img{label:03}-{writer:03}.png"] = image
    return files


def unpack(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


@pytest.mark.parametrize("form", ["English", "", "tgz"])
def test_chars74k_layouts(tmp_path, form):
    if form == "tgz":
        for part in ("Fnt", "Hnd"):
            with tarfile.open(tmp_path / f"English{part}.tgz", "w:gz") as tar:
                for name, data in sorted(chars74k().items(), reverse=True):
                    if name.startswith(part):
                        member = tarfile.TarInfo(f"English/{name}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
    else:
        unpack(tmp_path / form, chars74k())
    parties = handwriting.load("chars74k", tmp_path, size=32)
    assert list(parties) == ["fnt", "hnd"]
    for party in parties.values():
        assert party.x.shape == (124, 1, 32, 32) and party.y.tolist() == list(range(62)) * 2
        assert party.groups.tolist() == [1] * 62 + [2] * 62 and not party.x[:, 0, :, 0].any()
    rows = parties["fnt"].x[:62, 0].float().sum(2)
    assert ((rows * torch.arange(32)).sum(1) / rows.sum(1) - torch.arange(62) / 2).abs().max() < 1  # uncropped
    ink = parties["hnd"].x[:, 0] > 60
    heights = ink.any(2).sum(1)
    assert heights[:36].eq(28).all() and ((heights[36:62] - 14).abs() <= 2).all()  # an o stays smaller than an O
    assert all(int(part.any(0).sum()) in range(int(h) - 1, int(h) + 2) for part, h in zip(ink, heights, strict=True))


def test_chars74k_in_parts_and_damaged(tmp_path):
    unpack(tmp_path, chars74k(classes=12, fonts=4, writers=3))
    refused(r"party fnt: no picture of class 13 \('C'\): 50 of 62 classes", "chars74k", tmp_path)
    parties = handwriting.load("chars74k", tmp_path, size=16, classes=12, writers=2)
    assert [(len(p), len(p.y.unique()), len(p.groups.unique())) for p in parties.values()] == [(24, 12, 2)] * 2
    file = tmp_path / "Hnd/Img/Sample005/img005-002.png"
    for data, said in ((b"", "not a usable picture"), (picture(np.full((90, 90), 255, np.uint8)), "it is blank")):
        file.write_bytes(data)
        assert str(file) in refused(said, "chars74k", tmp_path, classes=12)
    (tmp_path / "EnglishFnt.tgz").write_bytes(b"\x1f\x8b\x08" + bytes(20))
    (tmp_path / "EnglishHnd.tgz").write_bytes(b"")
    for path in ("Fnt", "Hnd"):
        (tmp_path / path).rename(tmp_path / f"no{path}")
    refused(r"EnglishFnt\.tgz: truncated or damaged", "chars74k", tmp_path)


# Chars74K's strokes

CROSS = [[[0, 0], [60, 100]], [[60, 0], [0, 100]]]


def write_strokes(root, letters=None, name="char74k.json"):
    whole = {letter: [CROSS, [[[0, 0], [0, 10]]], [[[5, 5]]]] for letter in reversed(ALPHABET)}
    root.mkdir(exist_ok=True)
    (root / name).write_text(json.dumps({**whole, **(letters or {})}))
    return root


def test_strokes_are_drawn_with_the_writers_sizes_kept(tmp_path):
    low = {letter: [[[[0, 0], [30, 50]], [[30, 0], [0, 50]]]] * 2 for letter in ALPHABET[36:]}
    write_strokes(tmp_path, low, "char74k-normalized.json")
    found = handwriting.load("chars74k_strokes", tmp_path, size=32)["hnd"]
    assert len(found) == 36 * 3 + 26 * 2 and found.y[:62].tolist() == list(range(62))
    assert found.groups.unique().tolist() == [0, 1, 2]
    upper, lower = (found.x[index, 0] > 100 for index in (10, 61))
    assert upper.any(1).sum() == 28 and 14 <= lower.any(1).sum() <= 17  # half as tall, and the pen's breadth
    assert upper[16, 16] and not upper[16, :12].any() and not upper[2:6, 14:18].any()  # a cross
    dot = found.x[found.groups == 2][0, 0] > 100
    assert 4 <= dot.sum() <= 16 and dot[15:17, 15:17].any()
    assert handwriting.draw([np.array([[0, 0], [0, 1.0]])], 16).shape == (16, 16)


def test_strokes_are_drawn_upright():
    ell = handwriting.draw([np.array([[0, 0], [0, 100], [60, 100]], float)], 32)
    assert ell[:10, :16].any() and ell[22:, 16:].any() and not ell[:22, 18:].any()


def test_damaged_strokes_are_named(tmp_path):
    for letters, said in (
        ({"Q": None}, "with all of"),
        ({"Q": []}, "with all of"),
        ({"Q": [[]]}, r"letterform 0 of 'Q': want at least one stroke"),
        ({"Q": [CROSS, [[[1, 2, 3]]]]}, r"letterform 1 of 'Q'"),
        ({"Q": [[[["a", 2]]]]}, r"letterform 0 of 'Q'"),
        ({"Q": [7]}, r"letterform 0 of 'Q'"),
    ):
        assert "char74k.json" in refused(said, "chars74k_strokes", write_strokes(tmp_path, letters))
    text = (tmp_path / "char74k.json").read_text()
    for damaged in ("", text[:-40], "[1, 2]"):
        (tmp_path / "char74k.json").write_text(damaged)
        refused(r"char74k\.json: ", "chars74k_strokes", tmp_path)


# What all have in common


def test_arguments_that_cannot_be_met(tmp_path):
    write_casia(tmp_path)
    for options, said in (
        ({"size": 4}, "size is 4"),
        ({"classes": -1}, "classes is -1"),
        ({"classes": 1}, "classes is 1: want 0"),
        ({"classes": 4}, "classes is 4: casia_hwdb has 3 here"),
        ({"writers": -2}, "writers is -2"),
    ):
        refused(said, "casia_hwdb", tmp_path, **options)
    refused("classes is 63: chars74k_strokes has 62", "chars74k_strokes", write_strokes(tmp_path / "s"), classes=63)
    refused("'mnist' is not a data set of handwriting: there are casia_hwdb", "mnist", tmp_path)
    write_casia(tmp_path / "one", "啊a5", (1001, 1241))
    refused("party casia is left with one class", "casia_hwdb", tmp_path / "one")
    for name in handwriting.NAMES:
        with pytest.raises(cards.DataNotFound, match="Get it from"):
            handwriting.load(name)
        with pytest.raises(cards.DataNotFound, match="Layouts understood"):
            (tmp_path / "empty").mkdir(exist_ok=True)
            handwriting.load(name, tmp_path / "empty")


@pytest.mark.parametrize(
    ("name", "parties", "count", "classes"),
    [("chinese_mnist", ["first", "second"], 7500, 15), ("chars74k_strokes", ["hnd"], 3410, 62)],
)
def test_real_data_whole_in_number_and_bright_on_dark(name, parties, count, classes):
    if not any(REAL.glob("ch*")):
        pytest.skip("no real data beside this checkout")
    found = handwriting.load(name, REAL, size=16, writers=3)
    assert list(found) == parties
    for party in found.values():
        assert len(party.y.unique()) == classes and len(party.groups.unique()) == 3
        assert len(party) == 3 * count // {15: 50, 62: 55}[classes]
        assert party.x.float().mean() < 60 and int(party.x[:, 0, 0].max()) < 128
