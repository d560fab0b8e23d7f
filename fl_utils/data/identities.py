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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fl_utils.data import alignment, fetch
from fl_utils.data.cards import DataNotFound, Location
from fl_utils.data.examples import Examples
from fl_utils.detection import enlarged
from fl_utils.verification import Pairs

NAMES = ("orl_faces", "bupt_balancedface", "rfw")
SUFFIXES = (".jpg", ".jpeg", ".png", ".pgm", ".bmp")
ALIGNMENTS = ("centre", "landmarks", "box")
File = Path | zipfile.Path
Entry = tuple[str, str]  # an identity and the stem of a picture's name


@dataclass(frozen=True, eq=False)
class Loaded:
    """Pictures of which some are not usable: ``found`` (bool [N]) says which are, ``failures`` of each other row why it
    is not ("identity/file: reason"); it is black in ``examples``, so that a list of pairs still fits the rows."""

    examples: Examples
    found: np.ndarray
    failures: Mapping[int, str]

    def usable(self) -> Examples:
        """Those that are: what training takes (Wang and Guo 2019, section 4.1: the others are discarded)."""
        rows = torch.from_numpy(self.found)
        return Examples(self.examples.x[rows], self.examples.y[rows])

    def lines(self, pairs: Pairs) -> list[str]:
        """One line for each picture that is not usable: which, why, and in how many of ``pairs``."""
        return [
            f"{why}; pairs with it: {int(((pairs.first == row) | (pairs.second == row)).sum())}"
            for row, why in self.failures.items()
        ]


