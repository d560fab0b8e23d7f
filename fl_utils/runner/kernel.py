"""One notebook in one kernel, through papermill: our engine beside papermill's own, with an environment per kernel.

papermill writes the parameters in and keeps time per cell; the engine adds what it lacks: an environment of the
kernel's own (this process' one is shared by all jobs), a limit for the whole notebook, memory, progress, and the reason
when a kernel dies.
"""

from __future__ import annotations

import contextvars
import logging
import os
import shutil
import signal
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import nbformat
from ipykernel.kernelspec import RESOURCES, make_ipkernel_cmd
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import ensure_event_loop
from nbclient.exceptions import DeadKernelError
from papermill import execute_notebook
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from fl_utils.runner.jobs import Job, plain, scratch
from fl_utils.runner.monitor import Guard, Monitor, kill_group

ENGINE = "fl-notebooks"
START_SECONDS = 120  # for a kernel's first reply, on a busy machine
OUTPUT = 100_000_000  # characters that one notebook may write; they are held in memory until it ends
REASONS = {"timeout": "time is up", "stopped": "stopped", "flood": f"more than {OUTPUT / 1e6:.0f} MB of output"}
SOCKET_PATH = 90  # bytes; a socket's path may have about 100, the folder and a suffix included

guard = Guard()
quiet = logging.getLogger("fl_utils.runner.kernel")
quiet.addHandler(logging.NullHandler())
quiet.propagate = False
logging.getLogger("papermill").setLevel(logging.CRITICAL)


class NeverReplied(RuntimeError):
    """The kernel died, or stayed silent, before it replied to its first request."""


@dataclass
class Outcome:
    """How one attempt ended; ``executed`` is the notebook as far as it got."""

    status: str
    error: str = ""
    traceback: str = ""
    executed: str = ""
    peak_mb: float = 0.0
    cpu_seconds: float = 0.0
    never_replied: bool = False


class OwnPython(KernelSpecManager):
    """Knows one kernel: the Python that runs this, whatever the user's Jupyter folders call python3."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(
            argv=make_ipkernel_cmd(python_arguments=["-Xfrozen_modules=off"]),
            display_name="Python 3 (ipykernel)",
            language="python",
            resource_dir=str(RESOURCES),
        )


class Session:
    """One attempt at one job: the scratch folder, the kernel's process, and where it is."""

    def __init__(self, job: Job, deadline: float | None, notify: Callable[[dict], None], stopped: Callable[[], bool]):
        self.job, self.notify = job, notify
        self.folder = scratch()
        self.log = self.folder / "kernel.log"
        self.monitor = Monitor(deadline, stopped, self._memory)
        self.notebook: nbformat.NotebookNode | None = None
        self.running: int | None = None  # index of the running cell
        self.written = 0  # characters of output
        self.memory_mb, self.process, self.pid, self.log_handle = 0.0, None, None, None

    def manager(self) -> AsyncKernelManager:
        """A kernel manager whose sockets are files: no ports to lose to another kernel that starts at the same time."""
        manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=OwnPython(), log=quiet)
        manager.connection_file = str(self.folder / "kernel.json")
        if os.name == "posix" and len(os.fsencode(self.folder)) < SOCKET_PATH - len("/kernel-ipc-5"):
            manager.transport = "ipc"
        return manager

    def started(self, manager: AsyncKernelManager) -> None:
        """The kernel's process exists: watch it."""
        self.process, self.pid = manager.provisioner.process, manager.provisioner.pid
        guard.watch(self.pid, self.folder)
        self.monitor.attach(self.pid)

    def cell_starts(self, index: int) -> None:
        self.running = index
        self._tell()

    def cell_number(self) -> int:
        """Which code cell is running, counted as the prompts are; 0 before the first."""
        if self.running is None or self.notebook is None:
            return 0
        return sum(_is_code(cell) for cell in self.notebook.cells[: self.running + 1])

    def why_dead(self) -> str:
        """The signal or status that ended the kernel, and the last line that it wrote, as far as they are known."""
        code = self.process.poll() if self.process is not None else None
        reasons = []
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            reasons.append(f"{name}, perhaps out of memory" if name == "SIGKILL" else name)
        elif code:
            reasons.append(f"exit status {code}")
        lines = plain(self.log.read_text(errors="replace")).split("\n") if self.log.exists() else []
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return ": ".join([part for part in (", ".join(reasons), last[:300]) if part])

    def close(self) -> None:
        """End whatever the kernel left running, and take the scratch folder away."""
        self.monitor.close()
        if self.log_handle is not None:
            self.log_handle.close()
        if self.pid is not None:
            kill_group(self.pid)
            guard.forget(self.pid)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _memory(self, megabytes: float) -> None:
        self.memory_mb = megabytes
        self._tell()

    def _tell(self) -> None:
        if self.notebook is not None:
            cells = sum(_is_code(cell) for cell in self.notebook.cells)
            event = {"cell": self.cell_number(), "cells": cells, "memory_mb": self.memory_mb}
            self.notify({"notebook": self.job.notebook, **event})


