"""A Core ML program computed in torch, operator by operator, where Core ML itself does not exist.

Apple's runtime is on Apple's machines only. What a .mlpackage holds is public, though: a graph of operators of the
model intermediate language (MIL), with its weights, compressed or not. This reads the file as it lies there, decodes
the weights and computes the graph. Arithmetic is in 32 bits; where the program says that a result has 16, it is rounded
to 16. So it answers what the file computes, not how Apple's hardware rounds inside an operator.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fl_utils.export.mil_operators import OPERATORS, UNREAD, Read, whole
from fl_utils.export.mil_weights import decode

if TYPE_CHECKING:
    from coremltools.converters.mil.mil import Operation


class Program:
    """The program of the .mlpackage at ``path``: one function from images to logits.

    Raises ValueError, naming the operator, where it holds one that is not known here.
    """

    def __init__(self, path: Path):
        from fl_utils.export.coreml import tools

        ct = tools()
        from coremltools.converters.mil.frontend.milproto.load import load

        model = ct.models.MLModel(str(path), skip_model_load=True)
        specification = model.get_spec()
        if specification.WhichOneof("Type") != "mlProgram":
            found = specification.WhichOneof("Type")
            raise ValueError(f"{path.name} is a Core ML {found}, not an ML program: convert it to 'mlprogram'")
        loaded = load(specification, specification.specificationVersion, model.weights_dir)
        function = loaded.functions["main"]
        ((self.input, image),) = function.inputs.items()
        self.output, self.batch = function.outputs[0].name, int(image.shape[0])
        self.steps = [operation for operation in function.operations if operation.op_type != "const"]
        self.constants: dict[str, Any] = {}
        unknown = sorted({step.op_type for step in self.steps if not _known(step.op_type)})
        if unknown:
            raise ValueError(f"{path.name} uses the MIL operator {unknown[0]!r}, which is not computed here")
        for step in self.steps:
            if step.op_type.startswith("constexpr_"):
                self.constants[step.outputs[0].name] = torch.from_numpy(decode(step.op_type, self._inputs(step, {})))
        self.steps = [step for step in self.steps if not step.op_type.startswith("constexpr_")]
        self.any_batch = self.batch == 1 and all(map(_image_by_image, self.steps))

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """float32 [N, C, H, W] -> float32 [N, classes], N as in the program, or any where ``any_batch``."""
        env: dict[str, Any] = {self.input: torch.from_numpy(np.ascontiguousarray(images, np.float32))}
        for step in self.steps:
            inputs = self._inputs(step, env)
            if step.op_type == "reshape" and len(images) != self.batch:
                inputs["shape"] = [len(images), *whole(inputs["shape"])[1:]]
            results = OPERATORS[step.op_type](inputs)
            if unread := inputs.left - UNREAD:
                what = f"the MIL operator {step.op_type!r} with {', '.join(sorted(unread))}"
                raise ValueError(f"{what}, which is not computed here")
            results = results if isinstance(results, list) else [results]
            for variable, result in zip(step.outputs, results, strict=False):  # classify: its first output is a text
                env[variable.name] = result.half().float() if _is_half(variable) else result
        return env[self.output].numpy()

    def _inputs(self, step: Operation, env: dict[str, Any]) -> Read:
        return Read({name: self._value(given, env) for name, given in step.inputs.items() if given is not None})

    def _value(self, variable: Any, env: dict[str, Any]) -> Any:
        """A computed tensor, decoded weights, or a constant: arrays of floats as tensors, all else as it stands."""
        if isinstance(variable, list | tuple):
            return [self._value(each, env) for each in variable]
        for known in (env, self.constants):
            if variable.name in known:
                return known[variable.name]
        value = variable.val
        if isinstance(value, np.ndarray | np.floating) and np.asarray(value).dtype in (np.float16, np.float32):
            array = np.asarray(value, np.float32)
            value = self.constants[variable.name] = torch.from_numpy(array.copy()) if array.ndim else float(array)
        return value


def _known(kind: str) -> bool:
    return kind in OPERATORS or kind.startswith("constexpr_")


def _is_half(variable: Any) -> bool:
    from coremltools.converters.mil.mil import types

    return variable.sym_type is not None and variable.dtype == types.fp16


def _image_by_image(step: Operation) -> bool:
    """Whether a step for one image is the same step for many: it leaves the first dimension alone."""
    inputs = {name: given.val for name, given in step.inputs.items() if hasattr(given, "val") and given.val is not None}
    if step.op_type == "reshape":
        return whole(inputs["shape"])[0] == 1
    if step.op_type == "transpose":
        return whole(inputs["perm"])[0] == 0
    if step.op_type in ("squeeze", "expand_dims", "concat", "split", "softmax", "layer_norm") or "axes" in inputs:
        rank = step.outputs[0].rank if step.op_type == "expand_dims" else _rank(step)
        axes = inputs.get("axes", inputs.get("axis"))
        return axes is not None and 0 not in [axis % rank for axis in whole(axes)]
    return step.op_type not in ("slice_by_index", "pad", "matmul", "reduce_mean", "reduce_sum", "reduce_max")


def _rank(step: Operation) -> int:
    first = step.inputs.get("x", step.inputs.get("values"))
    return (first[0] if isinstance(first, list | tuple) else first).rank
