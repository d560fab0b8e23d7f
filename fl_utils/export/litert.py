"""LiteRT (once TensorFlow Lite): converted by litert-torch, narrowed by ai-edge-quantizer, run by ai-edge-litert."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fl_utils.export import lean
from fl_utils.export.contract import Contract, Input
from fl_utils.export.prepare import Made, distribution_version

if TYPE_CHECKING:
    import torch
    from torch import nn

SIGNATURE = "serving_default"


def version() -> str:
    return distribution_version("ai-edge-litert")


def convert(
    network: nn.Module,
    example: torch.Tensor,
    path: Path,
    bits: int,
    mode: str,
    image: Input,
    calibration: list[np.ndarray],
) -> Made:
    """Write ``<path>.tflite`` with one signature, ``serving_default``."""
    with lean.imports():
        import litert_torch

    final = path.with_name(f"{path.name}.tflite")
    plain = final if bits == 32 else path.with_name(f"{path.name}.float.tflite")
    litert_torch.signature(SIGNATURE, network, sample_kwargs={"image": example}).convert().export(str(plain))
    if bits < 32:
        final.write_bytes(quantized(plain, bits, mode))
    return Made(final, "image", _output(final))


def quantized(plain: Path, bits: int, mode: str) -> bytes:
    """The file ``plain`` with weights of ``bits`` bits: 16 (floats), or 8 or 4 in ``mode`` dynamic or weight_only."""
    from ai_edge_quantizer import qtyping, quantizer, recipe

    work = quantizer.Quantizer(str(plain))
    if bits == 16:
        weights = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
        work.update_quantization_recipe(
            regex=".*",
            operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
            op_config=qtyping.OpQuantizationConfig(
                weight_tensor_config=weights, compute_precision=qtyping.ComputePrecision.FLOAT
            ),
            algorithm_key=recipe.AlgorithmName.FLOAT_CASTING,
        )
    else:
        work.load_quantization_recipe(getattr(recipe, f"{mode}_wi{bits}_afp32")())
    return work.quantize().quantized_model


def _output(path: Path) -> str:
    from ai_edge_litert.interpreter import Interpreter

    (name,) = Interpreter(str(path)).get_signature_list()[SIGNATURE]["outputs"]
    return name


def session(contract: Contract, threads: int = 1) -> Callable[[np.ndarray], np.ndarray]:
    """A function from float32 [N, C, H, W] to float32 [N, classes], N as in the contract, on ``threads`` threads."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(contract.model_path), num_threads=threads).get_signature_runner(SIGNATURE)
    return lambda inputs: runner(**{contract.input.name: inputs})[contract.output.name]
