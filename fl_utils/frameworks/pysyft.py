"""PySyft 0.10: a scientist's code and weights go to a data owner, whose own Python runs them after approval.

It converts nothing and has no runtime of its own; KotlinSyft and SwiftSyft, the phones' halves of 2020, have no
counterpart in it. So a probe is one job (:mod:`fl_utils.secure.datasites`): the owner's torch infers and trains.
"""

from __future__ import annotations

from importlib import metadata

import numpy as np

from fl_utils.export.quiet import silenced
from fl_utils.frameworks.trial import CLASSES, CNN, MOBILENET, NETWORKS, NO, PARTLY, YES, Cell, Trial, attempt

OWNER, SCIENTIST = "owner@phones.example.org", "scientist@university.example.org"
WHERE = "; in the owner's Python, on no phone"
DISTRIBUTIONS = ("syft", "syft-job", "syft-rds", "syft-dataset")
JOB = """
import numpy as np
import torch
from fl_utils.frameworks.trial import Trial
from fl_utils.secure import datasite_job as job

x, y = job.data()
trial = Trial("files", **job.settings())
weights = job.weights()
state = {name: torch.from_numpy(weights[name]) for name in trial.networks["cnn"].state_dict()}
trial.networks["cnn"].load_state_dict(state)
sizes = [trial.pixels[name][0].size for name in trial.networks]
for name, part in zip(trial.networks, np.split(x, np.cumsum(sizes)[:-1], 1)):
    trial.pixels[name] = part.reshape(trial.pixels[name].shape)
weights |= {name: value.numpy() for name, value in trial.path("cnn")[-1].items()}
weights |= {"infer/" + name: answers for name, answers in trial.answers.items()}
norms = [float(value.double().norm()) for value in trial.path("mobilenet")[-1].values()]
weights["train/mobilenet"] = np.float32(norms)
job.give_back(weights, len(y))
"""


def cell(column: str, trial: Trial) -> Cell:
    """PySyft's cell of ``column``."""
    if column == "quantization":
        return attempt(_quantization, "syft")
    return attempt(lambda: _job(column, trial), "syft")


def answers(trial: Trial) -> dict[str, np.ndarray]:
    """What the owner's job gives back, run once: both networks' logits, and their state after training.

    The CNN's weights travel as text, there and back. MobileNetV2 is built from the seed, and of its trained state the
    norm of every tensor comes back, since this transport takes a million numbers at most. An update has the names and
    shapes of what was sent: so zeros are sent for what is to be found.
    """
    if "pysyft" in trial.made:
        return trial.made["pysyft"]
    from fl_utils.secure.datasites import Datasites

    names = ("seed", "width", "size", "images", "batch", "steps", "learning_rate")
    settings = {name: getattr(trial, name) for name in names}
    pixels = [pixels.reshape(len(pixels), -1) for pixels in trial.pixels.values()]
    private = np.concatenate(pixels, 1)
    mock = np.zeros_like(private[:2])
    with silenced(), Datasites({OWNER: ((mock, np.arange(2)), (private, np.arange(len(private))))}, SCIENTIST) as sites:
        weights = {key: value.numpy() for key, value in trial.networks[CNN].state_dict().items()}
        weights |= {f"infer/{name}": np.zeros((len(private), CLASSES), np.float32) for name in NETWORKS}
        weights["train/mobilenet"] = np.zeros(len(trial.networks[MOBILENET].state_dict()), np.float32)
        approve = lambda request: request.code == JOB and not request.wrong_form  # noqa: E731
        trial.made["pysyft"] = sites.train_round("probe", JOB, weights, approve, settings=settings)
    return trial.made["pysyft"]


def _job(column: str, trial: Trial) -> Cell:
    found = answers(trial)
    if column == "inference":
        made = trial.inferred_cell({name: found[f"infer/{name}"] for name in NETWORKS}, WHERE)
    elif column == "training_cnn":
        state = trial.path(CNN)[-1]
        gap = max(float(np.abs(found[key] - value.numpy()).max()) for key, value in state.items())
        made = trial.drifted(gap, sum(value.numel() for value in state.values()))
    else:
        state = trial.path(MOBILENET)[-1]
        wanted = np.array([float(value.double().norm()) for value in state.values()])
        gap = float((np.abs(found["train/mobilenet"] - wanted) / np.maximum(wanted, 1)).max())
        made = trial.drifted(gap, sum(value.numel() for value in state.values()))
    evidence = made.evidence if column == "inference" else made.evidence + WHERE
    return Cell(PARTLY if made.verdict == YES else NO, evidence, made.error)


def _quantization() -> Cell:
    """Whether any file of PySyft's Python speaks of quantization."""
    metadata.distribution("syft")  # PackageNotFoundError, a ModuleNotFoundError, where it is not here
    files = [file for name in DISTRIBUTIONS for file in metadata.files(name) or [] if file.suffix == ".py"]
    said = [file for file in files if "quantiz" in file.locate().read_text(encoding="utf-8", errors="replace").lower()]
    if said:
        return Cell(PARTLY, f"{len(said)} of {len(files)} files speak of quantization, first {said[0].name}")
    return Cell(NO, f"none of its {len(files)} Python files speaks of quantization")
