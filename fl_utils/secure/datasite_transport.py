"""PySyft 0.10's datasites without a network: every private name of ``syft`` that this collection uses, in one room.

``syft`` keeps what its members write in a store; its users log in to Google Drive, its own tests use a store in memory.
Here the members share one store in memory. That takes private names, which the next release may rename, so the versions
are pinned and checked first. Each member has a folder of its own, and the store holds only what a member uploaded:
mock parts, jobs, and the results that an owner shared. A private part is never uploaded.

The stock run script makes a virtual environment from the network. Here a job runs in the owner's own interpreter, by
:data:`RUN_SCRIPT`; the script travels with the job, so an owner has to compare it before running anything.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from fl_utils.secure.datasite_job import DATA_VARIABLE

PINNED = {"syft": "0.10.0", "syft-rds": "0.6.1", "syft-job": "0.1.40", "syft-dataset": "0.1.21"}
CODE, RUN = "main.py", "run.sh"
PYTHON_VARIABLE = "FL_DATASITE_PYTHON"
RUN_SCRIPT = f'#!/bin/bash\nset -euo pipefail\ncd code\nexec "${{{PYTHON_VARIABLE}}}" {CODE}\n'
LOGS = ("stdout.txt", "stderr.txt")
DATASET = "examples"


def check_versions() -> None:
    """Raise RuntimeError where another version of a ``syft`` package is installed than this room was written for."""
    for name, pinned in PINNED.items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = "none"
        if found != pinned:
            raise RuntimeError(
                f"{name} {found} is installed: datasites use private names of {name} {pinned}; install exactly that"
            )


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep ``syft``'s prints, log lines and warnings from the reader; its exceptions pass."""
    logging.getLogger("syft").setLevel(logging.CRITICAL)
    logging.getLogger("syft_rds").setLevel(logging.CRITICAL)
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _silent(function: Callable) -> Callable:
    @functools.wraps(function)
    def quiet(*args, **kwargs):
        with silence():
            return function(*args, **kwargs)

    return quiet


def job_environment(data: Path) -> dict[str, str]:
    """The environment of a job that finds its arrays in the file ``data``."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return {
        **os.environ,
        PYTHON_VARIABLE: sys.executable,
        DATA_VARIABLE: str(data),
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
    }


@dataclass(frozen=True)
class Job:
    """What a member's own folder says of one job: files sent (path -> bytes), files that came back, state and reason.

    ``state`` is one of received, pending, approved, rejected, running, done, failed.
    """

    owner: str
    name: str
    state: str
    reason: str
    submission: Path
    review: Path

    def sent(self) -> dict[str, bytes]:
        """Path under the submission -> content, for every file of it."""
        files = (file for file in sorted(self.submission.rglob("*")) if file.is_file() or file.is_symlink())
        return {file.relative_to(self.submission).as_posix(): file.read_bytes() for file in files}

    def returned(self, path: str, limit: int) -> bytes | None:
        """A file that the run left, as far as this member may see it; None: there is none. ValueError: too large."""
        file = self.review / path
        if not file.is_file():
            return None
        if file.stat().st_size > limit:
            raise ValueError(f"{path} has {file.stat().st_size:,} bytes: at most {limit:,} can be right")
        return file.read_bytes()


def digest(files: dict[str, bytes]) -> str:
    """sha256 over names, lengths and contents of ``files``."""
    sha256 = hashlib.sha256()
    for name, content in sorted(files.items()):
        sha256.update(f"{len(name.encode())} {name} {len(content)} ".encode() + content)
    return sha256.hexdigest()


class Store:
    """The shared store, in this process' memory. It guards nothing from anybody who shares the process."""

    @_silent
    def __init__(self):
        check_versions()
        from syft.sync.connections.drive.mock_drive_service import MockDriveBackingStore

        self._drive = MockDriveBackingStore()

    def contents(self) -> dict[str, bytes]:
        """Everything that was ever uploaded and still lies there: identifier and name -> content."""
        return {f"{id} {file.name}": file.content for id, file in self._drive.files.items()}


