import math

import pytest

from fl_utils.face_schedules import MOMENTUM, SCHEDULES, WEBFACE_IMAGES
from fl_utils.papers import published


def test_every_row_of_table_2_is_there_as_printed():
    paper = published("F1")
    rows = {metric.split("/")[1] for metric in paper if metric.startswith("learning_rate/")}
    assert rows == SCHEDULES.keys() and len(rows) == 14
    for name, schedule in SCHEDULES.items():
        assert paper[f"learning_rate/{name}"].value == schedule.formula
        assert paper[f"{schedule.unit}/{name}"].number == schedule.length
        assert paper[f"batch_size/{name}"].number == schedule.batch_size
        assert paper[f"weight_decay/{name}"].number == schedule.weight_decay
        told = paper.get(f"gpus/{name}")
        assert (told.number if told else 0) == schedule.gpus
    assert paper["momentum"].number == MOMENTUM


def test_steps_by_hand():
    schedule = SCHEDULES["resnet-50"]
    ipe = schedule.iterations_per_epoch(WEBFACE_IMAGES)
    assert ipe == 9069 and schedule.iterations(ipe) == 128 * 9069  # 453,413 / 50 = 9,068.26
    assert schedule.rate(28 * ipe - 1, ipe) == 0.1
    assert schedule.rate(28 * ipe, ipe) == pytest.approx(0.01)
    assert schedule.rate(128 * ipe - 1, ipe) == pytest.approx(1e-5)  # 127 of 28 epochs: four drops
    assert SCHEDULES["inception-v3"].rate(99, 1) == pytest.approx(0.045 * 0.94**49)


def test_milestones_by_hand():
    rates = [SCHEDULES["arcface"].rate(i, 886) for i in (0, 15_999, 16_000, 23_999, 24_000, 28_000, 31_999)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 1e-4, 1e-4])
    assert SCHEDULES["sphereface"].rate(27_999, 3543) == pytest.approx(0.001)


def test_googlenet_falls_as_a_square_root():
    schedule = SCHEDULES["googlenet"]
    assert schedule.rate(0, 100) == 0.01
    assert schedule.rate(4800, 100) == pytest.approx(0.01 * math.sqrt(1 / 4))  # three quarters of 64 epochs


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_share_of_any_training_has_the_rate_of_the_whole_one(name):
    schedule = SCHEDULES[name]
    ipe = schedule.iterations_per_epoch(WEBFACE_IMAGES)
    for share in (0.0, 0.3, 0.61, 0.99):
        assert schedule.at(share) == pytest.approx(schedule.rate(int(share * schedule.iterations(ipe)), ipe), rel=1e-3)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda s: s.rate(-1, 10), "iteration is -1: want one from 0 to 1279"),
        (lambda s: s.rate(1280, 10), "iteration is 1280"),
        (lambda s: s.rate(0, 0), "ipe is 0"),
        (lambda s: s.at(1.0), "share is 1.0"),
        (lambda s: s.iterations_per_epoch(0), "images is 0"),
    ],
)
def test_bad_input_is_named(call, says):
    with pytest.raises(ValueError, match=says):
        call(SCHEDULES["resnet-50"])
