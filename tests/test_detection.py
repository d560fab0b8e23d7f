"""MTCNN against boxes that another implementation found, crops worked out by hand, folders with all that goes wrong."""

import csv
import io
import json
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from fl_utils import crops
from fl_utils.crops import crop_folder
from fl_utils.data import cards
from fl_utils.detection import CHOICES, Detector, Faces, _not_nested, chosen, crop, enlarged, networks

HOPPER = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
BOXES = [(66.1, 39.8, 125.8, 111.7), (343.4, 138.8, 388.3, 193.9), (226.6, 83.9, 261.6, 127.4)]


@pytest.fixture(scope="module")
def detector():
    try:
        return Detector()
    except cards.DataNotFound as error:
        pytest.skip(f"the weights are not to be had here: {error}")


@pytest.fixture(scope="module")
def hopper():
    return np.asarray(Image.open(HOPPER).convert("RGB"))


@pytest.fixture(scope="module")
def three(hopper):
    """One photograph in three sizes on grey."""
    canvas = np.full((260, 440, 3), 127, np.uint8)
    for shrink, top, left in ((3, 0, 10), (5, 60, 190), (4, 110, 300)):
        small = np.asarray(Image.fromarray(hopper).reduce(shrink))
        canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    return canvas


# The boxes, scores and landmarks in these two tests were written down from facenet-pytorch 2.6.0.
def test_one_face(detector, hopper):
    faces = detector.detect(hopper)
    assert faces.boxes == pytest.approx(np.array([[174.4, 119.6, 355.6, 340.5]]), abs=0.5)
    assert faces.scores == pytest.approx([0.99982], abs=1e-3)
    points = [[221.7, 192.2], [309.8, 186.1], [269.4, 239.2], [232.7, 279.6], [306.6, 275.9]]
    assert faces.landmarks == pytest.approx(np.array([points]), abs=0.5)


def test_three_faces(detector, three):
    faces = detector.detect(torch.from_numpy(three))
    order = [int(np.abs(faces.boxes - box).sum(1).argmin()) for box in BOXES]
    assert sorted(order) == [0, 1, 2] and len(faces.boxes) == 3
    assert faces.boxes[order] == pytest.approx(np.array(BOXES), abs=0.5)
    assert faces.scores[order] == pytest.approx([0.99991, 0.99988, 0.99954], abs=1e-3)
    assert faces.landmarks[order][:, 2] == pytest.approx(
        np.array([[100.4, 79.7], [367.5, 170.3], [244.2, 108.2]]), abs=0.5
    )
    assert (np.diff(faces.scores) <= 0).all()


def test_each_network_leaves_fewer_boxes(detector, three):
    proposed, refined, decided = detector.stages(three)
    assert len(proposed) > len(refined) > len(decided) == 3
    assert np.allclose(decided, detector.detect(three).boxes)
    sides = refined[:, 2:] - refined[:, :2]
    assert sides[:, 0] == pytest.approx(sides[:, 1], abs=1e-3)


def test_no_face(detector):
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    small = np.full((19, 300, 3), 200, np.uint8)
    for image in (noise, small, np.zeros((200, 200, 3), np.uint8), np.zeros((20, 20, 3), np.uint8)):
        faces = detector.detect(image)
        assert [part.shape for part in faces] == [(0, 4), (0,), (0, 5, 2)]


def test_smallest_face_looked_for(detector, three):
    assert [len(Detector(min_face=size).detect(three).boxes) for size in (40, 100, 120)] == [3, 2, 1]


def test_pyramid(detector):
    assert detector.scales(50, 100) == pytest.approx([0.6, 0.6 * 0.709, 0.6 * 0.709**2])  # 50 * 0.6 * 0.709**3 < 12
    assert detector.scales(20, 20) == pytest.approx([0.6]) and detector.scales(19, 500) == []


def test_networks_have_the_sizes_of_the_weights():
    assert {name: sum(p.numel() for p in net.parameters()) for name, net in networks().items()} == {
        "pnet.pt": 6632,
        "rnet.pt": 100178,
        "onet.pt": 389040,
    }
    face, shifts = networks()["pnet.pt"](torch.zeros(2, 3, 12, 14))
    assert face.shape == (2, 1, 2) and shifts.shape == (2, 4, 1, 2)
    face, shifts, points = networks()["onet.pt"](torch.zeros(0, 3, 48, 48))
    assert face.shape == (0,) and shifts.shape == (0, 4) and points.shape == (0, 10)


