"""The saved notebooks' outputs: those of a real run at the defaults, without what differs from run to run."""

from __future__ import annotations

import copy
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from fl_utils.paths import write_whole

LARGEST = 1_000_000  # bytes of a saved notebook
WIDGET = "application/vnd.jupyter.widget-view+json"
RUNNERS_TAGS = {"injected-parameters", "papermill-error-cell-tag"}


def strip(notebook: dict[str, Any]) -> dict[str, Any]:
    """A copy of ``notebook`` (as JSON) without papermill's traces: its metadata, cells, tags and time stamps.

    Outputs, execution counts and tags stay; what went to standard error does not. Stripping twice changes nothing more.
    """
    result = copy.deepcopy(notebook)
    metadata = result.setdefault("metadata", {})
    metadata.pop("papermill", None)
    metadata.pop("widgets", None)  # a slider's state, under random names: without a kernel nothing answers it
    metadata.get("language_info", {}).pop("version", None)
    result["cells"] = [
        cell for cell in result["cells"] if not RUNNERS_TAGS.intersection(cell.get("metadata", {}).get("tags", []))
    ]
    for cell in result["cells"]:
        about = cell.setdefault("metadata", {})
        for key in ("papermill", "execution"):
            about.pop(key, None)
        if about.get("tags") == []:
            del about["tags"]
        if "outputs" in cell:
            cell["outputs"] = [output for output in cell["outputs"] if not _to_stderr(output)]
            for output in cell["outputs"]:
                output.get("data", {}).pop(WIDGET, None)
    return result


def to_text(notebook: dict[str, Any]) -> str:
    """The notebook as Jupyter writes it: one space of indent, keys in order, a line feed at the end."""
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def save(executed: str, path: Path, source_sha256: str) -> str:
    """Write the executed notebook over the one at ``path``; returns "" or the reason why the old one was kept."""
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != source_sha256:
        return "it was changed while it ran"
    text = to_text(strip(json.loads(executed)))
    size = len(text.encode("utf-8"))
    if size > LARGEST:
        return f"it would have {size / 1e6:.1f} MB, more than {LARGEST / 1e6:.0f} MB"
    try:
        write_whole(path, text)
    except OSError as error:
        return f"it cannot be written ({error.strerror or error})"
    return ""


def _to_stderr(output: dict[str, Any]) -> bool:
    return output.get("output_type") == "stream" and output.get("name") == "stderr"


def main(names: list[str]) -> int:
    """Strip the notebooks ``names`` in place, as a hook before a commit does; 1 where one was changed, else 0."""
    changed = 0
    for path in map(Path, names):
        before = path.read_text(encoding="utf-8")
        after = to_text(strip(json.loads(before)))
        if after != before:
            write_whole(path, after)
            print(f"stripped {path}")
            changed = 1
    return changed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
