"""Where things lie: the repository's folders, the user's cache, a run's checkpoints.

Notebooks are run from any folder (papermill keeps the caller's, nbval takes the notebook's), so nothing in this project
uses a relative path: it asks here.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
PAPERS = Path(os.environ.get("FL_NOTEBOOKS_PAPERS") or ROOT / "papers")  # another repository's, where it is run by ours
DATASETS = ROOT / "datasets"
RUNS = ROOT / "runs"


def cache_dir() -> Path:
    """The folder that keeps fetched data for this user, made if missing. ``FL_NOTEBOOKS_CACHE`` overrides it."""
    import platformdirs

    chosen = os.environ.get("FL_NOTEBOOKS_CACHE")
    folder = Path(chosen).expanduser().resolve() if chosen else Path(platformdirs.user_cache_dir("fl-notebooks"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def checkpoint(name: str) -> Path | None:
    """The file in which a training called ``name`` keeps its checkpoint, or None where none is asked for.

    The runner names a folder per job in ``FL_NOTEBOOKS_CHECKPOINTS``; without it (Jupyter, nbval) nothing is kept.
    """
    folder = os.environ.get("FL_NOTEBOOKS_CHECKPOINTS")
    if not folder:
        return None
    if not name or any(character in name for character in "/\\\0"):
        raise ValueError(f"checkpoint name {name!r}: want a plain file name without slashes")
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder) / f"{name}.safetensors"


def write_whole(path: Path | str, data: str | bytes) -> Path:
    """Write ``data`` (text as UTF-8) so that ``path`` is either the old file or the whole new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    payload = data.encode("utf-8") if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as handle:
            handle.write(payload)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path