def test_nested_boxes_are_one_face():
    boxes = torch.tensor([[0, 0, 99, 99], [10, 10, 29, 29], [90, 0, 189, 99], [200, 0, 209, 9], [200, 0, 209, 19.0]])
    scores = torch.tensor([0.9, 0.95, 0.8, 0.7, 0.99])
    assert _not_nested(boxes, scores, 0.7).tolist() == [4, 1, 2]  # the first holds the second, a likelier one
    assert _not_nested(boxes[:2], torch.tensor([0.9, 0.9]), 0.7).tolist() == [1]  # of equals the later
    assert _not_nested(boxes[:0], scores[:0], 0.7).tolist() == []


@pytest.mark.parametrize(
    "image",
    [np.zeros((40, 40), np.uint8), np.zeros((40, 40, 3)), np.zeros((3, 40, 40), np.uint8), np.zeros(3, np.uint16)],
)
def test_other_images_are_refused(detector, image):
    with pytest.raises(ValueError, match=r"want uint8 \[height, width, 3\]"):
        detector.detect(image)
    with pytest.raises(ValueError, match=r"want uint8 \[height, width, 3\]"):
        crop(image, (0, 0, 9, 9), 8)


@pytest.mark.parametrize(
    "settings",
    [{"min_face": 11}, {"factor": 1.0}, {"factor": 0.0}, {"thresholds": (0.6, 0.7)}, {"thresholds": (0.6, 0.7, 1.5)}],
)
def test_settings_out_of_range(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Detector(**settings)


def test_other_weights_are_refused(tmp_path):
    for name in networks():
        (tmp_path / name).write_bytes(b"not the weights")
    with pytest.raises(ValueError, match=r"pnet\.pt: not the weights of mtcnn"):
        Detector(tmp_path)


def test_which_of_several_faces():
    boxes = np.array([[0, 0, 20, 20], [60, 0, 100, 40], [30, 40, 50, 60]], np.float32)
    faces = Faces(boxes, np.array([0.9, 0.8, 0.7], np.float32), np.zeros((3, 5, 2), np.float32))
    assert [chosen(faces, (100, 80), choose) for choose in CHOICES] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"'smallest'.*likely, largest, middle"):
        chosen(faces, (100, 80), "smallest")
    with pytest.raises(ValueError, match="no face"):
        chosen(Faces(boxes[:0], faces.scores[:0], faces.landmarks[:0]), (100, 80))


def test_fifteen_per_cent_on_each_side():
    assert enlarged((100, 200, 200, 400), (1000, 1000)) == (85, 170, 215, 430)
    assert enlarged((100, 200, 200, 400), (1000, 1000), 0) == (100, 200, 200, 400)
    assert enlarged((-10, 5, 90, 105), (110, 95)) == (0, 0, 95, 110)  # cut off at all four sides


@pytest.mark.parametrize(
    "box", [(0, 0, 0, 9), (9, 0, 3, 9), (0, 0, 9, np.nan), (0, 0, 9), (-40, 0, -20, 9), (0, 200, 9, 210)]
)
def test_no_crop_of_such_a_box(box):
    with pytest.raises(ValueError, match="box is"):
        enlarged(box, (100, 100))


def test_crop_is_what_the_enlarged_box_holds():
    image = np.arange(40 * 50 * 3, dtype=np.uint8).reshape(40, 50, 3)
    assert np.array_equal(crop(image, (10, 10, 30, 20), 0), image[8:22, 7:33])  # 1.5 up to the even 8 and 22
    image[:, 25:] = 0
    image[:, :25] = 200
    face = crop(image, (5, 0, 45, 40), 20, 0)
    assert face.shape == (20, 20, 3) and (face[:, :9] == 200).all() and (face[:, 11:] == 0).all()
    for settings in ({"size": -1}, {"size": 8, "enlarge": -0.1}, {"size": 8, "enlarge": np.nan}):
        with pytest.raises(ValueError, match=list(settings)[-1]):
            crop(image, (5, 0, 45, 40), **settings)


class Everywhere:
    """Stands for a detector: a face in the middle of every picture that is not black."""

    min_face, factor, thresholds = 20, 0.709, (0.6, 0.7, 0.7)

    def __init__(self, stop_after=None):
        self.seen, self.stop_after = 0, stop_after

    def detect(self, image):
        if self.seen == self.stop_after:
            raise KeyboardInterrupt
        self.seen += 1
        height, width, _ = image.shape
        found = int(image.max() > 0)
        box = np.array([[width / 4, height / 4, width * 3 / 4, height * 3 / 4]], np.float32)
        return Faces(box[:found], np.ones(found, np.float32), np.zeros((found, 5, 2), np.float32))


