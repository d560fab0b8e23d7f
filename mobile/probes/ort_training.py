"""ONNX Runtime trains the CNN of Table 6.2 on a job, in an environment of its own (onnxruntime-training).

    python ort_training.py JOB.npz RESULT.npz

JOB holds ``parameter_0`` .. ``parameter_7`` (torch's shapes), ``x`` uint8 [N, 1, 28, 28], ``y`` int64 [N], ``order``
int64 [steps, batch] (indices into x, -1 fills a short last batch), ``test_x``, ``test_y``, ``learning_rates`` float32
[steps], ``check_steps``. RESULT gets ``parameter_0`` .. after ``check_steps`` steps and ``losses`` of all; RESULT.json
the versions, the CPU seconds of all steps, and the accuracy after them.
"""

import json
import sys
import tempfile
import time
import types
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# onnxruntime.training imports its optimizers for torch, and torch with them. Training on a device uses neither.
sys.modules["onnxruntime.training.optim"] = types.ModuleType("onnxruntime.training.optim")

import onnxruntime  # noqa: E402
from onnxruntime.training import api, artifacts  # noqa: E402


def network(parameters: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The CNN of Table 6.2 as a graph from ``image`` [N, 1, 28, 28] to ``logits`` [N, classes]."""
    p = list(parameters)
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        helper.make_node("Conv", ["image", p[0], p[1]], ["c1"]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["m1"], **pool),
        helper.make_node("Conv", ["m1", p[2], p[3]], ["c2"]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("MaxPool", ["r2"], ["m2"], **pool),
        helper.make_node("Flatten", ["m2"], ["f"]),
        helper.make_node("Gemm", ["f", p[4], p[5]], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r3"]),
        helper.make_node("Gemm", ["r3", p[6], p[7]], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "table_6_2",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 28, 28])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(parameters[p[7]])])],
        [numpy_helper.from_array(value, name) for name, value in parameters.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def main(job_path: str, result_path: str) -> None:
    with np.load(job_path, allow_pickle=False) as file:
        job = dict(file)
    names = sorted(name for name in job if name.startswith("parameter_"))
    with tempfile.TemporaryDirectory() as folder:
        artifacts.generate_artifacts(
            network({name: job[name] for name in names}),
            requires_grad=names,
            loss=artifacts.LossType.CrossEntropyLoss,
            optimizer=artifacts.OptimType.SGD,
            artifact_directory=folder,
            additional_output_names=["logits"],
        )
        state = api.CheckpointState.load_checkpoint(str(Path(folder) / "checkpoint"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        model = api.Module(
            str(Path(folder) / "training_model.onnx"),
            state,
            str(Path(folder) / "eval_model.onnx"),
            session_options=options,
        )
        optimizer = api.Optimizer(str(Path(folder) / "optimizer_model.onnx"), model)
        images, checked, losses = job["x"].astype(np.float32) / 255, {}, []
        model.train()
        begun = time.process_time()
        for number, (chosen, rate) in enumerate(zip(job["order"], job["learning_rates"], strict=True), 1):
            chosen = chosen[chosen >= 0]
            optimizer.set_learning_rate(float(rate))
            loss, _ = model(images[chosen], job["y"][chosen])
            optimizer.step()
            model.lazy_reset_grad()
            losses.append(float(loss))
            if number == int(job["check_steps"]):
                checked = {name: np.array(state.parameters[name].data) for name in names}
        seconds = time.process_time() - begun
        model.eval()
        right = 0
        for start in range(0, len(job["test_y"]), 256):
            part = slice(start, start + 256)
            _, logits = model(job["test_x"][part].astype(np.float32) / 255, job["test_y"][part])
            right += int((np.asarray(logits).argmax(1) == job["test_y"][part]).sum())
    np.savez(result_path, losses=np.array(losses), **checked)
    about = {
        "versions": {"onnxruntime-training": onnxruntime.__version__, "onnx": onnx.__version__},
        "seconds": seconds,
        "steps": len(losses),
        "accuracy": right / len(job["test_y"]),
    }
    Path(result_path).with_suffix(".json").write_text(json.dumps(about) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
