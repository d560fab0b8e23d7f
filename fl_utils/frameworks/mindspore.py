"""MindSpore Lite, which took HiAI's place in Huawei's tools, in an environment of its own.

HiAI's own converter and runtime are in no package index. MindSpore Lite has one release there, 2.0.0 of June 2023, for
CPython 3.7: ``make mindspore`` puts it into ``.venv-mindspore`` at the root of the repository, where a Python 3.7 is to
be had. Without it, every cell says "not installed here".
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fl_utils import paths
from fl_utils.environments import Environment
from fl_utils.frameworks.trial import CNN, NETWORKS, NO, NOT_INSTALLED, Cell, Trial, attempt, first_line

MINDSPORE = Environment("MindSpore Lite", ".venv-mindspore", Path(__file__).with_name("mindspore_script.py"))
SECONDS = 300  # that the script may take


def cell(column: str, trial: Trial, root: Path = paths.ROOT) -> Cell:
    """HiAI's cell of ``column``, decided by MindSpore Lite where its environment is below ``root``."""
    if MINDSPORE.python(root) is None:
        return Cell(NOT_INSTALLED, f"its environment is {MINDSPORE.folder}")
    return attempt(lambda: _decided(column, trial, root))


def _decided(column: str, trial: Trial, root: Path) -> Cell:
    outputs, about = found(trial, root)
    if column.startswith("training"):
        names = about["training"]
        said = f"the Python interface of version {about['version']} has "
        said += f"{', '.join(names)}" if names else "no name that speaks of training"
        return Cell(NO, said)
    if column == "inference":
        missing = [name for name in NETWORKS if f"{name}/32/outputs" not in outputs]
        if missing:
            return Cell(NO, error=first_line(about["errors"].get(f"{missing[0]}/32", "no output")))
        return trial.inferred_cell({name: outputs[f"{name}/32/outputs"] for name in NETWORKS})
    made: dict[int, tuple[int, float | None]] = {}
    for key, size in about["sizes"].items():
        name, bits = key.split("/")
        if name == CNN:
            values = outputs.get(f"{key}/outputs")
            made[int(bits)] = size, None if values is None else trial.correlation(CNN, values)
    refused = [f"{key.split('/')[1]} bits: {first_line(said)}" for key, said in about["errors"].items()]
    return trial.widths_cell(made, refused[0] if refused else "")


def found(trial: Trial, root: Path) -> tuple[dict[str, np.ndarray], dict]:
    """What the script finds, run once: outputs, and its report. RuntimeError, with its last lines, where it fails."""
    if "mindspore" in trial.made:
        return trial.made["mindspore"]
    job: dict[str, np.ndarray] = {"names": np.array(list(NETWORKS))}
    for name in NETWORKS:
        job[f"{name}/file"] = np.array(str(_without_dilations(name, trial).resolve()))
        job[f"{name}/images"] = trial.inputs(name).numpy()
    trial.made["mindspore"] = MINDSPORE.run(job, SECONDS, root)
    return trial.made["mindspore"]


def _without_dilations(name: str, trial: Trial) -> Path:
    """The network's ONNX file without the dilations of 1 that torch writes at a pool: they are refused here."""
    import onnx

    from fl_utils.frameworks.converted import exported

    plain = exported("onnx", name, trial).model_path
    model = onnx.load(str(plain))
    for node in (node for node in model.graph.node if node.op_type == "MaxPool"):
        kept = [each for each in node.attribute if (each.name, list(each.ints)) != ("dilations", [1, 1])]
        del node.attribute[:]
        node.attribute.extend(kept)
    path = plain.with_name(f"{name}-mindspore.onnx")
    onnx.save(model, str(path))
    return path
