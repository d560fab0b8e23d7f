"""ExecuTorch trains the CNN of Table 6.2 on a job, in an environment of its own (executorch 1.0.1 and its torch).

    python executorch_training.py JOB.npz RESULT.npz

JOB and RESULT are those of ort_training.py. The network is exported with its loss and its backward pass; the program
is loaded again and trained by ExecuTorch's own SGD. Its max-pooling is written as slices and comparisons, since the
exported backward pass of a max-pool behind a convolution gives wrong gradients in this version.
"""

import json
import os
import sys
import time
import warnings
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

warnings.filterwarnings("ignore")
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])  # flatc


class Pool(nn.Module):
    """Max-pooling of 2 x 2 with stride 2; of equal values the first has the gradient, as in torch's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        x = x[:, :, : h // 2 * 2, : w // 2 * 2].reshape(n, c, h // 2, 2, w // 2, 2)
        left, right = x[..., 0], x[..., 1]
        x = torch.where(left >= right, left, right)
        upper, lower = x[:, :, :, 0], x[:, :, :, 1]
        return torch.where(upper >= lower, upper, lower)


class Trained(nn.Module):
    """The network with its loss, the mean over the rows of ``labels`` that are not all zero; also gives the logits."""

    def __init__(self, parameters: list[np.ndarray]):
        super().__init__()
        for number, value in enumerate(parameters):
            setattr(self, f"parameter_{number}", nn.Parameter(torch.from_numpy(value)))
        self.pool = Pool()

    def forward(self, image: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        p = [getattr(self, f"parameter_{number}") for number in range(8)]
        x = self.pool(torch.relu(functional.conv2d(image, p[0], p[1])))
        x = self.pool(torch.relu(functional.conv2d(x, p[2], p[3])))
        x = torch.relu(functional.linear(x.flatten(1), p[4], p[5]))
        logits = functional.linear(x, p[6], p[7])
        loss = -(torch.log_softmax(logits, 1) * labels).sum() / labels.sum()
        return loss, logits.detach()


def program(network: Trained, image: torch.Tensor, labels: torch.Tensor) -> bytes:
    """The network with its backward pass as an ExecuTorch program for batches of this size."""
    from executorch.exir import EdgeCompileConfig, to_edge
    from torch.export.experimental import _export_forward_backward

    joint = _export_forward_backward(torch.export.export(network, (image, labels), strict=True))
    return to_edge(joint, compile_config=EdgeCompileConfig(_check_ir_validity=False)).to_executorch().buffer


def batch(x: np.ndarray, y: np.ndarray, chosen: np.ndarray, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [B, 1, 28, 28] and one-hot labels [B, classes]; a row is zero where ``chosen`` is -1."""
    images = np.where((chosen >= 0)[:, None, None, None], x[chosen], 0).astype(np.float32) / 255
    labels = np.eye(classes, dtype=np.float32)[y[chosen]] * (chosen >= 0)[:, None]
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.float32))


def main(job_path: str, result_path: str) -> None:
    from executorch.extension.training import _load_for_executorch_for_training_from_buffer, get_sgd_optimizer

    torch.set_num_threads(1)
    with np.load(job_path, allow_pickle=False) as file:
        job = dict(file)
    names = sorted(name for name in job if name.startswith("parameter_"))
    classes = len(job[names[-1]])
    network = Trained([job[name] for name in names])
    loaded = program(network, *batch(job["x"], job["y"], job["order"][0], classes))
    module = _load_for_executorch_for_training_from_buffer(loaded)  # reads from `loaded` as long as it lives
    checked, losses = {}, []
    begun = time.process_time()
    for number, (chosen, rate) in enumerate(zip(job["order"], job["learning_rates"], strict=True), 1):
        loss, _ = module.forward_backward("forward", batch(job["x"], job["y"], chosen, classes))
        # Plain SGD keeps nothing from step to step, and its rate cannot be set: a new one takes each.
        get_sgd_optimizer(module.named_parameters(), float(rate)).step(module.named_gradients())
        losses.append(loss.item())
        if number == int(job["check_steps"]):
            checked = {name: module.named_parameters()[name].clone().numpy() for name in names}
    seconds = time.process_time() - begun
    size, right = job["order"].shape[1], 0
    for start in range(0, len(job["test_y"]), size):
        chosen = np.arange(start, start + size)
        chosen[chosen >= len(job["test_y"])] = -1
        _, logits = module.forward_backward("forward", batch(job["test_x"], job["test_y"], chosen, classes))
        right += int(((logits.argmax(1).numpy() == job["test_y"][chosen]) & (chosen >= 0)).sum())
    np.savez(result_path, losses=np.array(losses), **checked)
    about = {
        "versions": {name: metadata.version(name) for name in ("executorch", "torch")},
        "seconds": seconds,
        "steps": len(losses),
        "accuracy": right / len(job["test_y"]),
    }
    Path(result_path).with_suffix(".json").write_text(json.dumps(about) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
