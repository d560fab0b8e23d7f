"""The converters' talk, silenced in one place, and their many ways of saying no turned into one error."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

UNSUPPORTED = (  # how each converter names an operator that it does not have
    r"PyTorch convert function for op '([^']+)' not implemented",  # coremltools
    r"Exporting the operator '([^']+)' to ONNX",  # torch.onnx
    r"Lowering not found: (\S+)",  # litert-torch
    r"Missing out variants: \{'([^']+)'",  # executorch
    r"(?:aten::|torch\.ops\.aten\.|aten\.)([\w.]+)",  # whoever names one otherwise
)


class ExportError(ValueError):
    """A model that a runtime cannot take; the message names the operator, where that is the reason, and the runtime."""


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Nothing of what runs inside reaches the terminal: warnings, logs, progress bars, prints, prints of C++.

    Also puts the programs of this Python's environment on PATH: ExecuTorch calls flatc.
    """
    programs = str(Path(sys.executable).parent)
    before, disabled = os.environ.get("PATH", os.defpath), logging.root.manager.disable
    os.environ["PATH"] = os.pathsep.join([programs, before])
    os.environ["LITERT_TORCH_SHOW_PROGRESS"] = "no"  # it would go around standard output, to the notebook itself
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), _descriptors(), contextlib.ExitStack() as stack:
            warnings.simplefilter("ignore")
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            yield
    finally:
        logging.disable(disabled)
        os.environ["PATH"] = before


@contextlib.contextmanager
def _descriptors() -> Iterator[None]:
    """Standard output and error of the process itself, which C++ writes to, into a file that is thrown away."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    kept = [os.dup(number) for number in (1, 2)]
    try:
        with tempfile.TemporaryFile() as sink:
            for number in (1, 2):
                os.dup2(sink.fileno(), number)
            yield
    finally:
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)


@contextlib.contextmanager
def refusing(runtime: str, name: str) -> Iterator[None]:
    """Turn what a converter raises into one :class:`ExportError` that names the operator and the runtime."""
    try:
        yield
    except (ExportError, ImportError, OSError, MemoryError):
        raise
    except Exception as error:  # converters raise nearly anything
        said = str(error)
        for pattern in UNSUPPORTED:
            if match := re.search(pattern, said):
                operator = match[1].removeprefix("aten::").removeprefix("aten.").removesuffix(".default")
                message = f"{runtime} has no operator {operator!r}, which {name!r} uses: replace it in the model"
                raise ExportError(f"{message}, or export to another runtime") from error
        reason = " ".join(said.split())[:300] or type(error).__name__
        raise ExportError(f"{name!r} cannot be converted to {runtime}: {reason}") from error