@dataclass(frozen=True, eq=False)
class Gallery:
    """One group of people: ``people`` maps each identity to its pictures, in a fixed order, nothing of them read yet.

    pairs_file, landmarks_file: what the data set brings along for this group, None where it does not. boxes: a face's
    place (left, top, right, bottom in pixels) by identity and file. failed: pictures known not to be usable, and why.
    """

    name: str
    people: Mapping[str, tuple[File, ...]]
    pairs_file: Path | None = None
    landmarks_file: Path | None = None
    boxes: Mapping[tuple[str, File], Sequence[float]] = field(default_factory=dict, repr=False)
    failed: Mapping[tuple[str, File], str] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return sum(map(len, self.people.values()))

    def rows(self) -> list[tuple[str, File]]:
        """Identity and file of each picture, in the order in which they are loaded."""
        return [(who, file) for who, files in self.people.items() for file in files]

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
        picture so that its five landmarks fit :data:`alignment.TEMPLATE` best; "box" cuts out the face's box and scales
        it, without alignment (Wang and Guo 2019, section 4.1). channels: 3 (RGB) or 1 (grey); a picture is converted.
        Raises ValueError naming a picture that is none, has more than 8 bits a channel, no landmarks or no box.
        """
        return self._load(size, channels, align, strict=True).examples

    def load_found(self, size: int, channels: int = 3, align: str = "centre") -> Loaded:
        """As :meth:`load`, but a picture that is not usable is named and counted, not an error."""
        return self._load(size, channels, align, strict=False)

    def _load(self, size: int, channels: int, align: str, strict: bool) -> Loaded:
        if size < 1 or channels not in (1, 3) or align not in ALIGNMENTS:
            raise ValueError(
                f"size is {size}, channels {channels}, align {align!r}: want at least 1 pixel, 1 or 3 channels, "
                f"{' or '.join(map(repr, ALIGNMENTS))}"
            )
        if not self.people:
            raise ValueError(f"{self.name}: no identities to load")
        points = self.landmarks if align == "landmarks" else {}
        x = np.zeros((len(self), channels, size, size), dtype=np.uint8)
        y = [number for number, files in enumerate(self.people.values()) for _ in files]
        failures = {}
        found = np.ones(len(self), dtype=bool)
        for row, (who, file) in enumerate(self.rows()):
            try:
                x[row] = self._face(who, file, size, "L" if channels == 1 else "RGB", align, points)
            except ValueError as error:
                if strict:
                    raise
                found[row] = False
                failures[row] = f"{who}/{file.name}: {str(error).removeprefix(f'{file}: ')}"
        return Loaded(Examples(torch.from_numpy(x), torch.tensor(y)), found, failures)

    def _face(self, who: str, file: File, size: int, mode: str, align: str, points: Mapping) -> np.ndarray:
        """One picture as uint8 [channels, size, size]."""
        if why := self.failed.get((who, file)):
            raise ValueError(f"{file}: {why}")
        picture = alignment.opened(file, mode)
        try:
            if align == "centre":
                picture = alignment.centred(picture, size)
            elif align == "box":
                if (box := self.boxes.get((who, file))) is None:
                    raise ValueError(f"{self.name} has no box of it")
                corners = enlarged(box, (picture.height, picture.width), 0)
                picture = picture.crop(corners).resize((size, size), Image.Resampling.BILINEAR)
            elif (marks := points.get(alignment.key(str(file)))) is None:
                raise ValueError(f"{self.landmarks_file} has no landmarks of it")
            else:
                picture = alignment.aligned(picture, marks, size)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        return np.asarray(picture).reshape(size, size, -1).transpose(2, 0, 1)

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
    limits = checked_limits(identities, images_per_identity)
    found = fetch.obtain(name, data_dir)
    if name == "orl_faces":
        there: dict[str, File] = {"orl": _orl(found)}
    else:
        there = {folder.name: folder for folder in folders(found.files[0].parents[2])}
    if missing := [group for group in groups if group not in there]:
        raise ValueError(f"{name}: no group {missing[0]!r} in {found.root}; there are {', '.join(there)}")
    suffixes = (".pgm",) if name == "orl_faces" else SUFFIXES
    result = {}
    for group in groups or there:
        places = {folder.name: folder for folder in folders(there[group])}
        random = np.random.default_rng([seed, list(there).index(group)])
        people = drawn(list(places), lambda who, at=places: pictures(at[who], suffixes), limits, random)
        if not people:
            raise ValueError(f"{there[group]}: no identities: want one folder of pictures for each person")
        lists = {kind: _text(found, group, kind) for kind in ("pairs", "lmk")} if name == "rfw" else {}
        result[group] = Gallery(f"{name} {group}", people, lists.get("pairs"), lists.get("lmk"))
    return result


def checked_limits(identities: int, images_per_identity: int) -> tuple[int, int]:
    """Both. Raises ValueError where one is negative."""
    if identities < 0 or images_per_identity < 0:
        raise ValueError(f"identities is {identities}, images_per_identity {images_per_identity}: want 0 (all) or more")
    return identities, images_per_identity


def drawn(
    names: Sequence[str],
    files_of: Callable[[str], Sequence[File]],
    limits: tuple[int, int],
    random: np.random.Generator,
) -> dict[str, tuple[File, ...]]:
    """Of those ``names`` that have pictures at most ``limits[0]``, each with at most ``limits[1]`` of them; 0 = all."""
    identities, images_per_identity = limits
    people: dict[str, tuple[File, ...]] = {}
    for index in random.permutation(len(names)):
        files = tuple(files_of(names[index]))
        if images_per_identity and len(files) > images_per_identity:
            files = tuple(files[i] for i in np.sort(random.permutation(len(files))[:images_per_identity]))
        if files:
            people[names[index]] = files
        if identities and len(people) == identities:
            break
    return {who: people[who] for who in sorted(people, key=_natural)}


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


def folders(place: File) -> list[File]:
    """The folders in ``place`` that are not hidden, s2 before s10."""
    return sorted((f for f in place.iterdir() if f.is_dir() and f.name[0] != "."), key=lambda f: _natural(f.name))


def pictures(folder: File, suffixes: Sequence[str]) -> tuple[File, ...]:
    """The pictures in ``folder`` that are not hidden, 2.pgm before 10.pgm."""
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
    there = {(who, stem(picture)) for who, picture in gallery.rows()}
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
    return paired(gallery, entries, str(file), folds, limit, seed)


def paired(
    gallery: Gallery, entries: Sequence[tuple[Entry, Entry]], what: str, folds: int = 10, limit: int = 0, seed: int = 0
) -> tuple[Gallery, Pairs]:
    """The pictures that ``entries`` name, and the :class:`Pairs` they make; ``what`` is their list, for errors.

    Raises ValueError where all pairs are genuine or all impostor.
    """
    same = np.array([first[0] == second[0] for first, second in entries])
    if same.all() or not same.any():
        raise ValueError(f"{what}: {len(same)} pairs, {int(same.sum())} of them genuine: want some of either kind")
    fold = np.arange(len(entries)) * folds // len(entries)
    chosen = _drawn(2 * fold + same, limit, seed)
    used = {picture for row in chosen for picture in entries[row]}
    people = {who: tuple(p for p in files if (who, stem(p)) in used) for who, files in gallery.people.items()}
    kept = replace(gallery, people={who: files for who, files in people.items() if files})
    row_of = {(who, stem(picture)): row for row, (who, picture) in enumerate(kept.rows())}
    first, second = (np.array([row_of[entries[row][side]] for row in chosen]) for side in (0, 1))
    return kept, Pairs(first, second, same[chosen], fold[chosen])


def stem(file: File) -> str:
    """A picture's name without its suffix."""
    return file.name.rpartition(".")[0]


def _pair(line: str, where: str, name: str, there: set[Entry]) -> tuple[Entry, Entry]:
    words = line.split()
    if len(words) == 3:  # both of one person
        words.insert(2, words[0])
    if len(words) != 4 or not (words[1].isdecimal() and words[3].isdecimal()):
        raise ValueError(f"{where}: {line!r} is no pair; want identity, 1, 2 or identity, 1, other, 2 between tabs")
    first, second = ((who, f"{who}_{int(number):04d}") for who, number in (words[:2], words[2:]))
    for picture in (first, second):
        if picture not in there:
            raise ValueError(f"{where}: {name} has no picture {'/'.join(picture)}.jpg")
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
