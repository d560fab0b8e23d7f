"""Workers in processes of their own: phases timed, the same weights everywhere, and one clear error when one ends."""

import threading
import time

import psutil
import pytest
from PIL import Image

from fl_utils import data_parallel
from fl_utils.data_parallel import Job, Measured, WorkersFailed, measure, speed_up, throughput

NETWORK = "small-vgg"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for label in range(8):
        Image.new("L", (40, 50), 30 * label).save(folder / f"{label}.png")
    return tuple((str(folder / f"{label}.png"), label) for label in range(8))


def test_equations_6_to_8_by_hand():
    alone = Measured(1, data=3.0, compute=2.0, aggregate=0.5, iteration=9.0, busy=9.0, average=9.0, equal=True)
    two = Measured(2, data=30.0, compute=20.0, aggregate=5.0, iteration=9.0, busy=9.0, average=9.0, equal=True)
    assert two.one_by_one(alone) == 10 and two.overlapped(alone) == 5 and alone.overlapped(alone) == 3
    assert speed_up(throughput(10, alone.overlapped(alone)), throughput(20, alone.overlapped(alone))) == pytest.approx(
        100
    )
    assert speed_up(127, 203) == pytest.approx(59.8, abs=0.05)  # VGG-16 in PyTorch, from 1 to 2 GPUs


def test_two_workers_train_as_one_and_a_slow_disk_hides_the_rest(pictures):
    jobs = [
        Job(NETWORK, 8, 32, 2, pictures),
        Job(NETWORK, 8, 32, 2, pictures, wait=0.3, name="own disks"),
        Job(NETWORK, 8, 32, 2, pictures, wait=0.3, shared=True, name="one disk"),
    ]
    found = measure(jobs, [1, 2], iterations=2, repeats=1, seconds=120)
    assert list(found) == [NETWORK, "own disks", "one disk"]
    for results in found.values():
        for workers, result in results.items():
            assert result.workers == workers and result.equal
            assert min(result.data, result.compute, result.aggregate, result.iteration, result.busy) > 0
    assert found["own disks"][1].iteration >= 0.29 and found["one disk"][2].average >= 0.4
    assert found["own disks"][1].busy < 0.29  # waiting costs the processor nothing


def test_a_damaged_picture_is_named_by_the_worker_that_met_it(pictures, tmp_path):
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no picture")
    job = Job(NETWORK, 8, 32, 2, (*pictures[:2], (str(damaged), 0), pictures[3]))
    with pytest.raises(
        WorkersFailed, match=r"^worker \d of 2 failed: ValueError: damaged.png is no picture .*"
    ) as caught:
        measure([job], [1, 2], iterations=1, repeats=1, seconds=60)
    assert "\n" not in str(caught.value)


def test_a_killed_worker_and_the_time_limit_end_the_run(pictures):
    job = Job(NETWORK, 8, 32, 2, pictures, wait=600)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    workers = []

    def kill():
        ends = time.monotonic() + 60
        while len(workers) < 2 and time.monotonic() < ends:
            time.sleep(0.2)
            children = psutil.Process().children(recursive=True)
            workers[:] = [c for c in children if c.pid not in before and c.parent().pid != psutil.Process().pid]
        time.sleep(2)
        workers[-1].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(WorkersFailed, match=r"^worker \d of 2 died \(exit code -9\); the others were ended$"):
        measure([job], [1, 2], seconds=90)
    killer.join()
    assert not any(worker.is_running() and worker.status() != "zombie" for worker in workers)
    with pytest.raises(WorkersFailed, match="the 1 workers did not end within 2 seconds"):
        measure([job], [1], seconds=2)


@pytest.mark.parametrize(
    ("changed", "given", "message"),
    [
        ({}, {"workers": [2, 4]}, "workers are .2, 4.: want different whole numbers, 1 among them"),
        ({}, {"workers": [1, 1]}, "workers are"),
        ({}, {"iterations": 0}, "iterations 0"),
        ({}, {"device": "meta"}, "device is 'meta', with 2 workers: want cpu, or cuda"),
        ({}, {"device": "cuda", "workers": [1, 2, 64]}, "with 64 workers: want cpu, or cuda and a GPU each"),
        ({"network": "lenet"}, {}, "network is 'lenet'"),
        ({"size": 16}, {}, "size is 16"),
        ({"batch": 1}, {}, "batch 1"),
        ({"batch": 5}, {}, "has 8 pictures: 10 are one batch of every worker"),
        ({"classes": 5}, {}, "5.png has label 5: want 0 to 4"),
    ],
)
def test_bad_input_is_one_error_before_any_process(monkeypatch, pictures, changed, given, message):
    monkeypatch.setattr(data_parallel, "_launch", lambda *_: pytest.fail("a process was started"))
    job = Job(**{"network": NETWORK, "classes": 8, "size": 32, "batch": 2, "pictures": pictures, **changed})
    with pytest.raises(ValueError, match=message):
        measure([job], **{"workers": [1, 2], **given})


def test_a_picture_that_is_not_there_and_a_job_twice(pictures):
    with pytest.raises(ValueError, match="there is no picture"):
        measure([Job(NETWORK, 8, 32, 2, (*pictures, ("nowhere.png", 1)))], [1])
    with pytest.raises(ValueError, match="each with a name of its own"):
        measure([Job(NETWORK, 8, 32, 2, pictures)] * 2, [1])
