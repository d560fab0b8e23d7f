"""Chapter 5 of Hofman 2020 as probes: what each mobile framework can do today, decided by doing it.

    trial = Trial(folder, seed=0)
    decide("tensorflow_lite", "inference", trial)     # Cell("yes", "off by 4e-05 at most, ...")

trial           the two networks, their images, and how torch itself answers and trains
converted       Core ML, LiteRT, ExecuTorch, ONNX Runtime by fl_utils.export: inference, widths of weights
pytorch_mobile  TorchScript files run by the lite interpreter, one of them with a training step in it
training        LiteRT's and Core ML's training; ONNX Runtime and ExecuTorch in environments of their own
pysyft          a job that an owner runs
mindspore       MindSpore Lite, which took HiAI's place, in an environment of its own

A cell is "yes" (done, and equal to torch within the tolerance that the evidence names), "partly" (done in part, and the
evidence says which), "no" (refused, with the framework's words), "not installed here" or "not probed".
"""

from __future__ import annotations

from fl_utils.frameworks.trial import NO, NOT_INSTALLED, PARTLY, YES, Cell, Trial

__all__ = ["COLUMNS", "ELSEWHERE", "FRAMEWORKS", "NO", "NOT_INSTALLED", "PARTLY", "YES", "Cell", "Trial", "decide"]

FRAMEWORKS = {  # the thesis' five by their names in papers/mobile/published.csv, then two that came after
    "hiai": "HiAI (MindSpore Lite)",
    "tensorflow_lite": "TensorFlow Lite (LiteRT)",
    "pytorch_mobile": "PyTorch Mobile",
    "pysyft": "PySyft",
    "core_ml": "Core ML",
    "executorch": "ExecuTorch",
    "onnx_runtime": "ONNX Runtime",
}
COLUMNS = {
    "inference": "inference",
    "training_cnn": "trains the CNN",
    "training_mobilenet": "trains MobileNetV2",
    "quantization": "quantization",
}
ELSEWHERE = {  # cells that another Python environment decides, where it is there
    *(("hiai", column) for column in COLUMNS),
    *(
        (framework, column)
        for framework in ("executorch", "onnx_runtime")
        for column in COLUMNS
        if "training" in column
    ),
}
RUNTIMES = {"tensorflow_lite": "litert", "core_ml": "coreml", "executorch": "executorch", "onnx_runtime": "onnx"}


def decide(framework: str, column: str, trial: Trial) -> Cell:
    """One cell of the table. Raises ValueError on a framework or column that there is not."""
    if framework not in FRAMEWORKS:
        raise ValueError(f"framework is {framework!r}: want one of {', '.join(FRAMEWORKS)}")
    if column not in COLUMNS:
        raise ValueError(f"column is {column!r}: want one of {', '.join(COLUMNS)}")
    from fl_utils.frameworks import converted, mindspore, pysyft, pytorch_mobile, training

    if framework == "hiai":
        return mindspore.cell(column, trial)
    if framework == "pysyft":
        return pysyft.cell(column, trial)
    if framework == "pytorch_mobile":
        return pytorch_mobile.cell(column, trial)
    if column == "inference":
        return converted.inference(RUNTIMES[framework], trial)
    if column == "quantization":
        return converted.quantization(RUNTIMES[framework], trial)
    return training.cell(framework, column, trial)
