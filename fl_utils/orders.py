"""Orders to a party's process, JSON lines on its standard input, one answer to each on its standard output.

{"do": "listen"}      -> {"address": [host, port]}, a fresh listening socket for the order that follows
anything else         -> what the process' own function answers, or {"ok": false, "error": ..., ...}
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fl_utils import links


def serve(take_part: Callable[[dict, object], dict], said: Callable[[Exception], str] = str) -> None:
    """A process' own loop: answer line by line until the input ends.

    take_part: answers an order, given the socket that listens for its peers (None where none was asked for). said: the
    text of an error that is no LinkError.
    """
    listener = None
    for line in sys.stdin:
        try:
            job = json.loads(line)
            if job["do"] == "listen":
                listener = links.listen(job.get("host", "127.0.0.1"))
                answer = {"address": listener.getsockname()[:2]}
            else:
                answer = take_part(job, listener)
        except links.LinkError as error:
            about = {"party": error.party, "phase": error.phase, "reason": error.reason}
            answer = {"ok": False, "error": str(error), **about}
        except Exception as error:
            answer = {"ok": False, "error": said(error), "kind": type(error).__name__}
        finally:
            if listener is not None and job.get("do") != "listen":
                with suppress(OSError):
                    listener.close()
                listener = None
        print(json.dumps(answer), flush=True)


def start(module: str, folder: Path | None = None) -> subprocess.Popen:
    """A process of ``module``, which ends in :func:`serve`; one thread, in ``folder`` where given."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", module]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(command, **pipes, text=True, env=environment, cwd=folder)


def say(process: subprocess.Popen, order: dict) -> None:
    """Give ``order``. A process that is dead is not told: its silence says so in :func:`hear`."""
    with suppress(OSError):
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()


def hear(process: subprocess.Popen) -> dict:
    """The next answer; {"ok": false, "error": ...} where the process has ended."""
    line = process.stdout.readline()
    if not line:
        return {"ok": False, "error": f"its process ended ({process.wait()})"}
    return json.loads(line)