class Client(PapermillNotebookClient):
    """papermill's client, which tells a `Session` what happens."""

    session: Session

    def start_new_kernel(self, **kwargs) -> None:
        super().start_new_kernel(**kwargs)
        self.session.started(self.km)

    def start_new_kernel_client(self, **kwargs):
        try:
            return super().start_new_kernel_client(**kwargs)
        except RuntimeError as error:
            raise NeverReplied(str(error)) from error

    def execute_cell(self, cell, cell_index, *args, **kwargs):
        self.session.cell_starts(cell_index)
        return super().execute_cell(cell, cell_index, *args, **kwargs)

    def output(self, outs, msg, *args, **kwargs):
        content, room = msg["content"], OUTPUT - self.session.written
        parts = [content.get("text", ""), *content.get("data", {}).values()]
        self.session.written += sum(len(str(part)) for part in parts)
        if self.session.written > OUTPUT:
            self.session.monitor.end("flood")
            if room <= 0 or "text" not in content:
                return None
            content["text"] = content["text"][:room]
        return super().output(outs, msg, *args, **kwargs)

    def papermill_execute_cells(self) -> None:
        super().papermill_execute_cells()
        self.session.monitor.sample()


class OurEngine(Engine):
    """The papermill engine ``fl-notebooks``; wants ``session`` and ``environment`` from its caller."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, *, session: Session, environment: Mapping[str, str], **_):
        session.notebook = nb_man.nb
        client = Client(
            nb_man,
            km=session.manager(),
            kernel_name=kernel_name,
            log=quiet,
            startup_timeout=START_SECONDS,
            iopub_timeout=60,
            extra_arguments=["--HistoryManager.hist_file=:memory:"],
        )
        client.owns_km = True
        client.session = session
        session.log_handle = session.log.open("wb")
        client.execute(
            env={**environment, "IPYTHONDIR": str(session.folder / "ipython")},
            stdout=session.log_handle,
            stderr=session.log_handle,
        )


papermill_engines.register(ENGINE, OurEngine)


def execute(
    job: Job,
    environment: Mapping[str, str],
    deadline: float | None,
    notify: Callable[[dict], None],
    stopped: Callable[[], bool],
) -> Outcome:
    """Run ``job`` once. ``deadline``: the time on the monotonic clock at which its kernel is killed, or None."""
    session = Session(job, deadline, notify, stopped)
    outcome = Outcome("failed")
    session.monitor.start()
    try:
        contextvars.Context().run(_through_papermill, session, environment)
        outcome = _finished(session)
    except PapermillExecutionError as error:
        line = ": ".join(filter(None, [error.ename, " ".join(plain(str(error.evalue)).split())]))
        outcome.error = f"{line[:500]} (cell {error.exec_count or session.cell_number()})"
        outcome.traceback = plain("\n".join(error.traceback))
    except NeverReplied as error:
        outcome.never_replied = True
        outcome.error = f"the kernel did not start: {error}" + _in_brackets(session.why_dead())
        outcome.traceback = plain(session.log.read_text(errors="replace"))
    except DeadKernelError:
        outcome.error = f"the kernel died in cell {session.cell_number()}" + _in_brackets(session.why_dead())
        outcome.traceback = outcome.error
    except Exception as error:
        outcome.error = f"the runner failed: {type(error).__name__}: {' '.join(str(error).split())}"
        outcome.traceback = traceback.format_exc()
    finally:
        ended = session.monitor.ended
        session.close()
    if ended and outcome.status != "ok":
        outcome.status, outcome.never_replied = ("failed" if ended == "flood" else ended), False
        where = f"in cell {session.cell_number()}" if session.cell_number() else "before its first cell"
        outcome.error = f"{REASONS[ended]} {where}"
        outcome.traceback = outcome.error
    outcome.peak_mb, outcome.cpu_seconds = session.monitor.peak_mb, session.monitor.cpu_seconds
    outcome.executed = _text(session, outcome)
    return outcome


def _through_papermill(session: Session, environment: Mapping[str, str]) -> None:
    """To be run in an empty context: jupyter_core keeps the event loop in the context, and a Dask worker's threads
    inherit theirs, so that two jobs would share one loop."""
    source = session.folder / "source.ipynb"
    source.write_text(session.job.source, encoding="utf-8")
    loop = ensure_event_loop()
    try:
        execute_notebook(
            str(source),
            None,
            parameters=session.job.parameters,
            engine_name=ENGINE,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            session=session,
            environment=environment,
        )
    finally:
        loop.close()


def _finished(session: Session) -> Outcome:
    """papermill calls a notebook that leaves by SystemExit complete; with cells left to run, it is not."""
    for cell in session.notebook.cells:
        if cell.metadata.get("papermill", {}).get("exception") is True:
            error = f"SystemExit in cell {cell.get('execution_count')}: the cells after it did not run"
            return Outcome("failed", error, error)
    return Outcome("ok")


def _text(session: Session, outcome: Outcome) -> str:
    """The executed notebook, with the reason in the running cell where the kernel could not leave it itself."""
    notebook = session.notebook
    if notebook is None:
        return ""
    if outcome.status != "ok" and session.running is not None:
        cell = notebook.cells[session.running] if session.running < len(notebook.cells) else None
        shown = any(
            output.get("output_type") == "error" for each in notebook.cells for output in each.get("outputs", [])
        )
        if cell is not None and _is_code(cell) and not shown:
            reason = nbformat.v4.new_output(
                "error", ename=outcome.status, evalue=outcome.error, traceback=[outcome.error]
            )
            cell.outputs.append(reason)
    notebook.metadata.papermill.update(input_path=session.job.notebook, output_path=session.job.notebook)
    return nbformat.writes(notebook) + "\n"


def _is_code(cell: nbformat.NotebookNode) -> bool:
    return cell.cell_type == "code" and bool(cell.source.strip())


def _in_brackets(reason: str) -> str:
    return f" ({reason})" if reason else ""
