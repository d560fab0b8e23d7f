"""The face benchmark's protocol on people drawn for it: disjoint, deterministic, right where it can be known."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fl_utils import face_protocol as protocol
from fl_utils.data.examples import Examples
from fl_utils.papers import published
from fl_utils.training import LocalTraining, Trainer


class People:
    """A gallery of people who are patterns: picture n of person k is pattern k with a little noise."""

    def __init__(self, ids, pictures=10, size=24, noise=20):
        self.ids, self.pictures, self.size, self.noise = list(ids), pictures, size, noise

    def split(self, test, seed):
        drawn = set(np.random.default_rng(seed).permutation(self.ids)[:test].tolist())
        rest = [who for who in self.ids if who not in drawn]
        return [People(ids, self.pictures, self.size, self.noise) for ids in (rest, sorted(drawn))]

    def load(self, size, channels):
        images = []
        for who in self.ids:
            pattern = torch.randint(0, 200, (channels, size, size), generator=torch.Generator().manual_seed(who))
            noise = torch.Generator().manual_seed(1000 + who)
            images += [
                pattern + torch.randint(0, self.noise, pattern.shape, generator=noise) for _ in range(self.pictures)
            ]
        labels = torch.arange(len(self.ids)).repeat_interleave(self.pictures)
        return Examples(torch.stack(images).to(torch.uint8), labels)


class Pixels(nn.Module):
    """The picture itself, less its mean, is its features."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def features(self, images):
        flat = images.float().flatten(1)
        return flat - flat.mean(1, keepdim=True)


def test_nobody_who_is_tested_is_trained_on_and_all_depends_on_the_seed():
    people = People(range(20))
    faces, again, other = (protocol.prepare(people, 24, 8, seed) for seed in (0, 0, 1))
    assert (len(faces.train), len(faces.test)) == (120, 80)
    seen = {image.numpy().tobytes() for image in faces.train.x}
    assert not any(image.numpy().tobytes() in seen for image in faces.test.x)
    assert torch.equal(faces.test.x, again.test.x)
    assert (faces.pairs.first == again.pairs.first).all()
    assert not torch.equal(faces.test.x, other.test.x)
    assert not set(faces.low) & set(faces.high)
    assert (np.bincount(faces.test.y[faces.low]) == 5).all()


def test_perfect_features_score_perfectly_and_random_ones_do_not():
    faces = protocol.prepare(People(range(20)), 24, 16, 0)
    scores = protocol.judge(Pixels(), faces, sides={"middle": 20})
    assert scores["accuracy"] == 100
    assert scores["tar/middle2high/far_1e-2"] == scores["tar/middle2high/far_1e-3"] == 100
    assert scores["similarity/pose/front/turned"] > 0.95

    class Noise(Pixels):
        def features(self, images):
            return torch.randn(len(images), 32, generator=torch.Generator().manual_seed(len(images)))

    noise = protocol.judge(Noise(), faces)
    assert 40 < noise["accuracy"] < 60
    assert noise["tar/low2high/far_1e-2"] < 5
    assert abs(noise["similarity/pose/front/front"]) < 0.3


def test_a_rate_without_enough_impostors_is_left_out():
    faces = protocol.prepare(People(range(20)), 24, 6, 0)  # 30 against 30 pictures: 750 impostor pairs
    scores = protocol.judge(Pixels(), faces)
    assert {name for name in scores if name.startswith("tar")} == {"tar/low2high/far_1e-2", "tar/middle2high/far_1e-2"}


def test_a_turned_face_is_less_symmetric():
    straight = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    straight[..., 2:6] = 200
    images = torch.cat([straight, straight.roll(2, 3), straight.roll(1, 3), straight])
    measured = protocol.asymmetry(images)
    assert measured[0] == 0 == measured[3] < measured[2] < measured[1]
    assert protocol.turned(images, [7, 7, 7, 7]).tolist() == ["front", "turned", "turned", "front"]
    assert protocol.turned(images, [7, 7, 8, 8]).tolist() == ["front", "turned", "turned", "front"]


def test_a_lowered_picture_has_lost_its_detail_alone():
    fine = torch.tensor([0, 200], dtype=torch.uint8).repeat(12).expand(1, 1, 24, 24)
    assert protocol.lowered(fine, 4).float().std() < 5
    assert protocol.lowered(fine, 4).float().mean() == pytest.approx(100, abs=2)
    with pytest.raises(ValueError, match="side is 24: want from 1 to 23"):
        protocol.lowered(fine, 24)


