"""The reviews' official layouts, each read as a stream of (text, label, writer or source; "" where unknown).

Labels: 0 negative, 1 positive; what is neither is left out, as the data sets' own papers do.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from fl_utils.data.cards import Location

Review = tuple[str | Path, int, str]


def snippets(path: Path) -> Iterator[Review]:
    """Hutto and Gilbert 2014: lines of id, mean rating (-4 to 4), text, between tabs, in UTF-8. Source: the part of the
    id before ``_`` (the review that an Amazon sentence is from); a rating of exactly 0 is left out."""
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip() and number == len(lines):
            break
        fields = line.split("\t")
        try:
            identifier, rating, text = fields[0], float(fields[1]), fields[2]
        except (IndexError, ValueError):
            raise ValueError(
                f"{path}: line {number}: want id, rating and text between tabs, got {line[:60]!r}"
            ) from None
        if rating:
            yield text.strip(), int(rating > 0), identifier.partition("_")[0]


def imdb_folder(found: Location, split: str) -> Iterator[Review]:
    """Maas et al. 2011, unpacked: ``<split>/{neg,pos}/<id>_<rating>.txt``, in the order of the ids, negative first.

    Gives paths, for :func:`read`: a few reviews of the 50,000 need not cost reading them all.
    """
    files = [path for path in found.files if path.parent.parent.name == split]
    for path in sorted(files, key=lambda path: (path.parent.name, _number(path.name))):
        yield path, int(path.parent.name == "pos"), ""


def read(text: str | Path) -> str:
    """A text, from its file where it is one."""
    try:
        return text.read_text(encoding="utf-8") if isinstance(text, Path) else text
    except UnicodeDecodeError as error:
        raise ValueError(f"{text}: not UTF-8: {error}") from error


def imdb_archive(path: Path) -> dict[str, list[Review]]:
    """Maas et al. 2011, the archive aclImdb_v1.tar.gz, read once: train and test, ordered as the unpacked folder."""
    entries: dict[str, list[tuple[int, int, str]]] = {"train": [], "test": []}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                match = re.search(r"(?:^|/)(train|test)/(neg|pos)/(\d+_\d+\.txt)$", member.name)
                stream = tar.extractfile(member) if match and member.isreg() else None
                if match and stream:
                    entry = (int(match[2] == "pos"), _number(match[3]), stream.read().decode("utf-8"))
                    entries[match[1]].append(entry)
    except (EOFError, OSError, UnicodeDecodeError, tarfile.TarError, zlib.error) as error:
        raise ValueError(f"{path}: truncated or damaged: {error}") from error
    return {split: [(text, label, "") for label, _, text in sorted(rows)] for split, rows in entries.items()}


def table(path: Path) -> Iterator[Review]:
    """A CSV (or csv.gz) with the columns ``label`` (0 or 1) and ``text`` among others, in UTF-8."""
    csv.field_size_limit(1 << 24)
    with _text(path, "utf-8") as handle:
        rows = csv.DictReader(handle, strict=True)
        try:
            if not {"label", "text"} <= set(rows.fieldnames or ()):
                raise ValueError(f"{path}: columns {rows.fieldnames}, want label and text among them")
            for row in rows:
                if row["label"] not in ("0", "1") or row["text"] is None:
                    raise ValueError(f"{path}: line {rows.line_num}: label {row['label']!r}, want 0 or 1, and a text")
                yield row["text"], int(row["label"]), ""
        except (EOFError, OSError, UnicodeDecodeError, csv.Error, zlib.error) as error:
            raise ValueError(f"{path}: truncated or damaged: {error}") from error


def amazon_movies(path: Path) -> Iterator[Review]:
    """McAuley and Leskovec 2013, movies.txt(.gz): blocks of ``key: value`` lines in latin-1, empty lines between them.

    Positive from 4 stars, negative up to 2; 3 stars and empty texts are left out. Text: review/text; writer:
    review/userId.
    """
    with _text(path, "latin-1") as handle:
        score = text = user = ""
        number = 0
        try:
            for number, line in enumerate(handle, 1):
                if line.startswith("review/score:"):
                    score = line[13:].strip()
                elif line.startswith("review/text:"):
                    text = line[12:].strip()
                elif line.startswith("review/userId:"):
                    user = line[14:].strip()
                elif score and not line.strip():
                    yield from _starred(score, text, user, path, number)
                    score = text = user = ""
            if score:
                yield from _starred(score, text, user, path, number)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path}: truncated or damaged after line {number}: {error}") from error


def sorted_domain(path: Path, label: int) -> Iterator[Review]:
    """Blitzer et al. 2007, sorted_data_acl/<domain>/{negative,positive}.review, latin-1 pseudo-XML; the reviewer."""
    blocks = path.read_text(encoding="latin-1").split("<review>")[1:]
    if not blocks:
        raise ValueError(f"{path}: no <review> in it")
    for number, block in enumerate(blocks, 1):
        text = re.search(r"<review_text>(.*?)</review_text>", block, re.DOTALL)
        if not text or "</review>" not in block:
            raise ValueError(f"{path}: review {number} of {len(blocks)} is truncated or has no review_text")
        writer = re.search(r"<reviewer>(.*?)</reviewer>", block, re.DOTALL)
        yield text[1].strip(), label, writer[1].strip() if writer else ""


def _starred(score: str, text: str, user: str, path: Path, number: int) -> Iterator[Review]:
    try:
        stars = float(score)
    except ValueError:
        raise ValueError(f"{path}: before line {number}: review/score {score!r}, want 1.0 to 5.0") from None
    if text and (stars >= 4 or stars <= 2):
        yield text, int(stars >= 4), user


def _text(path: Path, encoding: str) -> IO[str]:
    with path.open("rb") as handle:
        zipped = handle.read(2) == b"\x1f\x8b"
    stream = gzip.GzipFile(path) if zipped else path.open("rb")
    return io.TextIOWrapper(stream, encoding=encoding, newline="" if encoding == "utf-8" else "\n")


def _number(name: str) -> int:
    """The id in ``<id>_<rating>.txt``."""
    digits = name.partition("_")[0]
    if not digits.isdigit():
        raise ValueError(f"{name}: want <id>_<rating>.txt")
    return int(digits)
