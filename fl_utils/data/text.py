"""Texts with labels, and the way from a text to the numbers that a network reads."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from fl_utils.data import fetch, reviews
from fl_utils.data.cards import Location
from fl_utils.data.examples import Examples
from fl_utils.data.reviews import Review

PADDING, UNKNOWN = 0, 1
MARKUP = re.compile(r"<[a-zA-Z/][^<>]{0,80}>")
WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
BLANKS = {code: " " for code in range(128) if not chr(code).isalnum() and chr(code) != "'"}
NAMES = ("snippets", "imdb", "amazon")


def load(
    name: str, data_dir: str | Path = "", limit: int | None = None, seed: int = 0, domain: str = "dvd"
) -> dict[str, Examples]:
    """The texts of data set ``name`` with labels 0 (negative) and 1 (positive).

    By party (snippets: movies, amazon), official split (imdb in its official layout: train, test) or all (imdb as one
    table, amazon). From ``data_dir``, a folder or file in one of the card's layouts, or fetched where it is "".
    ``limit``: at most so many under each key, drawn by ``seed``, every subset as likely, in the order of the whole; the
    stream of movies.txt.gz is then never held in memory. ``domain``: which folder of the Multi-Domain Sentiment layout
    (books, dvd, electronics, ...); amazon only.

    groups: the review that a sentence is from (snippets), the writer (amazon), None (imdb).
    Raises ValueError on an unknown name or domain, a limit below 1 or a damaged file, which it names, and DataNotFound
    where the data is not to be had.
    """
    if name not in NAMES:
        raise ValueError(f"{name!r} is not a data set of texts: there are {', '.join(NAMES)}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}, want at least 1 example")
    if name != "amazon" and domain != "dvd":
        raise ValueError(f"domain {domain!r}: only amazon has domains")
    found = fetch.obtain(name, data_dir)
    streams = {"snippets": _snippets, "imdb": _imdb}[name](found) if name != "amazon" else _amazon(found, domain)
    return {key: _examples(stream, limit, seed, found) for key, stream in streams.items()}


def tokens(text: str) -> list[str]:
    """The words of ``text``: lower case, letters and digits, apostrophes inside; markup (``<br />``) is removed."""
    if "<" in text:
        text = MARKUP.sub(" ", text)
    text = text.lower().replace("’", "'")
    if not text.isascii():
        return WORD.findall(text)
    text = text.translate(BLANKS)  # the same words as WORD finds, four times as fast
    if "'" in text:
        text = " " + text.replace("''", "  ") + " "
        text = text.replace("' ", " ").replace(" '", " ")
    return text.split()


def vocabulary(parties: Iterable[Sequence[str]], size: int) -> dict[str, int]:
    """The numbers of the most frequent words of all parties' texts together, from 2 on, most frequent first.

    0 stands for padding and 1 for every other word: with these two there are at most ``size`` numbers, 0 .. size - 1,
    the rows of an embedding. Equally frequent words come in alphabetical order, so that the order of parties and texts
    does not matter. Raises ValueError where ``size`` leaves no room for a word.
    """
    if size < 3:
        raise ValueError(f"vocabulary size is {size}, want at least 3: padding, unknown and one word")
    counts: Counter[str] = Counter()
    for texts in parties:
        if isinstance(texts, str):
            raise ValueError("vocabulary: want one list of texts per party, got a text")
        for text in texts:
            counts.update(tokens(text))
    ranked = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[: size - 2]
    return {word: number for number, (word, _) in enumerate(ranked, 2)}


def encode(texts: Sequence[str], vocabulary: Mapping[str, int], length: int) -> torch.Tensor:
    """int64 [N, length]: the numbers of each text's first ``length`` words, 1 for unknown ones, 0 behind the last."""
    if length < 1:
        raise ValueError(f"length is {length}, want at least 1 word")
    encoded = np.zeros((len(texts), length), dtype=np.int64)
    known = vocabulary.get
    for row, text in zip(encoded, texts, strict=True):
        numbers = [known(word, UNKNOWN) for word in tokens(text)[:length]]
        row[: len(numbers)] = numbers
    return torch.from_numpy(encoded)


def _snippets(found: Location) -> dict[str, Iterable[Review]]:
    movies, amazon = found.files
    return {"movies": reviews.snippets(movies), "amazon": reviews.snippets(amazon)}


def _imdb(found: Location) -> dict[str, Iterable[Review]]:
    if found.layout == "table":
        return {"all": reviews.table(found.files[0])}
    if found.layout == "archive":
        return dict(reviews.imdb_archive(found.files[0]))
    return {split: reviews.imdb_folder(found, split) for split in ("train", "test")}


def _amazon(found: Location, domain: str) -> dict[str, Iterable[Review]]:
    if found.layout == "movies":
        return {"all": reviews.amazon_movies(found.files[0])}
    domains = sorted({path.parent.name for path in found.files})
    files = {path.stem: path for path in found.files if path.parent.name == domain}
    if set(files) != {"negative", "positive"}:
        raise ValueError(f"domain {domain!r} is not complete in {found.root}: there are {', '.join(domains)}")

    def both() -> Iterator[Review]:
        for label, kind in enumerate(("negative", "positive")):
            yield from reviews.sorted_domain(files[kind], label)

    return {"all": both()}


def _examples(stream: Iterable[Review], limit: int | None, seed: int, found: Location) -> Examples:
    kept = list(stream) if limit is None else _reservoir(stream, limit, seed)
    if not kept:
        raise ValueError(f"{found.files[0]}: no labelled text in it")
    numbers: dict[str, int] = {}
    groups = None
    if any(source for *_, source in kept):
        groups = torch.tensor([numbers.setdefault(source, len(numbers)) for *_, source in kept], dtype=torch.int64)
    y = torch.tensor([label for _, label, _ in kept], dtype=torch.int64)
    return Examples([reviews.read(text) for text, *_ in kept], y, groups)


def _reservoir(stream: Iterable[Review], limit: int, seed: int) -> list[Review]:
    """``limit`` of the stream, every subset as likely, in the stream's order (Vitter 1985, algorithm R)."""
    random = np.random.default_rng(seed)
    kept: list[tuple[int, Review]] = []
    for number, review in enumerate(stream):
        if number < limit:
            kept.append((number, review))
        else:
            place = int(random.integers(number + 1))
            if place < limit:
                kept[place] = (number, review)
    return [review for _, review in sorted(kept, key=lambda entry: entry[0])]
