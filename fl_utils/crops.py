"""A folder of pictures turned into a folder of faces: detection and crop in bulk (Wang and Guo 2019, section 4.1).

    crops = crop_folder("webface", "webface_crops", Detector())
    print(crops.found, "of", crops.files, crops.reasons)

What a folder of half a million files has in store, damaged ones, ones that are no pictures, pictures without a face, is
counted and listed, never fatal; a call that was stopped goes on where it was.
"""

from __future__ import annotations

import csv
import io
import json
import re
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fl_utils import paths
from fl_utils.detection import CHOICES, Detector, chosen, crop

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "GIF", "WEBP", "TIFF")  # PPM is Pillow's name for .pgm too
SUFFIXES = {".png": ("PNG", {}), ".jpg": ("JPEG", {"quality": 95})}
FAILURES, SETTINGS, LOCK = "failures.csv", "crops.json", ".lock"
LEFT_BEHIND = re.compile(r"\..+\.[0-9a-f]{32}")  # what a killed write_whole leaves
KEEP_EVERY = 1000  # files between two writes of the list of failures


@dataclass(frozen=True)
class Crops:
    """A folder worked through. files: all that were asked for. found: those of which there is a crop. made: those of
    which this call made it. failures: the others, file -> reason."""

    files: int
    found: int
    made: int
    failures: dict[str, str]

    @property
    def reasons(self) -> Counter[str]:
        """How many failed for which reason."""
        return Counter(self.failures.values())


def crop_folder(
    source: str | Path,
    target: str | Path,
    detector: Detector,
    size: int = 0,
    enlarge: float = 0.15,
    choose: str = "likely",
    suffix: str = ".png",
    retry: bool = False,
    progress: bool = True,
) -> Crops:
    """Cut one face out of every file below ``source`` into the same place below ``target`` (section 4.1: a picture in
    which no face is found is left out).

    size, enlarge, choose: as :func:`crop` and :func:`chosen`. suffix: of the crops, ".png" or ".jpg" (quality 95); a
    crop is called as its picture but for that (``a.jpg`` -> ``a.png``; ``a.jpg.png`` where there is an ``a.bmp`` too).
    Hidden files are passed over. A picture turned by its EXIF data is turned back first.

    A file without a crop is listed in ``target/failures.csv`` (file, reason): "no face", "not an image", "damaged",
    "16 bit" (more than 8 a channel), "too small" (shorter side under ``detector.min_face``), "too large" (Pillow
    refuses it as a decompression bomb), "unreadable". None of these ends the call. Crops and list are written whole;
    called again, it goes on where it was stopped, and tries failures again with ``retry``.

    Raises ValueError, before any work, on settings out of range or other than those with which ``target`` was begun, a
    ``source`` that is no folder or has no files, a ``target`` in it, around it or full of other things, or at work.
    """
    from filelock import FileLock, Timeout
    from tqdm import tqdm

    source, target = Path(source), Path(target)
    if choose not in CHOICES or suffix not in SUFFIXES or size < 0 or not (np.isfinite(enlarge) and enlarge >= 0):
        raise ValueError(
            f"choose is {choose!r}, suffix {suffix!r}, size {size}, enlarge {enlarge}: want {' or '.join(CHOICES)}; "
            f"{' or '.join(SUFFIXES)}; 0 or more; 0 or more"
        )
    names = _files(source, target, suffix)
    settings = {"size": size, "enlarge": enlarge, "choose": choose, "suffix": suffix, "min_face": detector.min_face}
    settings |= {"factor": detector.factor, "thresholds": list(detector.thresholds)}
    _begin(target, settings)
    try:
        with FileLock(target / LOCK, timeout=0):
            _clear(target)
            failures = {} if retry else _failures(target, names)
            left = [name for name in names if name not in failures and not (target / names[name][1]).is_file()]
            made = 0
            try:
                for number, name in enumerate(tqdm(left, desc="faces", unit="file", disable=not progress), 1):
                    path, place = names[name]
                    result = _face(path, detector, size, enlarge, choose)
                    if isinstance(result, str):
                        failures[name] = result
                    else:
                        paths.write_whole(target / place, _encoded(result, suffix))
                        made += 1
                    if number % KEEP_EVERY == 0:
                        _write_failures(target, failures)
            finally:
                _write_failures(target, failures)
    except Timeout:
        raise ValueError(f"{target}: another process is writing there; wait for it, or take another folder") from None
    return Crops(len(names), len(names) - len(failures), made, failures)


