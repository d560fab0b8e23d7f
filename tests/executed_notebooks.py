"""Small executed notebooks, records and jobs, as a batch leaves them: and the page that is made of them."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path

from fl_utils.runner.records import RECORD_MIME


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


PNG = base64.b64encode(
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    + chunk(b"IDAT", zlib.compress(b"\0\0"))
    + chunk(b"IEND", b"")
).decode()


def value(metric: str = "accuracy/fedavg", number: object = 78.125, **changed: object) -> dict:
    row = {"experiment": "O2", "metric": metric, "value": number, "unit": "%", "published": "86.0", "gap": -7.875}
    return row | {"where": "Table 3b", "spread": 0.4, "seeds": 3} | changed


def claim(id: str = "O2.1", holds: object = True, **changed: object) -> dict:
    return {"id": id, "statement": "FedAvg wins.", "holds": holds, "evidence": "78.1 > 70.2"} | changed


def record(**changed: object) -> dict:
    return {
        **{"version": 1, "paper": "oarf", "experiments": ["O2"], "scale": "embedded", "overrides": "", "seed": 0},
        **{"values": [value()], "claims": [claim()], "bytes_up": 123, "bytes_down": 456, "seconds": 41.2},
        **{"peak_mb": 512.0, "commit": "abc1234", "versions": {"python": "3.11.7", "torch": "2.8.0"}},
        "hardware": "2 cores x86_64",
    } | changed


def markdown(source: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def code(source: str, outputs: list | None = None, tags: tuple[str, ...] = (), count: int | None = 1) -> dict:
    cell = {"cell_type": "code", "source": source, "metadata": {"tags": list(tags)}, "outputs": outputs or []}
    return cell | {"execution_count": count}


def shown(data: dict, **metadata: object) -> dict:
    return {"output_type": "display_data", "data": data, "metadata": metadata}


def notebook(*records: object, title: str = "Sentiment", cells: tuple[dict, ...] = (), **own: object) -> dict:
    about = {"paper": "oarf", "experiments": ["O2"], "default": {"minutes": 0.8, "memory_mb": 700}, "paper_scale": None}
    outputs = [shown({RECORD_MIME: item, "text/plain": "recorded"}) for item in records]
    parameters = code('dataset: str = "imdb+amazon"  # cards', tags=("parameters",))
    return {
        **{"nbformat": 4, "nbformat_minor": 5, "metadata": {"fl_notebooks": about | own}},
        "cells": [markdown(f"# {title}\n\nIntroduction."), parameters, *cells, code("experiment.record()", outputs)],
    }


def tutorial(title: str = "First steps") -> dict:
    return notebook(title=title, paper="", experiments=[])


def job(name: str, status: str = "ok", **changed: object) -> dict:
    about = {"notebook": name, "status": status, "seconds": 50.0, "peak_mb": 600.0, "attempts": 1, "error": ""}
    return about | {"traceback": "", "parameters": {}, "source_sha256": "0" * 64} | changed


def fill(folder: Path, files: dict[str, object]) -> Path:
    """Write ``files`` below ``folder``: text as it is, anything else as JSON."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


GOOD = "oarf/02_table3b_sentiment.ipynb"
OTHER = "oarf/03_figure2_interval.ipynb"
FAILED = "mobile/01_figure4-1_rounds.ipynb"
NEVER = "faces/01_table2_parameters.ipynb"
TRACEBACK = "Traceback (most recent call last):\nValueError: a < b & c"


class Page(HTMLParser):
    """The tags of a page with their attributes; fails on a tag that is closed in the wrong place."""

    VOID = frozenset(("meta", "img", "br", "link", "input", "hr"))

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data if self.open[-1:] != ["style"] else ""

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]
