"""The model that an executed notebook leaves for ``fl-notebooks export``: weights, and how to build what they fit.

    keep("mobile/08_section6-3_conversion", "mobile.mobilenet_v2", {"classes": 10}, trainer, (1, 3, 32, 32), labels)

writes one file into the batch's folder, ``models/<notebook>.safetensors``: the weights, and a JSON in its header that
names the network, one of :mod:`fl_utils.models`, and its arguments. No code is stored, and none is run when it is read.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fl_utils import paths

if TYPE_CHECKING:
    import torch
    from torch import nn

ABOUT, EXAMPLES = "about", "examples"
AGAIN = "run the notebook again"
NETWORK = re.compile(r"([a-z]\w*)\.([A-Za-z]\w*)")


@dataclass(frozen=True)
class Kept:
    """A kept model. ``scale``, ``bias``: it was trained on ``scale * pixel + bias``. ``arguments``: of ``model``."""

    notebook: str
    model: str
    arguments: dict[str, Any]
    shape: tuple[int, ...]
    labels: tuple[str, ...]
    scale: float | list[float]
    bias: float | list[float]
    path: Path

    def load(self) -> tuple[nn.Module, np.ndarray]:
        """The network with its weights, in evaluation mode, and example images, uint8 [N, H, W, C] (N may be 0).

        Raises ValueError where the weights do not fit the network.
        """
        from safetensors.torch import load

        network, state = build(self.model, self.arguments), load(self.path.read_bytes())
        try:
            examples = state.pop(EXAMPLES)
            network.load_state_dict(state)
        except (KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"kept model {self.path} does not fit {self.model}: {reason}; {AGAIN}") from error
        return network.eval(), examples.numpy()

    @property
    def version(self) -> str:
        """Which training this is: the beginning of the file's sha256."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()[:12]


def keep(
    notebook: str,
    model: str,
    arguments: Mapping[str, Any],
    state: Any,
    shape: Sequence[int],
    labels: Sequence[str],
    scale: float | list[float] = 1 / 255,
    bias: float | list[float] = 0.0,
    examples: torch.Tensor | None = None,
) -> Path:
    """Keep the model of ``notebook`` (its path below notebooks/, without .ipynb); returns the file.

    model: a function or class of fl_utils.models, as "mobile.mobilenet_v2", that ``arguments`` (JSON) build. state: the
    trained module, or a :class:`fl_utils.training.Trainer` of it. shape: [N, C, H, W] of the file to be. labels: one
    per class. examples: uint8 [N, C, H, W], some of the training images: 8-bit exports are calibrated on them, every
    export is compared with torch on them. Raises ValueError where the state does not fit what is to be built, and where
    the runner is running another notebook.
    """
    import torch
    from safetensors.torch import save

    trained = getattr(state, "model", state)
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in trained.state_dict().items()}
    fresh = build(model, dict(arguments)).state_dict()
    if {name: t.shape for name, t in fresh.items()} != {name: t.shape for name, t in tensors.items()}:
        raise ValueError(f"the trained state is not one of {model} with {dict(arguments)}: other names or shapes")
    tensors = {name: tensor.to(fresh[name].dtype) for name, tensor in tensors.items()}
    if examples is None:
        examples = torch.empty((0, *shape[1:]), dtype=torch.uint8)
    if examples.dtype != torch.uint8 or list(examples.shape[1:]) != list(shape[1:]):
        raise ValueError(f"examples are {examples.dtype} {list(examples.shape)}: want uint8 {['N', *shape[1:]]}")
    about = {"notebook": notebook, "model": model, "arguments": dict(arguments), "shape": list(shape)}
    about |= {"labels": list(labels), "scale": scale, "bias": bias}
    tensors[EXAMPLES] = examples.permute(0, 2, 3, 1).contiguous()
    return paths.write_whole(place(notebook), save(tensors, {ABOUT: json.dumps(about)}))


def kept(path: Path) -> Kept:
    """The kept model in the file ``path``. Raises ValueError where it is truncated or none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            about = json.loads((file.metadata() or {})[ABOUT])
        about["shape"], about["labels"] = tuple(about["shape"]), tuple(about["labels"])
        return Kept(**about, path=path)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"kept model {path} cannot be read ({' '.join(str(error).split())}): {AGAIN}") from error


def place(notebook: str) -> Path:
    """Where the model of ``notebook`` goes: into the batch that is running it, or runs/models outside of one."""
    checkpoints = os.environ.get("FL_NOTEBOOKS_CHECKPOINTS")
    if not checkpoints:
        return paths.RUNS / "models" / f"{notebook}.safetensors"
    parts = Path(notebook).parts
    if Path(checkpoints).parts[-len(parts) :] != parts:
        raise ValueError(f"keep({notebook!r}): the notebook that runs is another one, {checkpoints}")
    return Path(checkpoints).parents[len(parts)] / "models" / f"{notebook}.safetensors"


def build(model: str, arguments: dict[str, Any]) -> nn.Module:
    """The network ``model`` of fl_utils.models. Raises ValueError where there is none of that name and arguments."""
    match = NETWORK.fullmatch(model)
    try:
        if match is None:
            raise AttributeError("want <module>.<function>")
        make = getattr(importlib.import_module(f"fl_utils.models.{match[1]}"), match[2])
        return make(**arguments)
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"model {model!r} with {arguments} is none of fl_utils.models: {error}") from error