def _files(source: Path, target: Path, suffix: str) -> dict[str, tuple[Path, Path]]:
    """Every file below ``source`` by its path in it: where it is, and where in ``target`` its crop belongs."""
    if not source.is_dir():
        raise ValueError(f"source {source} is no folder: want one that holds pictures, at any depth")
    here, there = source.resolve(), target.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise ValueError(f"target {target} and source {source} are or hold one another: want two separate folders")
    found = [path for path in sorted(source.rglob("*")) if path.is_file() or (path.is_symlink() and not path.exists())]
    inside = {path: path.relative_to(source) for path in found}
    inside = {path: name for path, name in inside.items() if not any(part.startswith(".") for part in name.parts)}
    if not inside:
        raise ValueError(f"source {source} holds no files: want pictures, at any depth")
    alike = Counter(name.with_suffix(suffix) for name in inside.values())
    places = {}
    for path, name in inside.items():
        place = name.with_suffix(suffix)
        places[name.as_posix()] = path, place if alike[place] == 1 else name.with_name(name.name + suffix)
    if twice := [str(place) for place, count in Counter(place for _, place in places.values()).items() if count > 1]:
        raise ValueError(f"source {source}: the crops of several files would be called {twice[0]}; rename one of them")
    return places


def _begin(target: Path, settings: dict[str, Any]) -> None:
    """Make ``target``, or see that it was begun with the same settings."""
    file = target / SETTINGS
    if file.is_file():
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file}: not the settings of a folder of crops: {error}") from None
        if before != settings:
            other = [key for key in settings if not isinstance(before, dict) or before.get(key) != settings[key]]
            was = {key: before.get(key) for key in other} if isinstance(before, dict) else before
            now = {key: settings[key] for key in other}
            raise ValueError(f"{target} was begun with {was}, this call has {now}: want the same, or another folder")
        return
    if target.exists() and (not target.is_dir() or any(path.name != LOCK for path in target.iterdir())):
        raise ValueError(f"target {target} is no folder of crops: want a new folder, an empty one, or one begun before")
    target.mkdir(parents=True, exist_ok=True)
    paths.write_whole(file, json.dumps(settings, indent=1))


def _clear(target: Path) -> None:
    """Remove what a killed call left half-written."""
    for path in target.rglob(".*"):
        if LEFT_BEHIND.fullmatch(path.name) and path.is_file():
            path.unlink()


def _failures(target: Path, names: dict[str, Any]) -> dict[str, str]:
    """The list of failures so far, of files that are still there."""
    file = target / FAILURES
    if not file.exists():
        return {}
    rows = csv.reader(io.StringIO(file.read_bytes().decode("utf-8", "surrogateescape"), newline=""))
    if next(rows, None) != ["file", "reason"]:
        raise ValueError(f"{file}: not a list of failures: want the columns file, reason; or remove it")
    return {row[0]: row[1] for row in rows if len(row) == 2 and row[0] in names}


def _write_failures(target: Path, failures: dict[str, str]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "reason"])
    writer.writerows(sorted(failures.items()))
    paths.write_whole(target / FAILURES, text.getvalue().encode("utf-8", "surrogateescape"))


def _face(path: Path, detector: Detector, size: int, enlarge: float, choose: str) -> np.ndarray | str:
    """The crop, uint8 [H, W, 3], or the reason why there is none."""
    image = _image(path)
    if isinstance(image, str):
        return image
    if min(image.shape[:2]) < detector.min_face:
        return "too small"
    faces = detector.detect(image)
    if not len(faces.boxes):
        return "no face"
    return crop(image, faces.boxes[chosen(faces, image.shape, choose)], size, enlarge)


def _image(path: Path) -> np.ndarray | str:
    """The picture in a file as uint8 [H, W, 3], turned as its EXIF data says, or the reason why there is none."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        data = path.read_bytes()
    except OSError:
        return "unreadable"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                if _is_deep(picture):
                    return "16 bit"
                return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    except UnidentifiedImageError:
        return "not an image"
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return "too large"
    except Exception:  # Pillow raises nearly anything on damaged input
        return "damaged"


def _is_deep(picture: Any) -> bool:
    """Whether a channel has more than 8 bits, also where Pillow would quietly take the upper 8."""
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16") or ";16" in str(picture.tile):
        return True
    return picture.format == "PPM" and any(
        isinstance(value, int) and value > 255 for tile in picture.tile for value in _args(tile)
    )


def _args(tile: Any) -> tuple[Any, ...]:
    """What Pillow tells the decoder of one tile; for a PPM the mode and the highest value."""
    return tile[3] if isinstance(tile[3], tuple) else (tile[3],)


def _encoded(face: np.ndarray, suffix: str) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    kind, options = SUFFIXES[suffix]
    Image.fromarray(face).save(buffer, kind, **options)
    return buffer.getvalue()
