"""Large sets of faces in their official layouts, and who is in more than one (Wang and Guo 2019, sections 3 and 4.4).

    train = people("casia_webface", data_dir, identities=500)
    test, pairs = listed_pairs(people("lfw", data_dir))
    names = names_of("names.txt")
    train = train.without(overlapping(train, test, names=names))
    loaded = cropped(test, crops_dir).load_found(size=112)

The lists of the test protocols are read by :mod:`fl_utils.data.face_lists_protocols`.
"""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fl_utils.data import fetch
from fl_utils.data.cards import DataNotFound, Location
from fl_utils.data.identities import SUFFIXES, Entry, File, Gallery, checked_limits, drawn, folders, pictures, stem

NAMES = ("lfw", "casia_webface", "vggface2", "ms_celeb_1m", "umdfaces")
PARTS = ("train", "test")  # of VGGFace2
SCHEMES = {"number": r"\d+", "VGGFace2": r"n\d{6}", "Freebase": r"m\.\w+"}  # identities that are no names
BOX = ("FACE_X", "FACE_Y", "FACE_WIDTH", "FACE_HEIGHT")  # left, top, width, height in UMDFaces and IJB-A


class Overview(NamedTuple):
    """A row of Table 16."""

    subjects: int
    images: int
    images_per_subject: float


def people(
    name: str,
    data_dir: str | Path = "",
    part: str = "train",
    identities: int = 0,
    images_per_identity: int = 0,
    seed: int = 0,
) -> Gallery:
    """The people of data set ``name`` (:data:`NAMES`); ``part``, "train" or "test", is of VGGFace2 alone.

    lfw: folders Name/Name_0001.jpg, and pairs.txt beside or in them as ``pairs_file``. casia_webface: a folder of
    digits per person. vggface2: train/n000002/0001_01.jpg. ms_celeb_1m: DeepGlint's list msra_lmk, a line being path,
    label and five points (for align "landmarks"). umdfaces: what umdfaces_batch*_ultraface.csv list, with their boxes;
    a person is the folder's name. identities, images_per_identity: as :func:`identities.galleries` has them, drawn by
    ``seed`` before any picture is read; 0 = all.

    Raises DataNotFound where the data is not there, and ValueError where it holds nobody or naming file and line of a
    list that is damaged.
    """
    if name not in NAMES or part not in PARTS:
        raise ValueError(f"name is {name!r}, part {part!r}: want one of {', '.join(NAMES)}; one of {', '.join(PARTS)}")
    limits = checked_limits(identities, images_per_identity)
    found = fetch.obtain(name, data_dir)
    if name in ("ms_celeb_1m", "umdfaces"):
        return _listed(name, found, limits, seed)
    root = found.files[0].parents[1]
    if name == "vggface2":
        root = root.parent / part
        if not root.is_dir():
            raise DataNotFound(f"{name}: no folder {root}")
    where = {folder.name: folder for folder in folders(root)}
    chosen = drawn(list(where), lambda who: pictures(where[who], SUFFIXES), limits, np.random.default_rng(seed))
    if not chosen:
        raise ValueError(f"{root}: no identities: want one folder of pictures for each person")
    lists = [place / "pairs.txt" for place in (root, root.parent)] if name == "lfw" else []
    return Gallery(name, chosen, next((file for file in lists if file.is_file()), None))


def _listed(name: str, found: Location, limits: tuple[int, int], seed: int) -> Gallery:
    every: dict[str, list[str]] = {}
    boxes: dict[str, tuple[float, ...]] = {}
    if name == "umdfaces":
        for table in found.files:
            for where, row in rows(table, ("FILE", *BOX)):
                file = str(table.parent / row["FILE"])
                if file not in boxes:
                    every.setdefault(Path(file).parent.name, []).append(file)
                boxes.setdefault(file, box(row, where))
    else:
        every = _deepglint(found.files[0])
    if not every:
        raise ValueError(f"{found.files[0]}: no pictures listed")
    chosen = drawn(list(every), lambda who: list(map(Path, every[who])), limits, np.random.default_rng(seed))
    placed = {(who, file): boxes[str(file)] for who, files in chosen.items() for file in files} if boxes else {}
    return Gallery(name, chosen, None, None if boxes else found.files[0], placed)


