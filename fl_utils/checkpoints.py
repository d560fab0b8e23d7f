"""A federation's state on disk: one safetensors file, written whole, that knows which run it belongs to."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from fl_utils.paths import write_whole


def save(path: Path | str, vector: torch.Tensor, identity: dict, schedule: list[int], rounds: list[dict]) -> None:
    """Write the state after ``rounds``: ``vector`` (float32 [d]), what the run is, and its history, all JSON-able."""
    metadata = {"identity": identity, "schedule": schedule, "rounds": rounds}
    write_whole(path, to_bytes({"vector": vector}, {key: json.dumps(value) for key, value in metadata.items()}))


def load(path: Path | str, identity: dict, schedule: list[int]) -> tuple[torch.Tensor, list[dict]]:
    """The vector and the history in ``path``.

    Raises ValueError where the file is not a checkpoint, belongs to another run (naming what differs), or has rounds
    that ``schedule`` has not.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            vector = file.get_tensor("vector")
        saved, rounds, planned = metadata["identity"], metadata["rounds"], metadata["schedule"]
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"checkpoint {path} cannot be read ({error}): remove it to begin anew") from error
    wanted = json.loads(json.dumps(identity))
    different = [key for key in wanted if saved.get(key) != wanted[key]]
    if planned[: len(rounds)] != schedule[: len(rounds)] or len(rounds) > len(schedule):
        different.append("rounds")
    if different:
        raise ValueError(
            f"checkpoint {path} belongs to another run (different: {', '.join(different)}): "
            "remove it, or name another file"
        )
    return vector, rounds