class Member:
    """One ``syft`` client over a store: an owner (has data, runs jobs) or the scientist (submits them)."""

    @_silent
    def __init__(self, email: str, folder: Path, store: Store, owner: bool):
        from syft.sync.connections.drive.gdrive_transport import GDriveConnection
        from syft.sync.connections.drive.mock_drive_service import MockDriveService
        from syft_rds import SyftRDSClient, SyftRDSClientConfig

        self.email, self.kept_logs = email, folder.with_name(f"{folder.name}-logs")
        self._client = client = SyftRDSClient.from_config(
            SyftRDSClientConfig._base_config_for_testing(
                email=email,
                syftbox_folder=folder,
                has_do_role=owner,
                has_ds_role=not owner,
                use_in_memory_cache=False,
                write_files=True,
            )
        )
        engine = client.sync_engine
        engine._add_connection(GDriveConnection.from_service(email, MockDriveService(store._drive, email)))
        if owner:
            changed = engine.job_file_change_handler._handle_file_change
            engine.datasite_owner_syncer.event_cache.add_callback("on_event_local_write", changed)
        else:
            engine.file_writer.add_callback("write_file", engine.datasite_watcher_syncer.on_file_change)
            client.job_client._generate_python_run_script = lambda *_: RUN_SCRIPT
        engine.peer_manager.write_own_version()

    @_silent
    def meet(self, owner: Member) -> None:
        """The scientist asks ``owner`` to be its peer, and the owner agrees."""
        self._client.add_peer(owner.email, sync=False)
        owner._client.load_peers()
        owner._client.approve_peer_request(self.email)
        self._client.load_peers()

    @_silent
    def publish(self, mock: Path, private: Path, reader: str) -> None:
        """Make the data set: the file ``mock`` goes to ``reader``, the file ``private`` stays in this folder."""
        self._client.create_dataset(
            name=DATASET, mock_path=mock, private_path=private, users=[reader], upload_private=False, sync=False
        )

    @_silent
    def sync(self) -> None:
        """Exchange news with the store."""
        self._client.sync()

    @_silent
    def data_sets(self) -> dict[str, tuple[list[Path], list[Path]]]:
        """Owner -> (mock files, private files), as far as they lie in this member's folder."""
        return {
            found.owner: (list(found.mock_files), list(found.private_files) if found.private_dir.is_dir() else [])
            for found in self._client.dataset_manager.get_all()
        }

    @_silent
    def submit(self, owner: str, folder: Path, name: str) -> None:
        """Send the job in ``folder`` (its entry point is main.py) to ``owner``."""
        self._client.submit_python_job(
            user=owner, code_path=str(folder), job_name=name, entrypoint=CODE, force_submission=True
        )

    @_silent
    def jobs(self) -> list[Job]:
        """Every job that this member knows of, by owner and name."""
        found = [
            Job(
                j.datasite_owner_email,
                j.name,
                j.status,
                j.review_reason or "",
                j.job_submission_path,
                j.job_review_path,
            )
            for j in self._client.job_client.jobs
        ]
        return sorted(found, key=lambda job: (job.owner, job.name))

    @_silent
    def decide(self, name: str, approve: bool, reason: str) -> None:
        """An owner's word on a pending job."""
        job = self._client.job_client.jobs[name]
        (job.approve if approve else job.reject)(reason)

    @_silent
    def revoke(self, name: str, reason: str) -> None:
        """Take back an approval before the job ran."""
        from syft_job.models import JobStatus

        job = self._client.job_client.jobs[name]
        job._state.status, job._state.review_reason = JobStatus.REJECTED, reason
        job._client.manager.write_state(job._ref, job._state)

    @_silent
    def run(self, timeout: int, share_update: bool, share_log: bool) -> None:
        """Run every approved job in this interpreter, with the path of the private file in its environment.

        ``syft`` lets a submitter read its jobs' logs whether they are to be shared or not (all but ``outputs`` of the
        folder that it shares), so logs that are not are taken out of that folder before the next sync.
        """
        approved = [job for job in self.jobs() if job.state == "approved"]
        wanted = job_environment(self.data_sets()[self.email][1][0])
        before = {key: os.environ.get(key) for key, value in wanted.items() if os.environ.get(key) != value}
        os.environ.update(wanted)
        try:
            self._client.job_runner.process_approved_jobs(
                stream_output=False,
                timeout=timeout,
                share_outputs_with_submitter=share_update,
                share_logs_with_submitter=share_log,
            )
        finally:
            for key, value in before.items():
                if value is None:
                    del os.environ[key]
                else:
                    os.environ[key] = value
        for job in approved if not share_log else ():
            kept = self.kept_logs / job.name
            kept.mkdir(parents=True, exist_ok=True)
            for log in LOGS:
                if (job.review / log).exists():
                    shutil.move(job.review / log, kept / log)
