"""TensorFlow and JAX through Keras 3, in an environment of their own: ``make keras`` builds it.

The script ``keras_job.py`` beside this file runs there; it reads a job from a file and writes the result to another.
Where the environment is absent, that is what is said. Caffe is not among them: its last release, 1.0, is of 2017, and
PyPI has no build of it for Python 3.11, only a third party's source.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from fl_utils import environments, paths
from fl_utils.environments import Environment
from fl_utils.other_frameworks.small_vgg import SmallVGG
from fl_utils.other_frameworks.training import Schedule
from fl_utils.training import check_examples

BACKENDS = {"tensorflow": "Keras on TensorFlow", "jax": "Keras on JAX"}
ENVIRONMENTS = {
    backend: Environment(name, ".venv-keras", Path(__file__).with_name("keras_job.py"))
    for backend, name in BACKENDS.items()
}
NOT_INSTALLED = f"{environments.NOT_INSTALLED}: make keras"


@dataclass(frozen=True)
class Ran:
    """What the script reports. ``why`` says why there is nothing, and is empty where there is.

    embeddings: float32 [N, d] of the images. initial: the first weights in torch's shapes and order. losses: of the
    epochs. normalised: Keras' own pre-processing of the first image, by mode. seconds: CPU time of the training.
    """

    why: str = ""
    embeddings: np.ndarray | None = None
    initial: list[np.ndarray] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    normalised: dict[str, np.ndarray] = field(default_factory=dict)
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)


def embed(backend: str, model: SmallVGG, images: torch.Tensor, seconds: float = 600.0, root: Path = paths.ROOT) -> Ran:
    """The embeddings of ``images`` (float32 [N, 3, S, S], prepared) by ``model``'s weights, computed by ``backend``.

    backend: a key of :data:`BACKENDS`. seconds: the most that the script may take. Raises ValueError on another
    backend and on images that do not fit; RuntimeError, with the script's last lines, where it fails.
    """
    parameters = [parameter.detach().cpu().numpy() for parameter in model.parameters()]
    job = {f"parameter_{number}": value for number, value in enumerate(parameters)}
    return _run(backend, model.widths, images, job, seconds, root)


def train(
    backend: str,
    model: SmallVGG,
    x: torch.Tensor,
    y: torch.Tensor,
    images: torch.Tensor,
    schedule: Schedule,
    seed: int,
    seconds: float = 1800.0,
    root: Path = paths.ROOT,
) -> Ran:
    """Train a network of ``model``'s shape with Keras' own first weights and Table 11's recipe for TensorFlow's VGG-16.

    x, y: uint8 [M, 3, H, W] and int64 [M]. images: as for :func:`embed`, embedded after the training. The last smaller
    batch is dropped. Raises as :func:`embed` does, and ValueError where there is weight decay or a falling rate (Keras'
    SGD has another rule for either), where x is smaller than the images or M than a batch.
    """
    check_examples(x, y)
    if schedule.weight_decay or schedule.rate_epochs:
        raise ValueError(
            f"weight_decay is {schedule.weight_decay}, rate_epochs {schedule.rate_epochs}: want 0, since Keras' SGD "
            "has another rule for either"
        )
    if x.dtype != torch.uint8 or x.shape[1] != 3 or min(x.shape[2:]) < images.shape[-1] or len(x) < schedule.batch_size:
        raise ValueError(
            f"x is {x.dtype} {list(x.shape)}: want uint8 [M, 3, H, W], M at least {schedule.batch_size}, H and W at "
            f"least {images.shape[-1]}"
        )
    settings = [len(model.classifier.weight), len(model.embed.weight), schedule.epochs, schedule.batch_size]
    settings += [schedule.learning_rate, schedule.momentum, seed]
    job = {"train_x": x.numpy(), "train_y": y.numpy(), "settings": np.array(settings, np.float64)}
    return _run(backend, model.widths, images, job, seconds, root)


def _run(backend: str, widths, images: torch.Tensor, job: dict[str, np.ndarray], seconds: float, root: Path) -> Ran:
    """Run the script where ``backend`` is."""
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}: want one of {', '.join(BACKENDS)}")
    if images.dtype != torch.float32 or images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(f"images are {images.dtype} {list(images.shape)}: want float32 [N, 3, S, S], N at least 1")
    job = {"backend": np.array(backend), "widths": np.array(widths, np.int64), "images": images.numpy(), **job}
    done = ENVIRONMENTS[backend].run(job, seconds, root)
    if done is None:
        return Ran(why=NOT_INSTALLED)
    found, about = done
    initial = [found[f"parameter_{n}"] for n in range(sum(name.startswith("parameter_") for name in found))]
    normalised = {name.partition("_")[2]: value for name, value in found.items() if name.startswith("normalised_")}
    losses = found["losses"].tolist()
    return Ran("", found["embeddings"], initial, losses, normalised, about["seconds"], about["versions"])