def _deepglint(path: Path) -> dict[str, list[str]]:
    """The files of each person. Their folder is the list's, or one below it that the archive unpacks to."""
    every: dict[str, list[str]] = {}
    labels: dict[str, str] = {}
    base = None
    for where, line in lines(path):
        file, _, rest = line.partition(" ")
        label, who = rest.partition(" ")[0], file.rpartition("/")[0].rpartition("/")[2]
        if not (label.isdecimal() and who):
            raise ValueError(f"{where}: {line[:80]!r}; want folder/file.jpg, label and ten numbers")
        if labels.setdefault(who, label) != label:
            raise ValueError(f"{where}: {who} has the label {label}, and {labels[who]} before")
        if base is None:
            places = [path.parent / below for below in ("", "train_msra", "msra")]
            base = next((place for place in places if (place / file).is_file()), None)
            if base is None:
                raise ValueError(f"{where}: no picture {file} in {', '.join(map(str, places))}")
        every.setdefault(who, []).append(f"{base}/{file}")
    return every


def boxed(gallery: Gallery, path: str | Path) -> Gallery:
    """``gallery`` with VGGFace2's boxes of its pictures: loose_bb_train.csv or loose_bb_test.csv (NAME_ID, X, Y, W, H).

    Raises ValueError naming a picture that the file lacks."""
    wanted = {f"{who}/{stem(file)}": (who, file) for who, file in gallery.rows()}
    placed = {
        wanted[row["NAME_ID"]]: box(row, where, ("X", "Y", "W", "H"))
        for where, row in rows(Path(path), ("NAME_ID", "X", "Y", "W", "H"))
        if row["NAME_ID"] in wanted
    }
    if missing := [key for key, picture in wanted.items() if picture not in placed]:
        raise ValueError(f"{path}: no box of {missing[0]} ({len(missing)} of {len(wanted)} lack one)")
    return replace(gallery, boxes=placed)


def cropped(gallery: Gallery, folder: str | Path) -> Gallery:
    """``gallery`` with the crops that :func:`fl_utils.crops.crop_folder` cut out of its pictures into ``folder``.

    A picture that ``folder``/failures.csv names (no face, damaged, ...) stays in its row with that reason: ``load``
    refuses it, ``load_found`` names and counts it. Raises ValueError where one has neither a crop nor a reason.
    """
    folder = Path(folder)
    reasons: dict[Entry, str] = {}
    if (failures := folder / "failures.csv").is_file():
        for _, row in rows(failures, ("file", "reason")):
            file = Path(row["file"])
            reasons[file.parent.name, stem(file)] = row["reason"]
    there: dict[str, dict[str, Path]] = {}
    chosen: dict[str, tuple[File, ...]] = {}
    failed: dict[tuple[str, File], str] = {}
    for who, files in gallery.people.items():
        there[who] = {stem(file): file for file in pictures(folder / who, SUFFIXES)} if (folder / who).is_dir() else {}
        for file in files:
            if stem(file) not in there[who]:
                if (who, stem(file)) not in reasons:
                    raise ValueError(f"{folder}: no crop of {who}/{file.name}, and failures.csv gives no reason")
                failed[who, file] = reasons[who, stem(file)]
        chosen[who] = tuple(there[who].get(stem(file), file) for file in files)
    return replace(gallery, people=chosen, boxes={}, failed=failed)


def names_of(path: str | Path) -> dict[str, str]:
    """Names by identity: VGGFace2's identity_meta.csv (Class_ID, Name, ...), or lines of an identity and a name between
    blanks, as "0000045 Name_Surname"."""
    names = {}
    for where, line in lines(Path(path)):
        words = next(csv.reader([line], skipinitialspace=True)) if "," in line else line.split(maxsplit=1)
        if len(words) < 2 or not words[0].strip() or not words[1].strip():
            raise ValueError(f"{where}: {line[:80]!r}; want an identity and a name")
        if words[0] != "Class_ID":
            names[words[0].strip()] = words[1].strip()
    return names


