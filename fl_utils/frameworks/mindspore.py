"""MindSpore Lite, which took HiAI's place in Huawei's tools, in an environment of its own.

HiAI's own converter and runtime are in no package index. MindSpore Lite has one release there, 2.0.0 of June 2023, for
CPython 3.7: ``make mindspore`` puts it into ``.venv-mindspore`` at the root of the repository, where a Python 3.7 is to
be had. Without it, every cell says "not installed here".
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from fl_utils import paths
from fl_utils.frameworks.trial import CNN, NETWORKS, NO, NOT_INSTALLED, Cell, Trial, attempt, first_line
from fl_utils.on_device.other import Other

MINDSPORE = Other("MindSpore Lite", ".venv-mindspore", "mindspore_script.py")
SECONDS = 300  # that the script may take
LINES = 3  # of a failed script's output


def cell(column: str, trial: Trial, root: Path = paths.ROOT) -> Cell:
    """HiAI's cell of ``column``, decided by MindSpore Lite where its environment is below ``root``."""
    python = MINDSPORE.python(root)
    if python is None:
        return Cell(NOT_INSTALLED, f"its environment is {MINDSPORE.environment}")
    return attempt(lambda: _decided(column, trial, python))


def _decided(column: str, trial: Trial, python: Path) -> Cell:
    outputs, about = found(trial, python)
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


def found(trial: Trial, python: Path) -> tuple[dict[str, np.ndarray], dict]:
    """What the script finds, run once: outputs, and its report. RuntimeError, with its last lines, where it fails."""
    if "mindspore" in trial.made:
        return trial.made["mindspore"]
    job: dict[str, np.ndarray] = {"names": np.array(list(NETWORKS))}
    for name in NETWORKS:
        job[f"{name}/file"] = np.array(str(_without_dilations(name, trial).resolve()))
        job[f"{name}/images"] = trial.inputs(name).numpy()
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    variables["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        given, result = Path(folder) / "job.npz", Path(folder) / "result.npz"
        np.savez(given, **job)
        command = [str(python), str(Path(__file__).with_name(MINDSPORE.script)), str(given), str(result)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=variables)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{MINDSPORE.name} took longer than {SECONDS} s") from None
        if done.returncode:
            last = " ".join((done.stderr or done.stdout).strip().splitlines()[-LINES:])
            raise RuntimeError(f"{MINDSPORE.name} failed with exit code {done.returncode}: {last}")
        with np.load(result, allow_pickle=False) as file:
            outputs = dict(file.items())
        about = json.loads(result.with_suffix(".json").read_text(encoding="utf-8"))
    trial.made["mindspore"] = outputs, about
    return outputs, about


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
