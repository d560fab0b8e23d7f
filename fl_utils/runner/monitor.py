"""A thread beside each kernel: measures its memory, and kills it when time is up or the batch is stopped."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fl_utils.experiment import high_water_mb

POLL = 0.25  # seconds between two looks


class Monitor(threading.Thread):
    """Watches one kernel's process tree until `close`.

    ``peak_mb``: the most memory the tree held, in MB (10^6 bytes). ``cpu_seconds``: what it spent. ``ended``: why it
    was killed here ("timeout", "stopped", or what `end` was told), else "". On Linux, memory is the kernel's own
    high-water mark or, if more, the sampled sum over the tree in which shared pages count once (PSS); elsewhere the
    sampled sum of resident sizes.
    """

    def __init__(self, deadline: float | None, stopped: Callable[[], bool], seen: Callable[[float], None]):
        super().__init__(daemon=True, name="kernel monitor")
        self._deadline, self._stopped, self._seen = deadline, stopped, seen
        self._closing, self._lock = threading.Event(), threading.Lock()
        self._process = None
        self.peak_mb, self.cpu_seconds, self.ended = 0.0, 0.0, ""

    def attach(self, pid: int) -> None:
        """Watch the process ``pid``, the leader of its own process group."""
        import psutil

        with self._lock, contextlib.suppress(psutil.NoSuchProcess):
            self._process = psutil.Process(pid)
        self._look()

    def end(self, reason: str) -> None:
        """Kill the tree; the first reason given is the one that `ended` keeps."""
        self.ended = self.ended or reason
        if self._process is not None:
            kill_group(self._process.pid)

    def close(self) -> None:
        """Stop watching."""
        self._closing.set()
        self.join()

    def run(self) -> None:
        while not self._closing.wait(POLL):
            self._look()

    def sample(self) -> float:
        """The tree's memory now, in MB; also kept as the peak if it is one."""
        import psutil

        with self._lock:
            if self._process is None:
                return 0.0
            current = 0.0
            with contextlib.suppress(psutil.Error, OSError):
                children = self._process.children(recursive=True)
                current = sum(_memory(process, bool(children)) for process in [self._process, *children])
                self.peak_mb = max(self.peak_mb, current, _high_water(self._process.pid))
                self.cpu_seconds = max(self.cpu_seconds, sum(map(_cpu_seconds, [self._process, *children])))
            return current

    def _look(self) -> None:
        if self.ended or self._stopped():
            self.end("stopped")
        elif self._deadline is not None and time.monotonic() > self._deadline:
            self.end("timeout")
        else:
            self._seen(self.sample())


def kill_group(pid: int) -> None:
    """Kill the process group that ``pid`` leads, whatever is left of it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


class Guard:
    """A small process that outlives this one just long enough to kill the kernels it would leave behind.

    A kernel notices by itself that its parent is gone, but neither one that holds the interpreter lock in C code nor
    the processes that it started do. The small process is this file, run as a script: see `outlive`.
    """

    def __init__(self):
        self._lock, self._process = threading.Lock(), None

    def watch(self, pid: int, folder: Path) -> None:
        """Kill the group of ``pid`` and remove ``folder`` if this process ends before `forget`."""
        self._tell(f"+ {pid} {folder}\n")

    def forget(self, pid: int) -> None:
        self._tell(f"- {pid}\n")

    def _tell(self, line: str) -> None:
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", __file__],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(line.encode())
                self._process.stdin.flush()


def _memory(process, shared: bool) -> float:
    import psutil

    try:
        if shared and sys.platform.startswith("linux"):
            return process.memory_full_info().pss / 1e6
        return process.memory_info().rss / 1e6
    except psutil.Error:
        return 0.0


def _cpu_seconds(process) -> float:
    """CPU seconds of a process and of those of its children that have ended."""
    import psutil

    try:
        return sum(process.cpu_times()[:4])
    except psutil.Error:
        return 0.0


def _high_water(pid: int) -> float:
    """The kernel process' own peak, in MB; 0 where the system does not tell. (ru_maxrss would count its parent's.)"""
    with contextlib.suppress(OSError, StopIteration):
        return high_water_mb(pid)
    return 0.0


def outlive() -> None:
    """Kill the groups that the parent watched when it is gone: at the end of standard input.

    Lines: ``+ PID FOLDER`` (watch the group that PID leads; its scratch files lie in FOLDER), ``- PID`` (it is over).
    """
    watched: dict[int, str] = {}
    for line in sys.stdin:
        sign, pid, *folder = line.rstrip("\n").split(" ", 2)
        if sign == "+":
            watched[int(pid)] = folder[0]
        else:
            watched.pop(int(pid), None)
    for pid, folder in watched.items():
        kill_group(pid)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    outlive()