def overlapping(train: Gallery, *tests: Gallery, names: Mapping[str, str] | None = None) -> list[str]:
    """The identities of ``train`` who are also in one of ``tests``: ``train.without`` these is what section 4.4 trains
    on (Table 16). People are compared by name, without regard to case, accents and all but letters and digits.

    names: name by identity, for data sets whose identities are none (WebFace's 0000045, VGGFace2's n000001, Freebase's
    m.02mjmr, IJB-A's 1000). Raises ValueError where an identity without a name would have to be compared with a name,
    or a number with another data set's.
    """
    names = names or {}
    called = [{who: names.get(who, who) for who in gallery.people} for gallery in (train, *tests)]
    schemes = {_scheme(label): who for labels in called for who, label in labels.items()}
    if len(schemes) > 1 or ("number" in schemes and len({gallery.name for gallery in (train, *tests)}) > 1):
        scheme, who = next((scheme, who) for scheme, who in schemes.items() if scheme != "name")
        raise ValueError(f"{who!r} is a {scheme} identity without a name: who it is elsewhere nobody knows; give names")
    tested = {_plain(label) for labels in called[1:] for label in labels.values()}
    return [who for who, label in called[0].items() if _plain(label) in tested]


def require_disjoint(train: Gallery, *tests: Gallery, names: Mapping[str, str] | None = None) -> None:
    """Raise ValueError, naming some, where identities of ``train`` are in one of ``tests``: see :func:`overlapping`."""
    if both := overlapping(train, *tests, names=names):
        raise ValueError(
            f"{len(both)} of {len(train.people)} identities of {train.name} are also tested on: {', '.join(both[:5])}"
            f"{', ...' if len(both) > 5 else ''}; train without them"
        )


def overview(gallery: Gallery) -> Overview:
    """How broad and how deep it is: subjects, images, images per subject on average."""
    return Overview(len(gallery.people), len(gallery), len(gallery) / max(1, len(gallery.people)))


def _scheme(label: str) -> str:
    return next((scheme for scheme, pattern in SCHEMES.items() if re.fullmatch(pattern, label)), "name")


def _plain(label: str) -> str:
    if _scheme(label) != "name":
        return label
    letters = unicodedata.normalize("NFKD", label.casefold())
    return "".join(character for character in letters if character.isalnum())


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """Each line of a text file (UTF-8) that is not blank, with "file, line n" for errors; one at a time."""
    try:
        with path.open(encoding="utf-8-sig") as handle:
            for number, line in enumerate(handle, 1):
                if line.strip():
                    yield f"{path}, line {number}", line.strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file: {error}") from None


def rows(path: Path, columns: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Each row of a CSV file with a header, with "file, line n" for errors. Raises ValueError on a file without one of
    ``columns``, and on a row that has nothing there."""
    wanted = list(columns)
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            table = csv.DictReader(handle, skipinitialspace=True)
            if missing := [column for column in wanted if column not in (table.fieldnames or ())]:
                raise ValueError(f"{path}: no column {missing[0]}; want {', '.join(wanted)}")
            for row in table:
                where = f"{path}, line {table.line_num}"
                if empty := [column for column in wanted if not row[column]]:
                    raise ValueError(f"{where}: nothing under {empty[0]}")
                yield where, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV file: {error}") from None


def box(row: Mapping[str, str], where: str, columns: Sequence[str] = BOX) -> tuple[float, ...]:
    """Left, top, right, bottom of a row that has left, top, width and height under ``columns``."""
    try:
        left, top, width, height = (float(row[column]) for column in columns)
    except ValueError:
        left = top = width = height = np.nan
    if not (np.isfinite([left, top]).all() and 0 < width < np.inf and 0 < height < np.inf):
        found = ", ".join(f"{column} {row[column]!r}" for column in columns)
        raise ValueError(f"{where}: {found}; want left, top and a width and height above 0")
    return left, top, left + width, top + height