def test_a_rate_for_each_epoch_is_a_training_in_stages():
    images = torch.randint(0, 255, (12, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    examples = Examples(images.float() / 255, torch.arange(12) % 3)

    def build():
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

    local = LocalTraining(batch_size=5, momentum=0.9)
    together, apart = Trainer(build), Trainer(build)
    apart.vector.copy_(together.vector)
    losses = protocol.fit(together, examples, local, [0.1, 0.1, 0.01], seed=4)
    stages = apart.train(examples.x, examples.y, LocalTraining(2, 5, 0.1, momentum=0.9), 4)
    stages += apart.train(examples.x, examples.y, LocalTraining(1, 5, 0.01, momentum=0.9), 6)
    assert losses == stages and len(losses) == 3
    assert torch.equal(together.vector, apart.vector)
    with pytest.raises(ValueError, match="rates is empty"):
        protocol.fit(together, examples, local, [])


def test_paired_differences_by_hand():
    assert protocol.paired([3, 5, 7], [1, 4, 4]) == (2.0, pytest.approx(1 / 3**0.5))
    assert protocol.paired([3], [1]) == (2.0, 0.0)
    with pytest.raises(ValueError, match="2 and 1 scores"):
        protocol.paired([3, 5], [1])


class Shades(nn.Module):
    """Features that tell pictures apart by how bright they are."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def features(self, images):
        mean = images.float().mean((1, 2, 3)) / 160
        return torch.stack([mean.cos(), mean.sin()], 1)


def write_tests(root):
    """Small LFW, VGGFace2-test and IJB-A in one folder; each person has a shade of grey. The list of qualities."""

    def picture(path, shade):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (24, 24), shade).save(path)

    people = ("Ada_Lovelace", "Alan_Turing", "Grace_Hopper", "Jose_Alvarez")
    for number, who in enumerate(people):
        for image in (1, 2, 3):
            picture(root / "lfw" / who / f"{who}_{image:04d}.jpg", 60 * number + image)
    a, b, c, d = people
    pairs = ("3\t1", f"{a}\t1\t2", f"{a}\t3\t{b}\t1", f"{c}\t1\t3", f"{c}\t2\t{d}\t2")
    pairs += (f"{d}\t1\t3", f"{b}\t2\t{c}\t2")
    (root / "pairs.txt").write_text("\n".join(pairs) + "\n")
    for kind, images in (("pose", 30), ("age", 20)):
        listed = [f"n{subject:06d}/{image:04d}_01.jpg" for subject in (1, 2) for image in range(images)]
        (root / f"test_{kind}temp_imglist.txt").write_text("\n".join(listed) + "\n")
    for subject in (1, 2):
        for image in range(30):
            picture(root / "test" / f"n{subject:06d}" / f"{image:04d}_01.jpg", 100 * subject + image)
    rows, qualities = ["SUBJECT_ID,FILE,FACE_X,FACE_Y,FACE_WIDTH,FACE_HEIGHT"], []
    for number in range(12):
        picture(root / f"images/img/{number}.jpg", 40 + 100 * (number % 2) + number)
        rows.append(f"{1 + number % 2},img/{number}.jpg,2,2,20,20")
        qualities.append(f"img/{number}.jpg {10 * (number // 4)}")
    split = root / "IJB-A_11_sets/split1"
    split.mkdir(parents=True)
    (split / "train_1.csv").write_text("\n".join(rows) + "\n")
    (split / "verify_metadata_1.csv").write_text("\n".join(rows[:4]) + "\n")
    (root / "quality.txt").write_text("\n".join(qualities) + "\n")
    return root / "quality.txt"


def test_the_papers_own_tests_by_their_published_names(tmp_path):
    quality = write_tests(tmp_path)
    tests = protocol.listed(protocol.LISTED, tmp_path, 16, 1, quality, (5, 15))
    scores = protocol.judge_listed(Shades(), tests, fars=(0.25, 0.01))
    assert {name: len(part.found) for name, part in tests.loaded.items()} == {
        **{"lfw": 11, "pose": 60, "age": 40},
        **{"low": 4, "middle": 4, "high": 4},
    }
    assert scores["accuracy/lfw"] == 100
    assert scores["tar/ijb-a/low2high/far_1e-1"] == scores["tar/ijb-a/middle2high/far_1e-1"] == 100
    names = {metric.replace("/resnet-50/pytorch", "") for metric in published("F2") if "/resnet-50/pytorch/" in metric}
    assert {name for name in scores if "tar" not in name} == {name for name in names if "tar" not in name}
    front, far = (scores[f"similarity/vggface2/pose/front/{view}"] for view in ("front", "profile"))
    assert 0.9 < far < front < 1
    alone = protocol.listed(("lfw",), tmp_path, 16)
    assert alone.loaded.keys() == {"lfw"} and protocol.judge_listed(Shades(), alone) == {"accuracy/lfw": 100}
    with pytest.raises(ValueError, match="no test of 'megaface': want some of lfw, vggface2, ijb_a"):
        protocol.listed(("megaface",), tmp_path, 16)


def test_a_face_that_was_not_found_counts_as_wrong_in_lfw_and_is_left_out_elsewhere(tmp_path):
    quality = write_tests(tmp_path)
    whole = protocol.listed(protocol.LISTED, tmp_path, 16, 1, quality, (5, 15))
    shutil.copytree(tmp_path / "lfw", tmp_path / "crops/lfw")
    shutil.copytree(tmp_path / "test", tmp_path / "crops/vggface2")
    shutil.copytree(tmp_path / "images", tmp_path / "crops/ijb_a")
    (tmp_path / "crops/lfw/Ada_Lovelace/Ada_Lovelace_0002.jpg").unlink()
    (tmp_path / "crops/lfw/failures.csv").write_text("file,reason\nAda_Lovelace/Ada_Lovelace_0002.jpg,no face\n")
    tests = protocol.listed(("lfw", "vggface2"), tmp_path, 16, 1, crops_dir=tmp_path / "crops")
    assert tests.loaded["lfw"].found.sum() == 10 and tests.loaded["pose"].found.all()
    scores, before = protocol.judge_listed(Shades(), tests), protocol.judge_listed(Shades(), whole, fars=(0.25,))
    assert scores["accuracy/lfw"] == pytest.approx(100 * 5 / 6) and before["accuracy/lfw"] == 100
    whole.loaded["low"].found[:1] = False
    assert protocol.judge_listed(Shades(), whole, fars=(0.3,))["tar/ijb-a/low2high/far_1e-1"] == 100
