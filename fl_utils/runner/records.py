"""What the last cell of a notebook reported: the record's JSON checked and turned into rows.

The record travels in the executed notebook as an output of type `RECORD_MIME` (`fl_utils.experiment` writes it).
Whatever is wrong with one becomes a line that says what is wrong and what would be right; what can be read is kept.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_utils.experiment import MIME as RECORD_MIME

__all__ = ["RECORD_MIME", "RECORD_VERSION", "Claim", "Record", "Value", "parse_record"]

RECORD_VERSION = 1
VALUE_KEYS = frozenset(("experiment", "metric", "value", "unit", "published", "gap", "where", "spread", "seeds"))
CLAIM_KEYS = frozenset(("id", "statement", "holds", "evidence"))
RUN_KEYS = frozenset(("version", "paper", "experiments", "scale", "overrides", "seed", "values", "claims"))
COST_KEYS = frozenset(("bytes_up", "bytes_down", "seconds", "peak_mb", "commit", "versions", "hardware"))


@dataclass(frozen=True)
class Value:
    """One recorded figure. ``value`` is a number, or text where there is no number (``OOM``), or None."""

    experiment: str
    metric: str
    value: float | int | str | None
    unit: str
    published: str | None
    gap: float | int | None
    where: str
    spread: float | int | None
    seeds: int | None


@dataclass(frozen=True)
class Claim:
    """One finding and its verdict; ``holds`` is None where the run could not decide it."""

    id: str
    statement: str
    holds: bool | None
    evidence: str

    @property
    def experiment(self) -> str:
        return self.id.rpartition(".")[0] or self.id

    @property
    def verdict(self) -> str:
        return {True: "holds", False: "does not hold", None: "not decided"}[self.holds]


@dataclass(frozen=True)
class Record:
    """What a notebook's last cell reported. ``seconds`` in s, ``peak_mb`` in MB, ``bytes_*`` in bytes."""

    paper: str
    experiments: tuple[str, ...]
    scale: str
    seed: int | None
    values: tuple[Value, ...]
    claims: tuple[Claim, ...]
    bytes_up: int | None
    bytes_down: int | None
    seconds: float | None
    peak_mb: float | None
    commit: str
    versions: str
    hardware: str


def text(value: object) -> str:
    """``value`` as text that any UTF-8 file can hold: lists joined, terminal colours and control characters gone."""
    if value is None:
        return ""
    joined = "".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    joined = re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]", "", joined).encode("utf-8", "replace").decode("utf-8")
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", joined)


def one_line(value: object) -> str:
    return " ".join(text(value).split())


def number(value: object) -> float | int | None:
    """``value`` where it is a number (a boolean is none), else None."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def finite(value: float | int) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def load_json(path: Path) -> tuple[Any, str]:
    """The file's content and ``""``, or None and one line that says why it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8")), ""
    except json.JSONDecodeError as error:
        return None, f"not whole JSON (line {error.lineno}: {error.msg}); truncated? run it again"
    except UnicodeDecodeError:
        return None, "not UTF-8 text; run it again"
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or one_line(error) or type(error).__name__
        return None, f"cannot be read ({reason})"


def mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def strings(value: object) -> tuple[str, ...]:
    return tuple(one_line(item) for item in value) if isinstance(value, list) else ()


def _items(record: dict, key: str, wanted: frozenset[str], problems: list[str]) -> Iterator[dict]:
    """The dictionaries under ``record[key]``; what is not one, and keys missing or unknown, go to ``problems``."""
    found = record.get(key, [])
    if not isinstance(found, list):
        problems.append(f"record: {key} is a {type(found).__name__}, want a list")
        return
    for position, item in enumerate(found, 1):
        if not isinstance(item, dict):
            problems.append(f"record: {key} entry {position} is a {type(item).__name__}, want an object; left out")
            continue
        name = one_line(item.get("metric", item.get("id", position)))
        _compare_keys(f"record: {key} entry {name!r}", item, wanted, problems)
        yield item


def _compare_keys(what: str, found: dict, wanted: frozenset[str], problems: list[str]) -> None:
    missing, unknown = sorted(wanted - set(found)), sorted(map(one_line, set(found) - wanted))
    if missing:
        problems.append(f"{what} lacks {', '.join(missing)}; left empty")
    if unknown:
        problems.append(f"{what} has unknown keys {', '.join(unknown)}; ignored")


def _value(item: dict, problems: list[str]) -> Value:
    metric, value = one_line(item.get("metric")), item.get("value")
    if isinstance(value, bool) or not isinstance(value, int | float | str | None):
        value = one_line(value)
    if value is None or (number(value) is not None and not finite(value)):
        problems.append(f"record: value of {metric!r} is {json.dumps(value)}, want a finite number or a text")
    published = item.get("published")
    return Value(
        experiment=one_line(item.get("experiment")),
        metric=metric,
        value=one_line(value) if isinstance(value, str) else value,
        unit=one_line(item.get("unit")),
        published=None if published is None else one_line(published),
        gap=number(item.get("gap")),
        where=one_line(item.get("where")),
        spread=number(item.get("spread")),
        seeds=number(item.get("seeds")),
    )


def _claim(item: dict, problems: list[str]) -> Claim:
    holds = item.get("holds")
    if holds is not None and not isinstance(holds, bool):
        wrong = f"record: claim {one_line(item.get('id'))!r} holds={json.dumps(holds)}, want true, false or null"
        problems.append(wrong)
        holds = None
    return Claim(one_line(item.get("id")), one_line(item.get("statement")), holds, one_line(item.get("evidence")))


def parse_record(raw: object) -> tuple[Record | None, list[str]]:
    """The record as `Record` and the lines on what is wrong with it; None where nothing of it can be trusted."""
    if not isinstance(raw, dict):
        return None, [f"record is a {type(raw).__name__}, want an object"]
    if raw.get("version") != RECORD_VERSION:
        return None, [
            f"record of version {json.dumps(raw.get('version'))}, this report reads version {RECORD_VERSION}; "
            "run the notebook with this checkout"
        ]
    problems: list[str] = []
    _compare_keys("record", raw, RUN_KEYS | COST_KEYS, problems)
    overrides = one_line(raw.get("overrides"))
    record = Record(
        paper=one_line(raw.get("paper")),
        experiments=strings(raw.get("experiments")),
        scale=one_line(raw.get("scale")) + (f" ({overrides})" if overrides else ""),
        seed=number(raw.get("seed")),
        values=tuple(_value(item, problems) for item in _items(raw, "values", VALUE_KEYS, problems)),
        claims=tuple(_claim(item, problems) for item in _items(raw, "claims", CLAIM_KEYS, problems)),
        bytes_up=number(raw.get("bytes_up")),
        bytes_down=number(raw.get("bytes_down")),
        seconds=number(raw.get("seconds")),
        peak_mb=number(raw.get("peak_mb")),
        commit=one_line(raw.get("commit")),
        versions="; ".join(f"{one_line(k)} {one_line(v)}" for k, v in mapping(raw.get("versions")).items()),
        hardware=one_line(raw.get("hardware")),
    )
    return record, problems
