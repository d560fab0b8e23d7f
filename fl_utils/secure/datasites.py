"""Data owners, each with a mock and a private part, and a scientist whose jobs an owner reads before they run (PySyft).

The scientist sees only the mock parts. A round of federated learning goes like this:

1. the scientist submits a job to every owner: Python as text, the weights as text, settings;
2. an owner reads the whole job, and approves or denies it; what was approved is remembered by its sha256;
3. the owner runs what it approved, in its own interpreter, with the path of its private part in the environment;
4. the update, one flat float32 vector and a number of examples, goes back to the scientist, or stays with the owner;
5. the scientist averages the updates (FedAvg), or the owners do so with each other under encryption and tell only that.

What protects the private part, and what does not:

* The approval protects it, and nothing else does. An approved job runs with all of its owner's rights: it can print the
  private part, write it into its update, or send it away. An owner therefore gets to see every file of a job first; a
  job of another form than the agreed one (another run script, more files) cannot be approved, and one that was changed
  after its approval does not run.
* A job that is pending or denied does not run, and gives nothing.
* An honest update still says something of the examples behind it. The encrypted average hides each single update from
  the scientist; it does not make the average private.
* There is no isolation here: no sandbox around a job, and all members live in one process of one user, with folders
  side by side. The store is ``syft``'s own test store in memory (see fl_utils.secure.datasite_transport). In use, every
  member has a machine, and the store is a service with accounts. ``Scientist`` offers no way to a private part, but
  whoever shares its process can read that process' memory and files.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from fl_utils.secure import datasite_job
from fl_utils.secure.average import BACKENDS, encrypted_average
from fl_utils.secure.datasite_members import NoUpdate, Owner, Request, Scientist, Update
from fl_utils.secure.datasite_transport import Member, Store

__all__ = ["Datasites", "NoUpdate", "Owner", "Request", "Scientist", "Update", "average"]

EMAIL = re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+")

Part = tuple[Any, Any]  # x [n, ...] and y [n, ...]


class Datasites:
    """Owners and one scientist over one store; a context manager that gives ``owners`` (by e-mail) and ``scientist``.

    owners: e-mail -> (mock, private), each a pair of arrays x [n, ...] and y [n, ...]; or pairs of e-mail and that.
    folder: where the members' folders go; kept. Without it they lie in a temporary folder that goes at the end.
    Raises ValueError: fewer than one owner, a name that is no e-mail address or stands twice, arrays that do not fit, a
    mock part that is the private one, a folder that is not empty. RuntimeError: another ``syft`` than the pinned one.
    """

    scientist: Scientist
    owners: dict[str, Owner]

    def __init__(
        self,
        owners: Mapping[str, tuple[Part, Part]] | Iterable[tuple[str, tuple[Part, Part]]],
        scientist: str,
        folder: str | os.PathLike | None = None,
    ):
        given = list(owners.items() if isinstance(owners, Mapping) else owners)
        if not given:
            raise ValueError("owners is empty: want at least one data owner")
        seen: set[str] = set()
        for name in [*(name for name, _ in given), scientist]:
            if not isinstance(name, str) or not EMAIL.fullmatch(name):
                raise ValueError(f"{name!r} is not the name of a member: want an e-mail address, as in ann@example.org")
            if name.lower() in seen:
                raise ValueError(f"{name} stands twice: want another address for each owner and for the scientist")
            seen.add(name.lower())
        self._parts = {name: _parts(name, parts) for name, parts in given}
        self._email = scientist
        self._folder = None if folder is None else Path(folder)
        if self._folder is not None and self._folder.exists() and any(self._folder.iterdir()):
            raise ValueError(f"folder {folder} is not empty: want a new one")

    def __enter__(self) -> Datasites:
        self.store = Store()
        self._temporary = tempfile.TemporaryDirectory(prefix="fl-datasites-")
        root = Path(self._temporary.name) if self._folder is None else self._folder
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        members = {name: Member(name, root / name, self.store, owner=True) for name in self._parts}
        scientist = Member(self._email, root / self._email, self.store, owner=False)
        for name, parts in self._parts.items():
            scientist.meet(members[name])
            with tempfile.TemporaryDirectory(prefix="fl-part-") as place:
                files = [Path(place) / "mock.npz", Path(place) / "private.npz"]
                for file, (x, y) in zip(files, parts, strict=True):
                    np.savez(file, x=x, y=y)
                members[name].publish(*files, reader=self._email)
            members[name].sync()
        self.owners = {name: Owner(member, root / name) for name, member in members.items()}
        self.scientist = Scientist(scientist, members, root / self._email)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._temporary.cleanup()

    def train_round(
        self,
        name: str,
        code: str,
        weights: Mapping[str, Any],
        review: Callable[[Request], bool],
        *,
        settings: Mapping[str, Any] | None = None,
        backend: str = "plain",
        timeout: int = 600,
    ) -> dict[str, np.ndarray]:
        """One round of FedAvg over all owners; the averaged weights, name -> float32 array.

        review: each owner's decision on the job. backend: "plain" shares every update with the scientist; any other of
        ``fl_utils.secure.average.BACKENDS`` keeps each at its owner, and only the encrypted average comes out. Raises
        NoUpdate where an owner denied the job or it failed there, ValueError as :meth:`Scientist.submit` does.
        """
        if backend not in BACKENDS:
            raise ValueError(f"backend is {backend!r}: want one of {', '.join(BACKENDS)}")
        if backend != "plain" and len(self.owners) < 2:
            raise ValueError(f"one owner: an average by {backend!r} needs at least 2")
        for owner in self.owners:
            self.scientist.submit(owner, name, code, weights, settings)
        for owner in self.owners.values():
            request = next(request for request in owner.requests() if request.name == name)
            owner.approve(request) if review(request) else owner.deny(request)
            owner.run(share_update=backend == "plain", timeout=timeout)
        if backend == "plain":
            return average([self.scientist.update(owner, name) for owner in self.owners])
        return average([owner.update(name) for owner in self.owners.values()], backend)


def average(updates: Iterable[Update], backend: str = "plain") -> dict[str, np.ndarray]:
    """FedAvg of ``updates``, weighted by their examples; name -> float32 array.

    backend: see :func:`fl_utils.secure.average.encrypted_average`, which also raises. ValueError: there is no update,
    or two have different layouts.
    """
    updates = list(updates)
    if not updates:
        raise ValueError("updates is empty: want at least one")
    for update in updates[1:]:
        if update.layout != updates[0].layout:
            raise ValueError(
                f"{update.owner}'s update has another layout than {updates[0].owner}'s: "
                f"{dict(update.layout)} and {dict(updates[0].layout)}"
            )
    vectors, counts = [update.vector for update in updates], [update.num_examples for update in updates]
    return datasite_job.unflatten(encrypted_average(vectors, counts, backend).numpy(), updates[0].layout)


def _parts(owner: str, parts: tuple[Part, Part]) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Mock and private part of ``owner`` as arrays, checked."""
    try:
        (mock_x, mock_y), (x, y) = ((np.asarray(x), np.asarray(y)) for x, y in parts)
    except (TypeError, ValueError):
        raise ValueError(f"{owner}'s data: want (mock, private), each a pair of arrays x and y") from None
    for kind, one, two in (("mock", mock_x, mock_y), ("private", x, y)):
        if one.ndim < 1 or two.ndim < 1 or len(one) != len(two) or not len(one):
            raise ValueError(
                f"{owner}'s {kind} part has x {one.shape} and y {two.shape}: want as many rows, at least 1"
            )
        if one.dtype.kind not in "biuf" or two.dtype.kind not in "biuf":
            raise ValueError(f"{owner}'s {kind} part has x of {one.dtype} and y of {two.dtype}: want numbers")
    for word, one, two in (("x", mock_x, x), ("y", mock_y, y)):
        if one.dtype != two.dtype or one.shape[1:] != two.shape[1:]:
            raise ValueError(
                f"{owner}'s {word} is {one.dtype} {one.shape[1:]} a row in the mock and {two.dtype} {two.shape[1:]} in "
                "the private part: want the same"
            )
    if np.shares_memory(mock_x, x) or np.array_equal(mock_x, x):
        raise ValueError(f"{owner}'s mock part is made of its private part: want invented examples")
    return (mock_x, mock_y), (x, y)
