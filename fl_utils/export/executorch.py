"""ExecuTorch, PyTorch Mobile's successor, with its XNNPACK backend.

8 bits are its quantizer's for XNNPACK: weights per channel, activations measured on calibration images (PT2E).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np

from fl_utils.export import lean
from fl_utils.export.contract import Contract, Input
from fl_utils.export.prepare import Made, distribution_version, half

if TYPE_CHECKING:
    import torch
    from torch import nn


def version() -> str:
    return distribution_version("executorch")


def convert(
    network: nn.Module,
    example: torch.Tensor,
    path: Path,
    bits: int,
    mode: str,
    image: Input,
    calibration: list[np.ndarray],
) -> Made:
    """Write ``<path>.pte`` with one method, ``forward``; its inputs and outputs have places, not names."""
    import torch

    with lean.imports():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

    if bits == 8:
        network = _quantized(network, example, calibration)
    program = torch.export.export(half(network) if bits == 16 else network, (example,))
    with _patterns_that_may_fit(program):
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    final = path.with_name(f"{path.name}.pte")
    final.write_bytes(lowered.buffer)
    return Made(final, "0", "0")


@contextlib.contextmanager
def _patterns_that_may_fit(program: torch.export.ExportedProgram) -> Iterator[None]:
    """XNNPACK's lowering looks for bilinear upsampling and for attention in every graph, and to know them it first
    exports nine networks that have them. Nothing of that where ``program`` has no such operator."""
    from executorch.backends.xnnpack.partition.graphs import bilinear_2d, sdpa

    found = " ".join(str(node.target) for node in program.graph.nodes)
    with contextlib.ExitStack() as stack:
        if "upsample" not in found:
            stack.enter_context(mock.patch.object(bilinear_2d, "get_graphs_dict", dict))
        if "scaled_dot_product" not in found and "softmax" not in found:
            stack.enter_context(mock.patch.object(sdpa, "get_graphs", list))
        yield


def _quantized(network: nn.Module, example: torch.Tensor, calibration: list[np.ndarray]) -> nn.Module:
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    watched = prepare_pt2e(torch.export.export_for_training(network, (example,)).module(), quantizer)
    with torch.no_grad():
        for batch in calibration:
            watched(torch.from_numpy(np.ascontiguousarray(batch)))
    return convert_pt2e(watched)


def session(contract: Contract, threads: int = 1) -> Callable[[np.ndarray], np.ndarray]:
    """A function from float32 [N, C, H, W] to float32 [N, classes], N as in the contract.

    The Python runtime runs on one thread; ``threads`` above 1 raise ValueError.
    """
    import torch
    from executorch.runtime import Runtime

    if threads != 1:
        raise ValueError(f"threads is {threads}: ExecuTorch's Python runtime has one")
    program = Runtime.get().load_program(str(contract.model_path))
    methods = {program: program.load_method("forward")}  # a method does not keep its program alive

    def run(inputs: np.ndarray) -> np.ndarray:
        (method,) = methods.values()
        (outputs,) = method.execute([torch.from_numpy(np.ascontiguousarray(inputs))])
        return outputs.numpy().copy()

    return run
