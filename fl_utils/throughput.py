"""Images per second of one network in several runtimes, one image at a time (Hofman 2020, section 6.4).

    contracts, missing = files(network, (1, 3, 32, 32), ["onnx/32", "litert/8"], calibration, folder)
    trace = traced(network, (1, 3, 32, 32))
    measured = measure(sessions(network, contracts, 1, trace), image, repeats=5, calls=2)
    measured["litert/8"].seconds()          # of the processor for one image, the median of 5

A variant is ``runtime/bits``: "torch/32" is the module itself, "torchscript/32" its frozen trace; those of onnx, litert
and executorch are exported files. Variants take turns in every repeat, so that a busy moment of the machine meets all.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fl_utils import paths
from fl_utils.export import Contract, export
from fl_utils.export.contract import digest
from fl_utils.export.quiet import silenced

EAGER, TRACED = "torch/32", "torchscript/32"
MODES = {  # of the files: which of the runtime's ways to make 8 bits
    "onnx/32": "float",
    "onnx/8": "static",
    "litert/32": "float",
    "litert/8": "dynamic",
    "executorch/32": "float",
    "executorch/8": "static",
}
VARIANTS = (EAGER, TRACED, *MODES)

Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Measured:
    """Seconds of one image, one number per repeat: of the processor (all threads together), and of the clock."""

    processor: tuple[float, ...]
    clock: tuple[float, ...]

    def seconds(self) -> float:
        """Of the processor, the median over the repeats: what one thread needs, whatever else the machine does."""
        return statistics.median(self.processor)

    @property
    def fastest(self) -> float:
        """Of the clock, the least over the repeats: for several threads, in the turn that others disturbed least."""
        return min(self.clock)

    @property
    def busy(self) -> float:
        """Cores at work, on average: processor over clock."""
        return sum(self.processor) / sum(self.clock)


class SplitReLU6(nn.Module):
    """ReLU6 in the four steps of Hofman's Figure 6.2: ReLU, times -1, threshold at -6, times -1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -torch.clamp(-torch.relu(x), min=-6.0)


def with_split_relu6(network: nn.Module) -> nn.Module:
    """A copy of ``network`` with every ReLU6 in four steps. Raises ValueError where it has none."""
    changed = copy.deepcopy(network)
    owners = [(m, name) for m in changed.modules() for name, child in m.named_children() if isinstance(child, nn.ReLU6)]
    if not owners:
        raise ValueError("the network has no ReLU6 to split")
    for owner, name in owners:
        setattr(owner, name, SplitReLU6())
    return changed


def with_statistics(network: nn.Module, images: torch.Tensor) -> nn.Module:
    """``network`` in evaluation mode, its batch norms holding the statistics of ``images``, float [N, C, H, W].

    Untrained statistics (0 and 1) let the signal of random weights fade, layer by layer, to 1e-10: then any two
    networks agree, and a comparison of outputs says nothing.
    """
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.reset_running_stats()
        norm.momentum = None  # the mean over batches; there is one
    with torch.no_grad():
        network.train()(images)
    return network.eval()


def check(variants: Sequence[str]) -> None:
    """Raise ValueError on a variant that is none of VARIANTS, or that is there twice."""
    unknown = [name for name in variants if name not in VARIANTS]
    if unknown or len(set(variants)) != len(variants):
        raise ValueError(f"variants are {list(variants)}: want different ones of {', '.join(VARIANTS)}")


def files(
    network: nn.Module, shape: Sequence[int], variants: Sequence[str], calibration: np.ndarray, folder: Path | str
) -> tuple[dict[str, Contract], dict[str, str]]:
    """Export ``network`` (inputs in [0, 1], [N, C, H, W]) to the files among ``variants``, into ``folder``.

    calibration: uint8 [N, H, W, C], for static 8 bits. Returns the contracts, and the reasons of those that are left
    out because their converter is not installed here. Raises ValueError on an unknown variant or what does not fit.
    """
    check(variants)
    made: dict[str, Contract] = {}
    missing: dict[str, str] = {}
    with torch.no_grad():
        classes = network(torch.zeros(tuple(shape))).shape[1]
    labels = [str(label) for label in range(classes)]
    for variant in (name for name in variants if name in MODES):
        runtime, bits = variant.split("/")
        try:
            if variant == "litert/8" and "litert/32" in made:
                made[variant] = _narrowed(made["litert/32"])  # a second conversion would take as long as the first
                continue
            options = {"calibration": calibration} if MODES[variant] == "static" else {}
            name = f"{runtime}{bits}"
            made[variant] = export(
                network, shape, labels, runtime, folder, int(bits), name, mode=MODES[variant], **options
            )
        except ImportError as error:
            missing[variant] = f"not installed here ({error})"
    return made, missing


