"""Made-up files in official layouts and of the official size, for probes where the real ones are not on this machine.

What is in them is noise; only their numbers and shapes are those of the real thing, as the data's card states them.
Pictures and texts are a few, each linked or repeated many times, so that even large sets are written in seconds.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

KINDS = 16  # of pictures
BODIES = 2000  # of texts
WORDS = 230  # of one, about as many as a film's review has
VOCABULARY = 100_000
LABELLED = 100_000  # of Amazon's 7,911,684 reviews: a stream, of which no more than a limit is kept
WRITERS, SUBJECTS = (240, 60), 122  # of CASIA-HWDB1.1 (training, test) and HIT-OR3C; each writes every character once
SIDE = 128  # pixels of one of HIT-OR3C's characters
SMALLER = 9_999  # images of one of CIFAR-10's batches; one of 10,000 must be the official one


def make(names: Iterable[str], folder: Path) -> None:
    """Write stand-ins for the data sets ``names`` (of :data:`MAKERS`) into folders of their names below ``folder``."""
    from fl_utils.data import cards

    for name in names:
        home = folder / name
        home.mkdir(parents=True)
        MAKERS[name](home, cards.load(name).examples)


def _idx(folder: Path, examples: Mapping[str, Any]) -> None:
    random = np.random.default_rng(0)
    for stem, count in (("train", examples["train"]), ("t10k", examples["test"])):
        pictures = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        for kind, array in (("images-idx3", pictures), ("labels-idx1", (np.arange(count) % 10).astype(np.uint8))):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (folder / f"{stem}-{kind}-ubyte").write_bytes(head + array.tobytes())


def _cifar10(folder: Path, examples: Mapping[str, Any]) -> None:
    random = np.random.default_rng(0)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        pictures = random.integers(0, 256, (SMALLER, 3072), dtype=np.uint8)
        batch = {b"data": pictures, b"labels": (np.arange(SMALLER) % 10).tolist()}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))


def _catsdogs(folder: Path, examples: Mapping[str, Any]) -> None:
    (folder / "train").mkdir()
    kinds = _pictures(folder, 499, 375)
    for kind in ("cat", "dog"):
        for number in range(examples[kind]):
            _link(kinds[number % KINDS], folder / "train" / f"{kind}.{number}.jpg")


def _imagenette(folder: Path, examples: Mapping[str, Any]) -> None:
    from fl_utils.data.imagenette import SYNSETS

    kinds = _pictures(folder, 500, 375)
    for split, count in examples.items():
        for number in range(count):
            synset = [*SYNSETS][number % len(SYNSETS)]
            place = folder / "imagenette2" / split / synset
            place.mkdir(parents=True, exist_ok=True)
            _link(kinds[number % KINDS], place / f"{synset}_{number}.JPEG")


def _pictures(folder: Path, width: int, height: int) -> list[Path]:
    """JPEG files with about as many bytes as photographs of this size have."""
    from PIL import Image

    random = np.random.default_rng(0)
    files = []
    for number in range(KINDS):
        coarse = Image.fromarray(random.integers(0, 256, (height // 6, width // 6, 3), dtype=np.uint8))
        stream = io.BytesIO()
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=80)
        files.append(folder / f".picture-{number}")
        files[-1].write_bytes(stream.getvalue())
    return files


def _link(picture: Path, place: Path) -> None:
    try:
        os.link(picture, place)
    except OSError:  # a file system without hard links, or with too many to this one
        place.write_bytes(picture.read_bytes())


def _casia(folder: Path, examples: Mapping[str, Any]) -> None:
    from fl_utils.data.hwdb import characters

    random, samples = np.random.default_rng(0), []
    for character in characters():
        height, width = random.integers(40, 80, 2).tolist()
        head = struct.pack("<I2sHH", 10 + width * height, character.encode("gb2312"), width, height)
        samples.append(head + random.integers(0, 256, width * height, dtype=np.uint8).tobytes())
    (folder / ".writer").write_bytes(b"".join(samples))
    for number in range(1001, 1001 + sum(WRITERS)):
        part = folder / ("HWDB1.1trn_gnt" if number < 1001 + WRITERS[0] else "HWDB1.1tst_gnt")
        part.mkdir(exist_ok=True)
        _link(folder / ".writer", part / f"{number}-c.gnt")


def _or3c(folder: Path, examples: Mapping[str, Any]) -> None:
    from fl_utils.data.hwdb import characters

    codes = characters().encode("gb2312")
    pixels = np.random.default_rng(0).integers(0, 256, len(codes) // 2 * SIDE * SIDE, dtype=np.uint8)
    (folder / "labels").write_bytes(struct.pack("<HB", len(codes) // 2, 2) + codes)
    (folder / ".writer").write_bytes(struct.pack("<IBB", len(codes) // 2, SIDE, SIDE) + pixels.tobytes())
    for number in range(1, 1 + SUBJECTS):
        _link(folder / ".writer", folder / f"{number}_images")


def _bodies() -> list[str]:
    """Texts of words drawn as often as words are (Zipf)."""
    random = np.random.default_rng(0)
    ranks = np.minimum(random.zipf(1.2, (BODIES, WORDS)), VOCABULARY)
    return [" ".join(f"w{rank}" for rank in row) for row in ranks.tolist()]


def _imdb(folder: Path, examples: Mapping[str, Any]) -> None:
    bodies = _bodies()
    rows = (f"{number % 2},t{number} {bodies[number % BODIES]}\n" for number in range(sum(examples.values())))
    _lines(folder / "imdb.csv", ["label,text\n", *rows])


def _amazon(folder: Path, examples: Mapping[str, Any]) -> None:
    bodies = _bodies()
    blocks = (
        f"review/userId: u{number}\nreview/score: {1 + 4 * (number % 2)}.0\n"
        f"review/text: t{number} {bodies[number % BODIES]}\n\n"
        for number in range(LABELLED)
    )
    _lines(folder / "movies.txt", blocks)


def _movielens(folder: Path, examples: Mapping[str, Any]) -> None:
    random = np.random.default_rng(0)
    users, films, ratings = (examples[name] for name in ("users", "films", "ratings"))
    _lines(
        folder / "users.dat", (f"{user}::{'FM'[user % 2]}::25::{user % 21}::00000\n" for user in range(1, users + 1))
    )
    _lines(folder / "movies.dat", (f"{film}::Film {film} (1995)::Drama\n" for film in range(1, films + 1)))
    pairs = np.sort(random.choice(users * films, ratings, replace=False))
    stars = random.integers(1, 6, ratings)
    rows = zip((pairs // films + 1).tolist(), (pairs % films + 1).tolist(), stars.tolist(), strict=True)
    _lines(folder / "ratings.dat", (f"{user}::{film}::{star}::978300760\n" for user, film, star in rows))


def _traffic(name: str, graph: str, start: str) -> Callable[[Path, Mapping[str, Any]], None]:
    def make(folder: Path, examples: Mapping[str, Any]) -> None:
        import h5py

        random, sensors = np.random.default_rng(0), examples["sensors"]
        times = np.datetime64(start, "ns") + np.arange(examples["readings"]) * np.timedelta64(5, "m")
        ids = np.array([f"{400_000 + number}" for number in range(sensors)], dtype="S6")
        with h5py.File(folder / name, "w") as file:
            group = file.create_group("df")
            group["axis0"], group["block0_items"] = ids, ids
            group["axis1"] = times.astype(np.int64)
            group["axis1"].attrs["kind"] = b"datetime64"
            group["block0_values"] = random.uniform(20, 70, (len(times), sensors))
        near = [(a, b) for a in range(sensors) for b in range(sensors) if abs(a - b) <= 4]
        text = ids.astype(str)
        _lines(folder / graph, (f"{text[a]},{text[b]},{500.0 * abs(a - b)}\n" for a, b in near))

    return make


def _lines(path: Path, lines: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(lines)


MAKERS: dict[str, Callable[[Path, Mapping[str, Any]], None]] = {
    "mnist": _idx,
    "fashion_mnist": _idx,
    "cifar10": _cifar10,
    "casia_hwdb": _casia,
    "hit_or3c": _or3c,
    "catsdogs": _catsdogs,
    "imagenette": _imagenette,
    "imdb": _imdb,
    "amazon": _amazon,
    "movielens_1m": _movielens,
    "metr_la": _traffic("metr-la.h5", "distances_la_2012.csv", "2012-03-01"),
    "pems_bay": _traffic("pems-bay.h5", "distances_bay_2017.csv", "2017-01-01"),
}
