"""Iterations timed case by case, memory counted without running, and out of memory where it belongs."""

import math
from itertools import product

import pytest
import torch

from fl_utils import iteration_time
from fl_utils.costs import saved_bytes
from fl_utils.iteration_time import LAYOUTS, Memory, Timing, Training, measure, memory

NETWORK, CLASSES, SIZE = "small-resnet18", 5, 32
PLENTY = 2**30


@pytest.mark.parametrize("network", [NETWORK, "densenet-121"])
def test_memory_on_the_meta_device_is_what_autograd_really_keeps(network):
    need = memory(network, CLASSES, SIZE)
    model = iteration_time.build(network, CLASSES, SIZE)
    assert need.fixed + 3 * need.per_image == saved_bytes(model, torch.zeros(3, 3, SIZE, SIZE))
    weights = sum(4 * p.numel() for p in model.parameters())
    statistics = sum(b.numel() * b.element_size() for b in model.buffers())
    assert need.state == 3 * weights + statistics
    assert need.training(7) == need.state + need.fixed + 7 * need.per_image


def test_largest_batch_is_the_last_that_fits():
    need = Memory(state=100, fixed=10, per_image=5)
    assert [need.largest_batch(budget, [2, 4, 8]) for budget in (119, 120, 149, 150)] == [0, 2, 4, 8]


def test_published_sizes_of_the_four_networks():
    found = {
        n: memory(n, 10_575, size).largest_batch(12 * 2**30, [16, 32, 64, 128, 256])
        for n, size in iteration_time.INPUT_SIZE.items()
    }
    assert found == {"vgg-16": 128, "inception-v3": 64, "resnet-50": 128, "densenet-121": 64}  # section 4.3.1


def test_every_case_is_timed_in_every_repeat_and_too_large_ones_are_not_run(monkeypatch):
    need, seen = memory(NETWORK, CLASSES, SIZE), []
    iterate = Training.iterate
    monkeypatch.setattr(Training, "iterate", lambda self, *case: seen.append(case) or iterate(self, *case))
    found = measure(NETWORK, list(product([2, 4, 8], LAYOUTS)), CLASSES, SIZE, repeats=2, budget=need.training(4))
    assert {case: len(t.clock) for case, t in found.items()} == {
        (2, "nchw"): 2, (2, "nhwc"): 2, (4, "nchw"): 2, (4, "nhwc"): 2, (8, "nchw"): 0, (8, "nhwc"): 0,
    }  # fmt: skip
    assert {batch for batch, _ in seen} == {2, 4} and len(seen) == 1 + 2 * 4
    assert found[8, "nchw"].out_of_memory and math.isnan(found[8, "nchw"].seconds())
    assert found[8, "nchw"].needed == need.training(8) and math.isnan(found[2, "nchw"].over(found[8, "nchw"]))
    assert found[2, "nchw"].seconds() > 0 and found[2, "nchw"].over(found[2, "nchw"]) == 1


def test_a_device_that_runs_out_of_memory_ends_that_case_alone(monkeypatch):
    iterate = Training.iterate

    def full(self, batch, layout):
        if batch > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return iterate(self, batch, layout)

    monkeypatch.setattr(Training, "iterate", full)
    found = measure(NETWORK, [(2, "nchw"), (8, "nchw")], CLASSES, SIZE, repeats=2, budget=PLENTY)
    assert found[8, "nchw"].out_of_memory and len(found[2, "nchw"].clock) == 2


def test_layouts_train_the_same_network():
    first, second = (Training(NETWORK, CLASSES, SIZE, seed=1) for _ in range(2))
    before = [p.detach().clone() for p in first.model.parameters()]
    for training, layouts in ((first, ["nchw", "nchw", "nchw"]), (second, ["nhwc", "nchw", "nhwc"])):
        torch.manual_seed(2)
        for layout in layouts:
            training.iterate(4, layout)
    assert any(
        p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous() for p in second.model.parameters()
    )
    one, two, old = (
        torch.cat([p.detach().flatten() for p in of])
        for of in (first.model.parameters(), second.model.parameters(), before)
    )
    assert (one - two).norm() < 0.1 * (one - old).norm()  # rounding, which batch norm on four pictures amplifies


def test_the_seconds_that_count_depend_on_the_device():
    taken = (1.0, 3.0, 2.0), (10.0, 40.0, 30.0), 0
    assert Timing(*taken).seconds() == 2 and Timing(*taken, on_gpu=True).seconds() == 30
    assert Timing((2.0, 4.0, 9.0), (), 0).turns == (2.0, 4.0, 9.0)
    assert Timing((2.0, 6.0, 8.0), (1.0,) * 3, 0).over(Timing(*taken)) == 2  # ratios 2, 2 and 4


def test_vgg_16_for_small_pictures_has_hidden_layers_to_fit():
    with torch.device("meta"):
        small, published = (iteration_time.build("vgg-16", 10, size).body[3].in_features for size in (64, 224))
    assert (small, published) == (512 * 2 * 2, 512 * 7 * 7)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"network": "vgg"}, "network is 'vgg': want one of vgg-16, "),
        ({"network": "inception-v3", "size": 32}, "size is 32: inception-v3 wants a whole number of pixels from 75 up"),
        ({"cases": [(1, "nchw")]}, "want batches from 2 up, each with one of nchw, nhwc"),
        ({"cases": [(2, "hwcn")]}, "want batches from 2 up, each with one of nchw, nhwc"),
        ({"cases": []}, "cases are ..: want"),
        ({"repeats": 0}, "repeats 0"),
        ({"budget": 0}, "on a CPU a budget in bytes above 0"),
    ],
)
def test_bad_input_is_one_error(changed, message):
    given = {"network": NETWORK, "cases": [(2, "nchw")], "classes": CLASSES, "size": SIZE, "budget": PLENTY}
    with pytest.raises(ValueError, match=message):
        measure(**{**given, **changed})