def _narrowed(plain: Contract) -> Contract:
    """The float LiteRT file of ``plain`` with weights of 8 bits, in a file and a contract of its own."""
    from fl_utils.export import litert

    with silenced():
        data = litert.quantized(plain.model_path, 8, "dynamic")
    path = paths.write_whole(plain.model_path.with_name("litert8.tflite"), data)
    size, sha256 = digest(path)
    narrow = replace(plain, name="litert8", bits=8, mode="dynamic", file=path.name, bytes=size, sha256=sha256)
    return narrow.write(path.parent)


def traced(network: nn.Module, shape: Sequence[int]) -> torch.jit.ScriptModule:
    """``network`` as a frozen TorchScript graph for float32 of ``shape``. It is not traced a second time to compare:
    whoever times it compares its outputs."""
    with silenced(), torch.no_grad():
        return torch.jit.freeze(torch.jit.trace(network, torch.zeros(tuple(shape)), check_trace=False))


def sessions(
    network: nn.Module, contracts: Mapping[str, Contract], threads: int, trace: nn.Module | None = None
) -> dict[str, Run]:
    """Each variant as a function from float32 [N, C, H, W] to logits, on ``threads`` threads: torch first, then
    ``trace``, where there is one (:func:`traced`).

    ExecuTorch's threads belong to the process, and torch's do: sessions of another number of threads are not to be run
    after this. Raises ValueError where ``threads`` is below 1.
    """
    if type(threads) is not int or threads < 1:
        raise ValueError(f"threads is {threads!r}: want a whole number from 1 up")
    torch.set_num_threads(threads)
    runs = {EAGER: _torch(network)} | ({TRACED: _torch(trace)} if trace is not None else {})
    with silenced():
        for variant, contract in contracts.items():
            runs[variant] = _session(contract, threads)
    return runs


def _torch(network: nn.Module) -> Run:
    def run(inputs: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(inputs)).numpy()

    return run


def _session(contract: Contract, threads: int) -> Run:
    if contract.runtime == "onnx":
        from fl_utils.export.onnx import session
    elif contract.runtime == "litert":
        from fl_utils.export.litert import session
    else:
        from executorch.extension.pybindings import _portable_lib

        from fl_utils.export.executorch import session

        _portable_lib._unsafe_reset_threadpool(threads)  # unsafe while a method runs, and none does
        return session(contract)
    return session(contract, threads)


def measure(runs: Mapping[str, Run], inputs: np.ndarray, repeats: int, calls: int) -> dict[str, Measured]:
    """Time each of ``runs`` on ``inputs``, one image float32 [1, C, H, W]: ``calls`` at a stretch, ``repeats`` times.

    Two calls before that are not counted. Raises ValueError on no repeats or calls, or more than one image.
    """
    if repeats < 1 or calls < 1 or len(inputs) != 1:
        raise ValueError(f"repeats {repeats}, calls {calls}, {len(inputs)} images: want at least 1, 1, and one image")
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    with silenced():
        for run in runs.values():
            run(inputs), run(inputs)
        for _ in range(repeats):
            for name, run in runs.items():
                clock, processor = time.perf_counter(), time.process_time()
                for _ in range(calls):
                    run(inputs)
                spent = time.process_time() - processor, time.perf_counter() - clock
                taken[name].append((spent[0] / calls, spent[1] / calls))
    return {name: Measured(*zip(*pairs, strict=True)) for name, pairs in taken.items()}
