"""The test protocols' own lists: VGGFace2's templates, IJB-A by quality, DFW, UMDFaces-test (Wang and Guo 2019, 3.2).

    gallery, templates = vggface2_templates(data_dir, "pose")    # fl_utils.templates.similarity_matrix
    groups = ijb_a_quality(data_dir, "quality.txt", bounds)      # fl_utils.templates.tar_across
    gallery, kinds = dfw(data_dir)                               # fl_utils.templates.tar_masked
    gallery, pairs = umdfaces_track(data_dir, "difficult")       # fl_utils.verification.tar_at_far

LFW's list is read by ``identities.listed_pairs(face_lists.people("lfw", data_dir))``. Rows of pairs, templates and
matrices are those of ``gallery.load_found(...)``; a list that names a picture which is not there is refused.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fl_utils.data import fetch
from fl_utils.data.cards import DataNotFound
from fl_utils.data.face_lists import BOX, box, lines, people, rows
from fl_utils.data.identities import Entry, File, Gallery, paired, stem
from fl_utils.templates import Templates
from fl_utils.verification import Pairs

VIEWS = {"pose": ("front", "three-quarter", "profile"), "age": ("young", "mature")}
FACES = 5  # of a template
QUALITIES = ("low", "middle", "high")
TRACKS = ("easy", "moderate", "difficult")


def vggface2_templates(data_dir: str | Path, kind: str) -> tuple[Gallery, Templates]:
    """The pictures of VGGFace2-test that its list of templates names, and the templates.

    kind: "pose" (test_posetemp_imglist.txt, 368 subjects) or "age" (test_agetemp_imglist.txt, 100). A line is a
    picture, n000001/0001_01.jpg; a subject has ten of each view, the views in the order of :data:`VIEWS`, and of these
    ten the first five are one template and the last five the other. Raises ValueError naming list and line on a picture
    that is not there, and on a subject with another number of lines.
    """
    if kind not in VIEWS:
        raise ValueError(f"kind is {kind!r}: want one of {', '.join(VIEWS)}")
    test = people("vggface2", data_dir, part="test")
    root = next(iter(test.people.values()))[0].parents[2]
    path = _one(root, f"test_{kind}temp_imglist.txt", f"meta/test_{kind}temp_imglist.txt")
    known = {f"{who}/{file.name}": file for who, file in test.rows()}
    listed: dict[str, list[File]] = {}
    for where, line in lines(path):
        if line not in known:
            raise ValueError(f"{where}: no picture {line!r} in {root / 'test'}")
        listed.setdefault(line.partition("/")[0], []).append(known[line])
    each = len(VIEWS[kind]) * 2 * FACES
    if wrong := [who for who in listed or ["anybody"] if len(listed.get(who, ())) != each]:
        raise ValueError(f"{path}: {len(listed.get(wrong[0], ()))} pictures of {wrong[0]}: want {each} of each subject")
    gallery = Gallery(f"vggface2 {kind}", {who: tuple(dict.fromkeys(files)) for who, files in listed.items()})
    row_of = {picture: row for row, picture in enumerate(gallery.rows())}
    members = [[row_of[who, file] for file in files] for who, files in listed.items()]
    return gallery, Templates(VIEWS[kind], np.array(members).reshape(-1, len(VIEWS[kind]), 2, FACES))


def ijb_a_quality(data_dir: str | Path, quality: str | Path, bounds: tuple[float, float]) -> dict[str, Gallery]:
    """IJB-A's faces in three galleries, "low", "middle" and "high", with their boxes (align "box").

    The faces are those of all metadata files of the splits (TEMPLATE_ID, SUBJECT_ID, FILE, ..., FACE_X, FACE_Y,
    FACE_WIDTH, FACE_HEIGHT), each subject's once in a picture. quality: a text file, a line being a picture (as under
    FILE) and a number, and the subject between them where a picture has several faces. bounds: a face is low below the
    first, high from the second on. The paper takes the numbers from Guo and Zhang 2018 and gives no bounds; right ones
    make 6,196, 13,491 and 1,543 pictures of 489, 483 and 500 subjects. It compares low with high and middle with high.

    A face without a number is in no gallery; how many there are is warned of. Raises ValueError naming file and line.
    """
    low, high = bounds
    if not low < high:
        raise ValueError(f"bounds are {bounds}: want two numbers, the lower first")
    found = fetch.obtain("ijb_a", data_dir)
    boxes: dict[tuple[str, str], tuple[float, ...]] = {}
    for table in found.files:
        for where, row in rows(table, ("SUBJECT_ID", "FILE", *BOX)):
            boxes.setdefault((row["FILE"], row["SUBJECT_ID"]), box(row, where))
    if not boxes:
        raise ValueError(f"{found.files[0]}: no faces listed")
    numbers = _qualities(Path(quality), boxes)
    if without := len(boxes) - len(numbers):
        warnings.warn(f"{quality}: no number for {without} of {len(boxes)} faces of IJB-A", stacklevel=2)
    base = _base(found.root, next(iter(boxes))[0])
    groups: dict[str, dict[str, list[File]]] = {group: {} for group in QUALITIES}
    placed: dict[tuple[str, File], tuple[float, ...]] = {}
    for (file, who), number in numbers.items():
        group = QUALITIES[int(number >= low) + int(number >= high)]
        groups[group].setdefault(who, []).append(base / file)
        placed[who, base / file] = boxes[file, who]
    galleries = {}
    for group, faces in groups.items():
        people_of = {who: tuple(files) for who, files in faces.items()}
        galleries[group] = _all_there(Gallery(f"ijb_a {group}", people_of, boxes=placed), Path(quality))
    return galleries


def _qualities(path: Path, boxes: Mapping[tuple[str, str], object]) -> dict[tuple[str, str], float]:
    subjects: dict[str, list[str]] = {}
    for file, who in boxes:
        subjects.setdefault(file, []).append(who)
    numbers: dict[tuple[str, str], float] = {}
    for where, line in lines(path):
        words = re.split(r"[\s,:]+", line)
        try:
            number = float(words[-1])
        except ValueError:
            number = np.nan
        if len(words) not in (2, 3) or not np.isfinite(number):
            raise ValueError(f"{where}: {line!r}; want a picture and a number, or a picture, a subject and a number")
        here = subjects.get(words[0], [])
        if len(words) == 2 and len(here) > 1:
            raise ValueError(f"{where}: {words[0]} shows {', '.join(here)}: say between picture and number whose face")
        who = words[1] if len(words) == 3 else "".join(here)
        if who not in here:
            raise ValueError(f"{where}: no face {words[0]} {who} in the metadata")
        numbers[words[0], who] = number
    return numbers


def dfw(data_dir: str | Path, part: str = "Testing") -> tuple[Gallery, np.ndarray]:
    """The pictures of DFW 2018's ``part`` ("Testing" or "Training") with their boxes, and what each pair of them is.

    Read are Testing_data_face_name.txt (a picture a line, Testing_data/Name/Name_h_001.jpg), Testing_data_
    face_coordinate.txt (picture, left, top, right, bottom) and the mask matrix Testing_data_mask_matrix.txt (also
    ..._combine_mask_matrix.txt): a line of digits per picture, 1 positive, 2 negative, another "do not care". Returned
    is int8 [N, N] in the gallery's order, symmetric, by the half above the diagonal as the organisers' own script reads
    it. An identity is a folder, which holds its impersonators too: who is the same the matrix alone says.

    Raises ValueError naming file and line where a picture is not there or has no box or the matrix is of another size.
    """
    if part not in ("Testing", "Training"):
        raise ValueError(f"part is {part!r}: want 'Testing' or 'Training'")
    root = fetch.obtain("dfw", data_dir).files[0].parent
    name_list = _one(root, f"{part}_data_face_name.txt")
    listed: dict[str, None] = {}
    for where, line in lines(name_list):
        name = _dfw_name(line)
        if name in listed or not (root / name).is_file():
            raise ValueError(f"{where}: {'picture twice' if name in listed else 'no picture'}: {line!r} in {root}")
        listed[name] = None
    corners = {}
    for where, line in lines(_one(root, f"{part}_data_face_coordinate.txt")):
        name, *words = line.rsplit(maxsplit=4)
        try:
            corners[_dfw_name(name)] = tuple(map(float, words))
        except ValueError:
            words = []
        if len(words) != 4:
            raise ValueError(f"{where}: {line!r}; want a picture, left, top, right and bottom")
    if missing := [name for name in listed if name not in corners]:
        raise ValueError(f"{name_list}: {missing[0]} has no coordinates ({len(missing)} of {len(listed)} lack them)")
    faces: dict[str, list[File]] = {}
    for name in listed:
        faces.setdefault(Path(name).parent.name, []).append(root / name)
    placed = {(Path(name).parent.name, root / name): corners[name] for name in listed}
    gallery = Gallery(f"dfw {part}", {who: tuple(files) for who, files in faces.items()}, boxes=placed)
    kinds = _mask(_one(root, f"{part}_data_mask_matrix.txt", f"{part}_data_combine_mask_matrix.txt"), len(listed))
    line_of = {root / name: number for number, name in enumerate(listed)}
    order = np.array([line_of[file] for _, file in gallery.rows()])
    return gallery, kinds if (np.diff(order) == 1).all() else kinds[np.ix_(order, order)]


def _dfw_name(line: str) -> str:
    return re.sub(r"/\s+", "/", line.replace("\\", "/"))  # the official list has blanks after some slashes


def _mask(path: Path, size: int) -> np.ndarray:
    kinds = np.zeros((size, size), dtype=np.int8)
    number = -1
    for number, (where, line) in enumerate(lines(path)):
        digits = "".join(line.replace(",", " ").split())
        if len(digits) != size or not (digits.isascii() and digits.isdecimal()) or number >= size:
            raise ValueError(f"{where}: {len(digits)} digits; want a matrix of {size} x {size}, one for each picture")
        kinds[number] = np.frombuffer(digits.encode(), dtype=np.uint8) - ord("0")
    if number + 1 != size:
        raise ValueError(f"{path}: {number + 1} lines of digits; want {size}, one for each picture")
    kinds = np.triu(kinds, 1)
    return kinds + kinds.T


def umdfaces_track(data_dir: str | Path, track: str) -> tuple[Gallery, Pairs]:
    """The pictures that a track of UMDFaces-test names, with their boxes, and its pairs, in ten stretches as folds.

    track: "easy", "moderate" or "difficult", for small, medium and large differences of pose, of 5,000 positive and
    5,000 negative pairs each (section 3.2). The list is the one .csv or .txt file beside the batches whose name has
    that word; a line is two pictures as under FILE, Name/Name_0001.jpg, and 1 (same) or 0 between commas or blanks.
    Raises ValueError naming list and line on another line, a picture that no batch lists and a label that the folders'
    names contradict.
    """
    if track not in TRACKS:
        raise ValueError(f"track is {track!r}: want one of {', '.join(TRACKS)}")
    gallery = people("umdfaces", data_dir)
    root = fetch.obtain("umdfaces", data_dir).root
    path = _one(root, f"*{track}*.csv", f"*{track}*.txt")
    there = {(who, stem(file)) for who, file in gallery.rows()}
    entries: list[tuple[Entry, Entry]] = []
    for where, line in lines(path):
        words = re.split(r"[\s,]+", line)
        if len(words) != 3 or words[2] not in ("0", "1"):
            raise ValueError(f"{where}: {line!r}; want two pictures and 1 (same) or 0")
        first, second = ((Path(word).parent.name, stem(Path(word))) for word in words[:2])
        for picture in (first, second):
            if picture not in there:
                raise ValueError(f"{where}: no picture {'/'.join(picture)} in the batches' lists")
        if first == second or (words[2] == "1") != (first[0] == second[0]):
            raise ValueError(f"{where}: {line!r} is labelled {words[2]}, of {first[0]} and {second[0]}")
        entries.append((first, second))
    if not entries:
        raise ValueError(f"{path}: no pairs")
    kept, pairs = paired(gallery, entries, str(path))
    return _all_there(kept, path), pairs


def _all_there(gallery: Gallery, path: Path) -> Gallery:
    if missing := [file for _, file in gallery.rows() if not file.is_file()]:
        raise ValueError(f"{path}: no picture {missing[0]} ({len(missing)} of {len(gallery)} are missing)")
    return gallery


def _one(root: Path, *patterns: str) -> Path:
    found = [file for pattern in patterns for file in sorted(root.glob(pattern)) if file.is_file()]
    if len(found) != 1:
        raise DataNotFound(f"{root}: {len(found)} files {' or '.join(patterns)}; want one")
    return found[0]


def _base(root: Path, file: str) -> Path:
    places = [root / "images", root, root.parent / "images", root.parent]
    if (base := next((place for place in places if (place / file).parent.is_dir()), None)) is None:
        raise DataNotFound(f"{root}: no folder of the picture {file} in {', '.join(map(str, places))}")
    return base
