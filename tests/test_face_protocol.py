"""The face benchmark's protocol on people drawn for it: disjoint, deterministic, right where it can be known."""

import numpy as np
import pytest
import torch
from torch import nn

from fl_utils import face_protocol as protocol
from fl_utils.data.examples import Examples


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
