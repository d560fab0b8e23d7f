"""What a data owner and a scientist can do: read, approve, deny and run on one side; submit and receive on the other.

Each stands on one member of the store (fl_utils.secure.datasite_transport) and knows nothing of the other but what came
through the store. What this protects, and what not, is said in fl_utils.secure.datasites.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fl_utils.secure import datasite_job
from fl_utils.secure.datasite_job import Layout
from fl_utils.secure.datasite_transport import CODE, LOGS, RUN, RUN_SCRIPT, Job, Member, digest, job_environment

NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")
FORM = {RUN, "config.yaml", f"code/{CODE}", f"code/{datasite_job.WEIGHTS}", f"code/{datasite_job.SETTINGS}"}
WORDS = {"received": "pending", "rejected": "denied"}  # what syft says -> what this room says
UPDATE_LIMIT = 4 * datasite_job.LIMIT + datasite_job.HEADER_LIMIT + 1
LOG_LIMIT = 1 << 22


class NoUpdate(RuntimeError):
    """A job gives no update. ``owner``, ``job`` and ``state`` (pending, denied, failed, ...) say which and why."""

    def __init__(self, owner: str, job: str, state: str, why: str):
        self.owner, self.job, self.state = owner, job, state
        super().__init__(f"{owner}'s job {job!r} is {state} and gives no update: {why}")


@dataclass(frozen=True)
class Update:
    """One owner's trained weights: ``vector`` (float32 [d], in ``layout``'s order) from ``num_examples`` examples."""

    owner: str
    job: str
    vector: torch.Tensor
    num_examples: int
    layout: Layout


@dataclass(frozen=True)
class Request:
    """A pending job as its owner reads it: every file of it as text. An approval counts for exactly these files."""

    owner: str
    name: str
    files: dict[str, str] = field(repr=False)
    digest: str

    @property
    def code(self) -> str:
        """The Python that would run."""
        return self.files.get(f"code/{CODE}", "")

    @property
    def wrong_form(self) -> str:
        """Why this job is not of the agreed form; empty where it is."""
        if set(self.files) != FORM:
            odd = ", ".join(sorted(set(self.files) ^ FORM))
            return f"its files differ from the agreed ones in {odd}"
        return "" if self.files[RUN] == RUN_SCRIPT else f"its {RUN} is not the agreed script"


class Scientist:
    """Sees the mock parts, submits jobs, and receives what owners share."""

    def __init__(self, member: Member, owners: Iterable[str], folder: Path):
        self.email, self.folder = member.email, folder
        self._member, self._owners = member, tuple(owners)
        self._layouts: dict[tuple[str, str], Layout] = {}

    def mocks(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Owner -> x and y of its mock part."""
        self._member.sync()
        return {owner: _load(mocks[0]) for owner, (mocks, _) in sorted(self._member.data_sets().items())}

    def rehearse(
        self,
        owner: str,
        code: str,
        weights: Mapping[str, Any],
        settings: Mapping[str, Any] | None = None,
        timeout: int = 600,
    ) -> Update:
        """Run a job here, on ``owner``'s mock part, before anybody is asked. Raises as submit and update do."""
        self._known(owner)
        files = _files(code, weights, settings or {})
        self._member.sync()
        environment = job_environment(self._member.data_sets()[owner][0][0])
        with tempfile.TemporaryDirectory(prefix="fl-job-") as place:
            folder = _written(files, Path(place) / "rehearsal")
            given = {"cwd": folder, "env": environment, "capture_output": True, "text": True, "timeout": timeout}
            try:
                done = subprocess.run([sys.executable, CODE], **given)
            except subprocess.TimeoutExpired:
                raise NoUpdate(owner, "rehearsal", "failed", f"it took more than {timeout} s") from None
            if done.returncode:
                raise NoUpdate(owner, "rehearsal", "failed", _last_line(done.stderr))
            return _update(Job(owner, "rehearsal", "done", "", folder, folder), datasite_job.layout_of(weights))

    def submit(
        self, owner: str, name: str, code: str, weights: Mapping[str, Any], settings: Mapping[str, Any] | None = None
    ) -> None:
        """Send ``owner`` a job: ``code`` (Python, see fl_utils.secure.datasite_job), ``weights``, ``settings`` (JSON).

        weights: name -> array, in all at most ``datasite_job.LIMIT`` floats. ValueError, before anything is sent: an
        unknown owner, a name that is no name or was used, code that is no Python, weights that are too many or not
        finite, settings that are not JSON.
        """
        self._known(owner)
        if not isinstance(name, str) or not NAME.fullmatch(name) or re.fullmatch(r"v\d+", name):
            raise ValueError(f"job name is {name!r}: want 1 to 40 of a-z, 0-9 and '-', a letter first, not like 'v1'")
        if (owner, name) in self._layouts:
            raise ValueError(f"job name {name!r} was used for {owner} before: want a new one")
        files = _files(code, weights, settings or {})
        with tempfile.TemporaryDirectory(prefix="fl-job-") as place:
            self._member.submit(owner, _written(files, Path(place) / name), name)
        self._layouts[owner, name] = datasite_job.layout_of(weights)

    def state(self, owner: str, name: str) -> str:
        """pending, approved, denied, running, done or failed. ValueError: no such job was submitted."""
        return _state(self._job(owner, name))

    def log(self, owner: str, name: str) -> str:
        """What the job printed, where its owner shared that; else empty."""
        return _text(self._job(owner, name), "stdout.txt")

    def update(self, owner: str, name: str) -> Update:
        """What the job gave back. NoUpdate: it did not run, it failed, or it is not shared. ValueError: damaged."""
        return _update(self._job(owner, name), self._layouts[owner, name])

    def _known(self, owner: str) -> None:
        if owner not in self._owners:
            raise ValueError(f"owner is {owner!r}: want one of {', '.join(self._owners)}")

    def _job(self, owner: str, name: str) -> Job:
        if (owner, name) not in self._layouts:
            raise ValueError(f"no job {name!r} was submitted to {owner}")
        self._member.sync()
        return _find(self._member, owner, name)


