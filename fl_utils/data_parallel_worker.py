"""One worker of fl_utils.data_parallel: a process that trains its share, and times what it does.

It reads pictures from files, as PyTorch does in Wang and Guo 2019 (section 4.3), and leaves its seconds in a file.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist
from filelock import FileLock
from PIL import Image
from torch import nn

from fl_utils import iteration_time, paths

BUCKET = 25 * 2**20 // 4  # floats that travel at once, as in DistributedDataParallel


@dataclass(frozen=True)
class Job:
    """A network to train: its name (see fl_utils.iteration_time), head, pixels a side, pictures for each worker.

    pictures: files with their labels; every worker reads its own share. wait: seconds by which a slow disk of the
    worker's own delays each batch. shared: all workers have that one disk, which serves one batch at a time.
    """

    network: str
    classes: int
    size: int
    batch: int
    pictures: tuple[tuple[str, int], ...]
    wait: float = 0.0
    shared: bool = False
    name: str = ""

    @property
    def key(self) -> str:
        """What the results call it: its name, or the network's."""
        return self.name or self.network


def work(rank: int, folder: str, plan: dict) -> None:
    """One worker process: takes part wherever its rank is below the number of workers, and waits where not."""
    log = os.open(Path(folder) / f"{rank}.log", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1), os.dup2(log, 2)  # gloo greets on both; what goes wrong comes back as an exception
    torch.set_num_threads(1)
    on_gpu = torch.device(plan["device"]).type == "cuda"
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    elif loopback := [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback[0])
    jobs, limit = [Job(**job) for job in plan["jobs"]], timedelta(seconds=plan["seconds"])
    rendezvous = (Path(folder) / "rendezvous").as_uri()
    dist.init_process_group("nccl" if on_gpu else "gloo", rendezvous, limit, max(plan["workers"]), rank)
    groups = {n: dist.new_group(list(range(n)), limit) for n in plan["workers"]}
    disk = Path(folder) / "disk"
    torch.manual_seed(plan["seed"])
    rows: dict[str, list[dict]] = {f"{i}/{n}": [] for i in range(len(jobs)) for n in plan["workers"]}
    for _ in range(plan["repeats"]):
        for index, job in enumerate(jobs):
            model = iteration_time.build(job.network, job.classes, job.size).to(device).train()
            for n in plan["workers"]:
                if rank < n:
                    turn = _Turn(job, model, groups[n], rank, n, device, disk)
                    rows[f"{index}/{n}"].append(turn.phases(plan["iterations"]) | turn.together(plan["iterations"]))
                dist.barrier()
    paths.write_whole(Path(folder) / f"{rank}.json", json.dumps(rows))
    dist.barrier()
    dist.destroy_process_group()


class _Turn:
    """One job on ``workers`` workers for a few iterations; begins with rank 0's weights on all of them."""

    def __init__(self, job: Job, model: nn.Module, group, rank: int, workers: int, device: torch.device, disk: Path):
        self.job, self.model, self.group, self.device = job, model, group, device
        self.rank, self.workers, self.disk = rank, workers, disk
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor, 0, group)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)

    def phases(self, iterations: int) -> dict:
        """Data, compute and aggregation after one another, seconds of each in every iteration but the first."""
        taken: dict[str, list[float]] = {"data": [], "compute": [], "aggregate": []}
        for step in range(iterations + 1):
            images, labels = self._timed(taken["data"], lambda step=step: self.load(step, wait=False))
            spent: list[float] = []
            self._timed(spent, lambda: self._backward(self.model, images, labels))  # noqa: B023  # called at once
            dist.barrier(self.group)
            self._timed(taken["aggregate"], self._aggregate)
            self._timed(spent, self._update)
            taken["compute"].append(sum(spent))
        return {name: values[1:] for name, values in taken.items()}

    def together(self, iterations: int) -> dict:
        """Iterations under DistributedDataParallel while a thread loads the next batch: the clock's seconds of each."""
        wrapped = nn.parallel.DistributedDataParallel(
            self.model, [self.device.index] if self.device.type == "cuda" else None, process_group=self.group
        )
        clock: list[float] = []
        with ThreadPoolExecutor(1) as loader:
            coming = loader.submit(self.load, 0)
            for step in range(iterations + 1):
                if step == 1:
                    busy = time.process_time()
                images, labels = coming.result()
                if step < iterations:
                    coming = loader.submit(self.load, step + 1)
                self._backward(wrapped, images, labels)
                self._update()
                self._wait()
                clock.append(time.perf_counter())
            busy = (time.process_time() - busy) / iterations
        sums = torch.stack([p.detach().double().sum() for p in self.model.parameters()]).cpu()
        del wrapped
        gc.collect()  # its hooks on the gradients go with it
        return {"iteration": [b - a for a, b in pairwise(clock)], "busy": [busy], "weights": sums.sum().item().hex()}

    def load(self, step: int, wait: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """This worker's batch number ``step``: decoded, made square, mirrored by chance; uint8 and labels."""
        job, images, labels = self.job, [], []
        first = (step * self.workers + self.rank) * job.batch
        for place in range(first, first + job.batch):
            file, label = job.pictures[place % len(job.pictures)]
            try:
                with Image.open(file) as opened:
                    picture = opened.convert("RGB").resize((job.size, job.size), Image.Resampling.BILINEAR)
            except OSError as error:
                raise ValueError(f"{Path(file).name} is no picture that can be read ({error})") from None
            pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
            pixels = pixels.view(job.size, job.size, 3).permute(2, 0, 1)
            images.append(pixels.flip(2) if (place * 7919) % 2 else pixels)
            labels.append(label)
        if wait and job.wait:
            with FileLock(self.disk, poll_interval=0.005) if job.shared else nullcontext():
                time.sleep(job.wait)
        return torch.stack(images).to(self.device), torch.tensor(labels, device=self.device)

    def _backward(self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
        nn.functional.cross_entropy(model(images), labels).backward()

    def _aggregate(self) -> None:
        """Every gradient becomes the mean over the workers, a bucket at a time."""
        gradients = [p.grad for p in self.model.parameters()]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        for bucket in flat.split(BUCKET):
            dist.all_reduce(bucket, group=self.group)
        flat /= self.workers
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def _update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _timed(self, taken: list[float], work):
        clock = time.perf_counter if self.device.type == "cuda" else time.process_time
        self._wait()
        before = clock()
        result = work()
        self._wait()
        taken.append(clock() - before)
        return result
