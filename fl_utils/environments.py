"""Work done in another Python environment, because its packages do not go together with this one's.

A make target builds each environment at the root of the repository. A script runs there: it reads a job's arrays from a
file, and writes its results to another and what it has to say to a JSON file beside it. No pickle passes between.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fl_utils import paths

NOT_INSTALLED = "not installed here"
LINES = 3  # of a failed script's output


@dataclass(frozen=True)
class Environment:
    """``name``: what its errors call it; ``folder``: below the root; ``script``: what runs there, given two files."""

    name: str
    folder: str
    script: Path

    def python(self, root: Path = paths.ROOT) -> Path | None:
        """The interpreter of the environment below ``root``, or None where there is none."""
        found = [root / self.folder / place for place in ("bin/python", "Scripts/python.exe")]
        return next((path for path in found if path.is_file()), None)

    def run(
        self, job: Mapping[str, np.ndarray], seconds: float, root: Path = paths.ROOT
    ) -> tuple[dict[str, np.ndarray], dict] | None:
        """The script's arrays and its report, or None where the environment is absent.

        The script runs on one thread, free of this environment's Python settings, for at most ``seconds``.
        Raises RuntimeError, with its last lines, where it fails or takes longer.
        """
        python = self.python(root)
        if python is None:
            return None
        variables = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
        variables["OMP_NUM_THREADS"] = "1"
        with tempfile.TemporaryDirectory() as folder:
            given, result = Path(folder) / "job.npz", Path(folder) / "result.npz"
            np.savez(given, **job)
            command = [str(python), str(self.script), str(given), str(result)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=variables)
            except subprocess.TimeoutExpired:
                raise RuntimeError(f"{self.name} took longer than {seconds:.0f} s: give it less or more time") from None
            if done.returncode:
                last = " ".join((done.stderr or done.stdout).strip().splitlines()[-LINES:])
                raise RuntimeError(f"{self.name} failed with exit code {done.returncode}: {last}")
            with np.load(result, allow_pickle=False) as file:
                arrays = dict(file)
            return arrays, json.loads(result.with_suffix(".json").read_text(encoding="utf-8"))
