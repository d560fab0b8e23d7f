"""Faces of known people: who is in which picture, lists of pairs (Hu et al. 2020, appendix).

    groups = galleries("rfw", data_dir, ["African", "Caucasian"])
    gallery, pairs = listed_pairs(groups["African"])
    examples = gallery.load(size=112, align="landmarks")    # row i of the pairs' indices is row i of the examples

A gallery knows people and their files; a picture is decoded when it is asked for, so that a data set of a million
pictures can be cut before anything is read.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from fl_utils.data import alignment, fetch
from fl_utils.data.cards import DataNotFound, Location
from fl_utils.data.examples import Examples
from fl_utils.verification import Pairs

NAMES = ("orl_faces", "bupt_balancedface", "rfw")
SUFFIXES = (".jpg", ".jpeg", ".png", ".pgm", ".bmp")
ALIGNMENTS = ("centre", "landmarks")
File = Path | zipfile.Path


@dataclass(frozen=True, eq=False)
class Gallery:
    """One group of people: ``people`` maps each identity to its pictures, in a fixed order, nothing of them read yet.

    pairs_file, landmarks_file: what the data set brings along for this group, None where it does not.
    """

    name: str
    people: Mapping[str, tuple[File, ...]]
    pairs_file: Path | None = None
    landmarks_file: Path | None = None

    def __len__(self) -> int:
        return sum(map(len, self.people.values()))

    def take(self, identities: Iterable[str]) -> Gallery:
        """The pictures of ``identities`` alone, in that order. Raises ValueError on one who is not here."""
        wanted = list(identities)
        if missing := [who for who in wanted if who not in self.people]:
            raise ValueError(f"{self.name}: no identity {missing[0]!r} among its {len(self.people)}")
        return replace(self, people={who: self.people[who] for who in wanted})

    def without(self, identities: Iterable[str]) -> Gallery:
        """All but ``identities``: nobody who is tested on may be trained on."""
        other = set(identities)
        return self.take(who for who in self.people if who not in other)

    def split(self, test: int, seed: int) -> tuple[Gallery, Gallery]:
        """The pictures of all people but ``test`` of them, drawn by ``seed``, and those of these ``test``."""
        if not 1 <= test < len(self.people):
            raise ValueError(
                f"{self.name}: {test} test identities of {len(self.people)}: want at least one on either side"
            )
        drawn = set(np.random.default_rng(seed).permutation(list(self.people))[:test].tolist())
        return self.without(drawn), self.take(who for who in self.people if who in drawn)

    def load(self, size: int, channels: int = 3, align: str = "centre") -> Examples:
        """Every picture as uint8 [N, channels, size, size] with the number of its identity (0 .. people - 1).

        align: "centre" cuts the largest square out of the middle and scales it; "landmarks" moves, turns and scales the
        picture so that its five landmarks fit :data:`alignment.TEMPLATE` best. channels: 3 (RGB) or 1 (grey).
        Raises ValueError naming a picture that is none, has more than 8 bits a channel or no landmarks.
        """
        if size < 1 or channels not in (1, 3) or align not in ALIGNMENTS:
            raise ValueError(
                f"size is {size}, channels {channels}, align {align!r}: want at least 1 pixel, 1 or 3 channels, "
                f"{' or '.join(map(repr, ALIGNMENTS))}"
            )
        if not self.people:
            raise ValueError(f"{self.name}: no identities to load")
        points = self.landmarks if align == "landmarks" else None
        x = np.empty((len(self), channels, size, size), dtype=np.uint8)
        y = [number for number, files in enumerate(self.people.values()) for _ in files]
        for row, file in enumerate(file for files in self.people.values() for file in files):
            picture = alignment.opened(file, "L" if channels == 1 else "RGB")
            if points is None:
                picture = alignment.centred(picture, size)
            elif (found := points.get(alignment.key(str(file)))) is None:
                raise ValueError(f"{file}: {self.landmarks_file} has no landmarks of it")
            else:
                try:
                    picture = alignment.aligned(picture, found, size)
                except ValueError as error:
                    raise ValueError(f"{file}: {error}") from None
            x[row] = np.asarray(picture).reshape(size, size, channels).transpose(2, 0, 1)
        return Examples(torch.from_numpy(x), torch.tensor(y))

    @cached_property
    def landmarks(self) -> dict[str, np.ndarray]:
        """Five points (float [5, 2], x and y in pixels) by "identity/file". Raises ValueError where there are none."""
        if self.landmarks_file is None:
            raise ValueError(f"{self.name}: align is 'landmarks', but this data set brings none; take 'centre'")
        return alignment.landmarks(self.landmarks_file)


def galleries(
    name: str,
    data_dir: str | Path = "",
    groups: Sequence[str] = (),
    identities: int = 0,
    images_per_identity: int = 0,
    seed: int = 0,
) -> dict[str, Gallery]:
    """The people of data set ``name`` (:data:`NAMES`) by group: "orl" alone, or African, Asian, Caucasian, Indian.

    groups: the ones wanted, in that order; all there are by default. identities, images_per_identity: at most so many
    people of each group and pictures of each, drawn by ``seed``; 0 = all. A folder without pictures is nobody.
    Raises ValueError on a group that is not there or holds nobody, DataNotFound where the data is not to be had.
    """
    if name not in NAMES:
        raise ValueError(f"{name!r} is not a data set of identities: there are {', '.join(NAMES)}")
    if identities < 0 or images_per_identity < 0:
        raise ValueError(f"identities is {identities}, images_per_identity {images_per_identity}: want 0 (all) or more")
    found = fetch.obtain(name, data_dir)
    if name == "orl_faces":
        there: dict[str, File] = {"orl": _orl(found)}
    else:
        there = {folder.name: folder for folder in _folders(found.files[0].parents[2])}
    if missing := [group for group in groups if group not in there]:
        raise ValueError(f"{name}: no group {missing[0]!r} in {found.root}; there are {', '.join(there)}")
    suffixes = (".pgm",) if name == "orl_faces" else SUFFIXES
    result = {}
    for group in groups or there:
        random = np.random.default_rng([seed, list(there).index(group)])
        people: dict[str, tuple[File, ...]] = {}
        folders = _folders(there[group])
        for index in random.permutation(len(folders)):
            files = _pictures(folders[index], suffixes)
            if images_per_identity and len(files) > images_per_identity:
                files = tuple(files[i] for i in np.sort(random.permutation(len(files))[:images_per_identity]))
            if files:
                people[folders[index].name] = files
            if identities and len(people) == identities:
                break
        if not people:
            raise ValueError(f"{there[group]}: no identities: want one folder of pictures for each person")
        lists = {kind: _text(found, group, kind) for kind in ("pairs", "lmk")} if name == "rfw" else {}
        ordered = {who: people[who] for who in sorted(people, key=_natural)}
        result[group] = Gallery(f"{name} {group}", ordered, lists.get("pairs"), lists.get("lmk"))
    return result


def _text(found: Location, group: str, kind: str) -> Path | None:
    path = found.files[0].parents[3] / "txts" / group / f"{group}_{kind}.txt"
    return path if path.is_file() else None


def _orl(found: Location) -> File:
    """The folder of s1, s2, ...; inside of an archive where that is what was found."""
    if found.layout == "folder":
        return found.files[0].parents[1]
    (path,) = found.files
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: truncated or damaged: {error}") from error
    for member in archive.namelist():
        if match := re.fullmatch(r"(.*/)?s\d+/\d+\.pgm", member):
            return zipfile.Path(archive, match[1] or "")
    raise ValueError(f"{path}: no pictures s1/1.pgm and so on inside")


def _natural(name: str) -> tuple[int, str]:
    return len(name), name  # s2 before s10


def _folders(place: File) -> list[File]:
    return sorted((f for f in place.iterdir() if f.is_dir() and f.name[0] != "."), key=lambda f: _natural(f.name))


def _pictures(folder: File, suffixes: Sequence[str]) -> tuple[File, ...]:
    files = (f for f in folder.iterdir() if f.name.lower().endswith(tuple(suffixes)) and f.name[0] != ".")
    return tuple(sorted(files, key=lambda f: _natural(f.name)))


def listed_pairs(
    gallery: Gallery, path: str | Path = "", limit: int = 0, folds: int = 10, seed: int = 0
) -> tuple[Gallery, Pairs]:
    """The data set's own list of pairs: a :class:`Gallery` of the pictures it names, and :class:`Pairs` of these.

    path: the list; by default the gallery's own. A line is ``identity<TAB>1<TAB>2`` (genuine: pictures 1 and 2 of one
    person) or ``identity<TAB>1<TAB>other<TAB>2`` (impostor); picture 1 of m.xyz is m.xyz_0001.jpg. That is the format
    of RFW and of LFW, whose first line, ``10<TAB>300``, tells the folds and each one's pairs of either kind. Folds are
    stretches of the list: ``folds`` equal ones where no such line says it, which with ten are RFW's own.
    limit: at most so many pairs, each fold and kind about as often as in the whole, drawn by ``seed``; 0 = all.

    Raises DataNotFound where there is no list, and ValueError naming file and line where a line is malformed or names a
    picture that is not in the gallery.
    """
    file = Path(path) if str(path) else gallery.pairs_file
    if file is None or not file.is_file():
        raise DataNotFound(f"{gallery.name}: no list of pairs {file or 'beside its pictures'}; want a text file")
    lines = alignment.lines(file)
    header = re.fullmatch(r"\s*(\d+)(?:\s+(\d+))?\s*", lines[0]) if lines else None
    there = {(who, _stem(picture)) for who, pictures in gallery.people.items() for picture in pictures}
    entries = [
        _pair(line, f"{file}, line {number}", gallery.name, there)
        for number, line in enumerate(lines, 1)
        if line.strip() and not (header and number == 1)
    ]
    if header:
        folds, each = (int(header[1]), int(header[2])) if header[2] else (1, int(header[1]))
        if len(entries) != 2 * folds * each:
            raise ValueError(f"{file}, line 1: {lines[0]!r} means {2 * folds * each} pairs, there are {len(entries)}")
    if not 1 <= folds <= len(entries):
        raise ValueError(f"{file}: {len(entries)} pairs in {folds} folds: want at least one pair in each")
    same = np.array([first[0] == second[0] for first, second in entries])
    fold = np.arange(len(entries)) * folds // len(entries)
    chosen = _drawn(2 * fold + same, limit, seed)
    used = {picture for row in chosen for picture in entries[row]}
    people = {who: tuple(p for p in files if (who, _stem(p)) in used) for who, files in gallery.people.items()}
    kept = replace(gallery, people={who: files for who, files in people.items() if files})
    order = [(who, _stem(picture)) for who, pictures in kept.people.items() for picture in pictures]
    row_of = {picture: row for row, picture in enumerate(order)}
    first, second = (np.array([row_of[entries[row][side]] for row in chosen]) for side in (0, 1))
    return kept, Pairs(first, second, same[chosen], fold[chosen])


def _stem(file: File) -> str:
    return file.name.rpartition(".")[0]


def _pair(line: str, where: str, name: str, there: set[tuple[str, str]]) -> tuple[tuple[str, str], tuple[str, str]]:
    words = line.split()
    if len(words) == 3:  # both of one person
        words.insert(2, words[0])
    if len(words) != 4 or not (words[1].isdecimal() and words[3].isdecimal()):
        raise ValueError(f"{where}: {line!r} is no pair; want identity, 1, 2 or identity, 1, other, 2 between tabs")
    first, second = ((who, f"{who}_{int(number):04d}") for who, number in (words[:2], words[2:]))
    for who, stem in (first, second):
        if (who, stem) not in there:
            raise ValueError(f"{where}: {name} has no picture {who}/{stem}.jpg")
    if first == second:
        raise ValueError(f"{where}: {line!r} pairs a picture with itself")
    return first, second


def _drawn(kinds: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """At most ``limit`` indices, sorted, of each kind about its share; all where ``limit`` is 0."""
    if limit < 0 or limit == 1:
        raise ValueError(f"limit is {limit} pairs: want 0 (all) or at least 2")
    if not limit or limit >= len(kinds):
        return np.arange(len(kinds))
    order = np.random.default_rng(seed).permutation(len(kinds))
    order = order[np.argsort(kinds[order], kind="stable")]
    return np.sort(order[np.arange(limit) * len(kinds) // limit])
