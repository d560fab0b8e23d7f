"""ONNX, and ONNX Runtime that runs it.

16 bits: weights and arithmetic, inputs and outputs stay float32. 8 bits: by ONNX Runtime's quantizer, per channel; with
``reduce_range``, that is 7 of the 8 bits of a weight, since the 8-bit products of processors without VNNI overflow
otherwise and the same file would give other answers there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fl_utils.export.contract import Contract, Input
from fl_utils.export.prepare import Made, distribution_version

if TYPE_CHECKING:
    import torch
    from torch import nn

OPSET = 17


def version() -> str:
    return distribution_version("onnxruntime")


def convert(
    network: nn.Module,
    example: torch.Tensor,
    path: Path,
    bits: int,
    mode: str,
    image: Input,
    calibration: list[np.ndarray],
) -> Made:
    """Write ``<path>.onnx``."""
    import torch

    final, plain = path.with_name(f"{path.name}.onnx"), path.with_name(f"{path.name}.float.onnx")
    torch.onnx.export(
        network,
        (example,),
        str(final if bits == 32 else plain),
        dynamo=False,  # the newer exporter takes longer and needs a graph per input shape all the same
        opset_version=OPSET,
        input_names=["image"],
        output_names=["logits"],
    )
    if bits == 16:
        import onnx
        from onnxruntime.transformers.float16 import convert_float_to_float16

        onnx.save(convert_float_to_float16(onnx.load(str(plain)), keep_io_types=True), str(final))
    elif bits == 8:
        _quantize(plain, final, mode, calibration)
    return Made(final, "image", "logits")


def _quantize(plain: Path, final: Path, mode: str, calibration: list[np.ndarray]) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )

    if mode == "dynamic":
        quantize_dynamic(str(plain), str(final), weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
        return

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.left, None)
            return None if batch is None else {"image": batch}

    quantize_static(
        str(plain),
        str(final),
        Images(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
    )


def session(contract: Contract, threads: int = 1) -> Callable[[np.ndarray], np.ndarray]:
    """A function from float32 [N, C, H, W] to float32 [N, classes], N as in the contract, on ``threads`` threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    loaded = onnxruntime.InferenceSession(str(contract.model_path), options, providers=["CPUExecutionProvider"])
    return lambda inputs: loaded.run([contract.output.name], {contract.input.name: inputs})[0]