def picture(kind="PNG", side=40, value=200, **options):
    buffer = io.BytesIO()
    Image.fromarray(np.full((side, side + 20, 3), value, np.uint8)).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def source(tmp_path):
    """A folder of identities, as CASIA-WebFace's: 0000045/001.jpg, with all that goes wrong in one."""
    deep = io.BytesIO()
    Image.fromarray(np.full((40, 40), 40000, np.uint16)).save(deep, "PNG")
    turned = Image.Exif()
    turned[0x0112] = 6
    jpeg = picture("JPEG")
    files = {
        "0000045/001.jpg": jpeg,
        "0000045/002.jpg": jpeg[: len(jpeg) // 2],
        "0000045/003.jpg": b"<html>404</html>",
        "0000045/004.jpg": b"",
        "0000045/005.png": deep.getvalue(),
        "0000045/006.ppm": b"P6 40 40 65535\n" + bytes(40 * 40 * 6),
        "0000045/007.pgm": b"P5 40 40 65535\n" + bytes(40 * 40 * 2),
        "0000099/001.bmp": picture("BMP", side=12),
        "0000099/002.png": picture(value=0),
        "0000099/turned.jpg": picture("JPEG", exif=turned),
        "0000099/same.jpg": jpeg,
        "0000099/same.png": picture(),
        "0000099/grey.pgm": b"P5 40 40 255\n" + bytes([99]) * 1600,
        "0000099/.hidden.jpg": jpeg,
    }
    for name, data in files.items():
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_bytes(data)
    (tmp_path / "source" / "0000099" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    return tmp_path / "source"


FAILED = {
    "0000045/002.jpg": "damaged",
    "0000045/003.jpg": "not an image",
    "0000045/004.jpg": "not an image",
    "0000045/005.png": "16 bit",
    "0000045/006.ppm": "16 bit",
    "0000045/007.pgm": "16 bit",
    "0000099/001.bmp": "too small",
    "0000099/002.png": "no face",
    "0000099/gone.jpg": "unreadable",
}
MADE = {"0000045/001", "0000099/turned", "0000099/same.jpg", "0000099/same.png", "0000099/grey"}


def made(target):
    return {path.relative_to(target).with_suffix("").as_posix() for path in target.rglob("*.png")}


def test_a_folder_becomes_crops_and_a_list_of_failures(source, tmp_path):
    done = crop_folder(source, tmp_path / "crops", Everywhere(), progress=False)
    assert (done.files, done.found, done.made, done.failures) == (14, 5, 5, FAILED)
    assert done.reasons == {
        "16 bit": 3, "not an image": 2, "damaged": 1, "too small": 1, "no face": 1, "unreadable": 1
    }  # fmt: skip
    assert made(tmp_path / "crops") == MADE
    with (tmp_path / "crops" / "failures.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["file", "reason"], *map(list, sorted(FAILED.items()))]
    face = np.asarray(Image.open(tmp_path / "crops" / "0000045" / "001.png"))
    assert face.shape == (26, 40, 3)  # 20 x 30 in the middle of 40 x 60, and 15 % on each side
    assert np.asarray(Image.open(tmp_path / "crops" / "0000099" / "turned.png")).shape == (40, 26, 3)


def test_a_stopped_folder_goes_on_where_it_was(source, tmp_path):
    target = tmp_path / "crops"
    with pytest.raises(KeyboardInterrupt):
        crop_folder(source, target, Everywhere(stop_after=3), progress=False)
    assert len(made(target)) == 3 - 1  # the black picture had no face
    left = target / "0000099" / f".half.png.{'0' * 32}"
    left.write_bytes(b"half a picture")
    rest = Everywhere()
    done = crop_folder(source, target, rest, progress=False)
    assert (done.found, done.made, rest.seen, done.failures) == (5, 3, 3, FAILED) and not left.exists()
    again = Everywhere()
    assert crop_folder(source, target, again, progress=False).made == again.seen == 0
    (source / "0000045" / "002.jpg").write_bytes(picture("JPEG"))
    assert crop_folder(source, target, again, progress=False).made == 0
    done = crop_folder(source, target, again, retry=True, progress=False)
    assert done.made == 1 and done.failures == {k: v for k, v in FAILED.items() if k != "0000045/002.jpg"}


def test_crops_of_one_size_as_jpeg(source, tmp_path):
    done = crop_folder(source / "0000099", tmp_path / "crops", Everywhere(), size=24, suffix=".jpg", progress=False)
    files = sorted((tmp_path / "crops").glob("*.jpg"))
    assert [file.name for file in files] == ["grey.jpg", "same.jpg.jpg", "same.png.jpg", "turned.jpg"]
    assert done.found == 4 and {Image.open(file).size for file in files} == {(24, 24)}
    assert {Image.open(file).format for file in files} == {"JPEG"}


def test_other_settings_need_another_folder(source, tmp_path):
    crop_folder(source, tmp_path / "crops", Everywhere(), progress=False)
    before = (tmp_path / "crops" / "crops.json").read_bytes()
    with pytest.raises(ValueError, match=r"begun with \{'size': 0\}, this call has \{'size': 32\}"):
        crop_folder(source, tmp_path / "crops", Everywhere(), size=32, progress=False)
    assert (tmp_path / "crops" / "crops.json").read_bytes() == before
    for damage, words in ((b"{", "not the settings"), (b"[]", "begun with"), (b'{"size": 0}', "begun with")):
        (tmp_path / "crops" / "crops.json").write_bytes(damage)
        with pytest.raises(ValueError, match=words):
            crop_folder(source, tmp_path / "crops", Everywhere(), progress=False)


@pytest.mark.parametrize(
    "settings", [{"choose": "all"}, {"suffix": ".gif"}, {"size": -1}, {"enlarge": -0.1}, {"enlarge": float("nan")}]
)
def test_wrong_settings_before_any_work(source, tmp_path, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        crop_folder(source, tmp_path / "crops", Everywhere(), progress=False, **settings)
    assert not (tmp_path / "crops").exists()


def test_wrong_folders(source, tmp_path):
    for folder, target, words in (
        (tmp_path / "none", tmp_path / "crops", "is no folder"),
        (source / "0000045" / "001.jpg", tmp_path / "crops", "is no folder"),
        (source, source / "crops", "hold one another"),
        (source, source, "hold one another"),
        (source, tmp_path, "hold one another"),
    ):
        with pytest.raises(ValueError, match=words):
            crop_folder(folder, target, Everywhere(), progress=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no files"):
        crop_folder(tmp_path / "empty", tmp_path / "crops", Everywhere(), progress=False)
    with pytest.raises(ValueError, match="no folder of crops"):
        crop_folder(source / "0000099", source / "0000045", Everywhere(), progress=False)
    (source / "0000099" / "same.jpg.png").write_bytes(picture())
    with pytest.raises(ValueError, match=r"same\.jpg\.png; rename"):
        crop_folder(source, tmp_path / "crops", Everywhere(), progress=False)


def test_two_at_once_are_refused(source, tmp_path):
    from filelock import FileLock

    (tmp_path / "crops").mkdir()
    with FileLock(tmp_path / "crops" / crops.LOCK), pytest.raises(ValueError, match="another process"):
        crop_folder(source, tmp_path / "crops", Everywhere(), progress=False)
    assert crop_folder(source, tmp_path / "crops", Everywhere(), progress=False).found == 5


def test_a_list_that_is_none_is_not_overwritten(source, tmp_path):
    crop_folder(source, tmp_path / "crops", Everywhere(), progress=False)
    (tmp_path / "crops" / "failures.csv").write_text("name;why\n")
    with pytest.raises(ValueError, match=r"failures\.csv: not a list of failures"):
        crop_folder(source, tmp_path / "crops", Everywhere(), progress=False)
    assert (tmp_path / "crops" / "failures.csv").read_text() == "name;why\n"


def test_a_bomb_and_an_odd_name_are_counted(source, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    odd = source / "0000045" / 'a,"b"\n.jpg'
    odd.write_bytes(b"no")
    for _ in range(2):
        done = crop_folder(source, tmp_path / "crops", Everywhere(), progress=False)
        assert done.failures["0000045/001.jpg"] == "too large"  # 2,400 pixels
        assert done.failures['0000045/a,"b"\n.jpg'] == "not an image"


def test_the_progress_bar_counts_files(source, tmp_path, capsys):
    crop_folder(source, tmp_path / "crops", Everywhere())
    assert "14/14" in capsys.readouterr().err


def test_real_folder_with_the_real_detector(detector, tmp_path, hopper):
    (tmp_path / "photographs").mkdir()
    Image.fromarray(hopper).reduce(4).save(tmp_path / "photographs" / "hopper.jpg", quality=95)
    Image.new("RGB", (80, 80), "green").save(tmp_path / "photographs" / "lawn.png")
    done = crop_folder(tmp_path / "photographs", tmp_path / "faces", detector, size=64, progress=False)
    assert done.found == 1 and done.failures == {"lawn.png": "no face"}
    face = np.asarray(Image.open(tmp_path / "faces" / "hopper.png"))
    assert face.shape == (64, 64, 3)
    assert len(detector.detect(np.pad(face, ((20, 20), (20, 20), (0, 0)))).boxes) == 1
    assert json.loads((tmp_path / "faces" / "crops.json").read_text())["min_face"] == 20