class Owner:
    """Holds a private part, reads the jobs that come, and runs those that it approved."""

    def __init__(self, member: Member, folder: Path):
        self.email, self.folder = member.email, folder
        self._member = member
        self._approved: dict[str, str] = {}

    def requests(self) -> list[Request]:
        """The pending jobs."""
        self._member.sync()
        return [self._request(job) for job in self._member.jobs() if _state(job) == "pending"]

    def approve(self, request: Request, reason: str = "") -> None:
        """Let ``request`` run. ValueError: not of the agreed form. RuntimeError: changed since, or not pending."""
        job = self._pending(request)
        if request.wrong_form:
            raise ValueError(f"{self.email} cannot approve job {request.name!r}: {request.wrong_form}")
        if digest(job.sent()) != request.digest:
            raise RuntimeError(f"{self.email} cannot approve job {request.name!r}: it changed after it was read")
        self._member.decide(request.name, True, reason)
        self._approved[request.name] = request.digest
        self._member.sync()

    def deny(self, request: Request, reason: str = "") -> None:
        """Refuse ``request``; its submitter sees ``reason``. RuntimeError: it is not pending."""
        self._pending(request)
        self._member.decide(request.name, False, reason)
        self._member.sync()

    def run(self, *, share_update: bool = True, share_log: bool = True, timeout: int = 600) -> dict[str, str]:
        """Run what was approved; job name -> state afterwards. timeout: seconds for each job.

        share_update: let the scientist have the updates; else they stay here, see :meth:`update`. share_log: let it
        have what the jobs printed, which is a way out of the house as well; else that stays here, see :meth:`log`. A
        job that changed after its approval is denied instead of run.
        """
        if type(timeout) is not int or timeout < 1:
            raise ValueError(f"timeout is {timeout!r}: want a whole number of seconds, at least 1")
        self._member.sync()
        names = [job.name for job in self._member.jobs() if job.state == "approved"]
        for name in names:
            if digest(_find(self._member, self.email, name).sent()) != self._approved.get(name):
                self._member.revoke(name, "it changed after it was approved")
        self._member.run(timeout, share_update, share_log)
        self._member.sync()
        return {name: _state(_find(self._member, self.email, name)) for name in names}

    def log(self, name: str) -> str:
        """What the job printed and, after it, its errors."""
        job = _find(self._member, self.email, name)
        folders = [job.review, self._member.kept_logs / name]
        return "".join(_text(replace(job, review=folder), log) for log in LOGS for folder in folders)

    def update(self, name: str) -> Update:
        """What the job gave back, seen by its owner. Raises as :meth:`Scientist.update` does."""
        job = _find(self._member, self.email, name)
        sent = job.sent()[f"code/{datasite_job.WEIGHTS}"].decode()
        return _update(job, datasite_job.layout_of(datasite_job.from_text(sent)))

    def _request(self, job: Job) -> Request:
        files = job.sent()
        texts = {name: content.decode("utf-8", "backslashreplace") for name, content in files.items()}
        return Request(job.owner, job.name, texts, digest(files))

    def _pending(self, request: Request) -> Job:
        if request.owner != self.email:
            raise ValueError(f"job {request.name!r} was sent to {request.owner}, not to {self.email}")
        job = _find(self._member, self.email, request.name)
        if _state(job) != "pending":
            raise RuntimeError(f"{self.email}'s job {request.name!r} is {_state(job)}: only a pending one is decided")
        return job


