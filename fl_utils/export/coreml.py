"""Core ML: an ML program (.mlpackage) by torch.jit.trace, weights narrowed by coremltools.

The pre-processing goes into the model as its image type's scale and bias: iOS then takes pixels as a camera gives them.
32 and 16 bits are the arithmetic as well as the weights; narrower weights are decoded to 32-bit arithmetic.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from fl_utils.export import lean
from fl_utils.export.contract import Contract, Input
from fl_utils.export.prepare import Made, distribution_version
from fl_utils.export.quiet import silenced

if TYPE_CHECKING:
    import torch
    from torch import nn

# What coremltools imports where it is there, and imports always: seconds, for converters and trainers not used here.
UNUSED = ("sklearn", "xgboost", "libsvm", "tensorflow", "executorch", "torchao", "torchaudio", "transformers")
TRAINERS = "coremltools.optimize.torch"


def version() -> str:
    return distribution_version("coremltools")


@functools.cache
def tools() -> ModuleType:
    """coremltools, imported in silence and without the packages of :data:`UNUSED` that are not imported already, and
    without :data:`TRAINERS`."""
    hidden: dict[str, ModuleType | None] = {}
    if "coremltools" not in sys.modules:  # None: importing it raises ImportError
        hidden = {name: None for name in UNUSED if name not in sys.modules} | {TRAINERS: ModuleType(TRAINERS)}
    with silenced(), lean.paused_collector():
        try:
            sys.modules.update(hidden)
            import coremltools
            import coremltools.optimize.coreml
        finally:
            for name in hidden:
                del sys.modules[name]
    return coremltools


def convert(
    network: nn.Module,
    example: torch.Tensor,
    path: Path,
    bits: int,
    mode: str,
    image: Input,
    calibration: list[np.ndarray],
) -> Made:
    """Write ``<path>.mlpackage`` with an image input ``image`` and an output ``logits``."""
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    ct = tools()
    layout = ct.colorlayout.RGB if image.colours == "RGB" else ct.colorlayout.GRAYSCALE
    bias = list(image.bias) if image.colours == "RGB" else image.bias[0]
    taken = ct.ImageType(name="image", shape=image.shape, scale=image.scale[0], bias=bias, color_layout=layout)
    needs_18 = bits == 3 or mode == "palette_channel" or (bits == 4 and mode == "linear")
    with torch.no_grad():
        # sizes become numbers: coremltools 8.3 and NumPy 2.4 do not agree on computed ones (those of a channel shuffle)
        constant = make_fx(network, pre_dispatch=True)(example)
        traced = torch.jit.trace(constant, example, check_trace=False)
    with lean.programs_checked_once():
        model = ct.convert(
            traced,
            inputs=[taken],
            outputs=[ct.TensorType(name="logits", dtype=np.float32)],
            convert_to="mlprogram",
            compute_precision=ct.precision.FLOAT16 if bits == 16 else ct.precision.FLOAT32,
            minimum_deployment_target=ct.target.iOS18 if needs_18 else ct.target.iOS16,
            skip_model_load=True,
        )
        if bits < 16:
            model = _narrowed(ct, model, bits, mode)
    model.short_description = "made by fl_utils.export; what it takes and gives is in the contract beside it"
    final = path.with_name(f"{path.name}.mlpackage")
    model.save(str(final))
    return Made(final, "image", "logits")


def _narrowed(ct: ModuleType, model, bits: int, mode: str):
    """``model`` with every weight in ``bits`` bits, however small its tensor."""
    optimize = ct.optimize.coreml
    if mode == "linear":
        config = optimize.OpLinearQuantizerConfig(
            mode="linear_symmetric", dtype=f"int{bits}", granularity="per_channel", weight_threshold=0
        )
        return optimize.linear_quantize_weights(model, optimize.OptimizationConfig(config))
    groups = {"granularity": "per_grouped_channel", "group_size": 1} if mode == "palette_channel" else {}
    config = optimize.OpPalettizerConfig(mode="kmeans", nbits=bits, weight_threshold=0, **groups)
    return optimize.palettize_weights(model, optimize.OptimizationConfig(config))


def session(contract: Contract, threads: int = 1) -> Callable[[np.ndarray], np.ndarray]:
    """The program in torch (:class:`fl_utils.export.mil.Program`): float32 pixels [N, C, H, W] to [N, classes].

    ``threads`` are torch's own here; more than 1 raise ValueError.
    """
    if threads != 1:
        raise ValueError(f"threads is {threads}: the MIL program runs on torch's threads, set those")
    from fl_utils.export.mil import Program

    return Program(contract.model_path)