def _find(member: Member, owner: str, name: str) -> Job:
    for job in member.jobs():
        if (job.owner, job.name) == (owner, name):
            return job
    raise ValueError(f"{owner} has no job {name!r}")


def _state(job: Job) -> str:
    return WORDS.get(job.state, job.state)


def _text(job: Job, path: str) -> str:
    return (job.returned(path, LOG_LIMIT) or b"").decode("utf-8", "backslashreplace")


def _update(job: Job, layout: Layout) -> Update:
    state = _state(job)
    if state == "failed":
        raise NoUpdate(job.owner, job.name, state, _last_line(_text(job, "stderr.txt")))
    if state != "done":
        why = job.reason or ("no reason was given" if state == "denied" else "its owner has not run it")
        raise NoUpdate(job.owner, job.name, state, why)
    try:
        content = job.returned(f"outputs/{datasite_job.UPDATE}", UPDATE_LIMIT)
        if content is None:
            raise NoUpdate(job.owner, job.name, state, "its owner did not share one, or the job made none")
        vector, count = datasite_job.from_bytes(content, layout)
    except ValueError as error:
        raise ValueError(f"{job.owner}'s job {job.name!r} gave back something wrong: {error}") from None
    return Update(job.owner, job.name, torch.from_numpy(vector), count, layout)


def _files(code: str, weights: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, bytes]:
    """A job's own files, checked."""
    try:
        compile(code, CODE, "exec")
        encoded = code.encode("utf-8")
    except (AttributeError, SyntaxError, TypeError, ValueError) as error:
        raise ValueError(f"code is no Python text: {error}") from None
    try:
        words = json.dumps(dict(settings), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"settings are no JSON: {error}") from None
    text = datasite_job.to_text(weights)
    return {CODE: encoded, datasite_job.WEIGHTS: text.encode(), datasite_job.SETTINGS: words.encode()}


def _written(files: Mapping[str, bytes], folder: Path) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def _last_line(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1] if lines else "its owner keeps the log, or it is empty"


def _load(file: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(file, allow_pickle=False) as arrays:
        return arrays["x"], arrays["y"]
