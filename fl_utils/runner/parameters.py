"""Values for notebooks' parameters: converted to the declared type, checked, and put in order of precedence.

defaults of the notebook < its paper-scale file < ``-f FILE`` < ``-p NAME VALUE``
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fl_utils.experiment import SCALES
from fl_utils.runner.catalog import TYPES, Entry, Parameter, Refused, did_you_mean

WANTED = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text (quote it in YAML)",
    "bool": "true or false",
    "list": "a list such as [1, 2]",
}
PATHS = ("_dir", "_path")  # how the names of parameters that are paths end


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping of parameter names to values in ``path``. Raises Refused if it is none."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Refused(f"parameter file {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date such as 2024-13-45
        raise Refused(f"parameter file {path} is not YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise Refused(f"parameter file {path}: want a mapping of parameter names to values, such as 'rounds: 3'")
    return content


def convert(parameter: Parameter, value: Any, base: Path) -> Any:
    """``value`` (a text from the command line, or a value from YAML) as ``parameter``'s type.

    Texts are parsed for every type but str. A path (a name ending in ``_dir`` or ``_path``) becomes absolute from
    ``base`` and has to exist; "" stays "". Raises Refused.
    """
    kind, result = parameter.type, value
    if isinstance(value, str) and kind != "str":
        result = _parse(kind, value)
    if kind == "float" and type(result) is int:
        result = float(result)
    if type(result) is not TYPES[kind] or (kind == "float" and math.isnan(result)):
        raise Refused(f"parameter {parameter.name}: {value!r} is not {WANTED[kind]} (its type is {kind})")
    if kind == "list":
        result = _check_elements(parameter, result)
    if kind == "str" and parameter.name.endswith(PATHS) and result:
        result = _absolute(parameter.name, result, base)
        if not Path(result).exists():
            raise Refused(f"parameter {parameter.name}: {result} does not exist")
    if parameter.name == "scale" and kind == "str" and result not in SCALES:
        raise Refused(f"parameter scale: {result!r}, want {' or '.join(SCALES)}{did_you_mean(result, SCALES)}")
    return result


def given(file: Path | None, pairs: Sequence[tuple[str, str]], base: Path) -> dict[str, Any]:
    """What the user gave, -f first and -p over it; paths already absolute, so that it means the same elsewhere."""
    values = {**(load_yaml(file) if file else {}), **dict(pairs)}
    for name, value in values.items():
        if name.endswith(PATHS) and isinstance(value, str) and value:
            values[name] = _absolute(name, value, base)
    return values


def check_names(names: Sequence[str], entries: Sequence[Entry]) -> list[str]:
    """One line for each name that only some of ``entries`` have. Raises Refused for one that none has."""
    known = list(dict.fromkeys(name for entry in entries for name in entry.parameters))
    notes = []
    for name in names:
        lacking = [entry.notebook for entry in entries if name not in entry.parameters]
        if len(lacking) == len(entries):
            near = did_you_mean(name, known) or ";"
            raise Refused(f"unknown parameter {name!r}{near} these exist: {', '.join(known) or 'none'}")
        if lacking:
            notes.append(f"parameter {name} is not known to {', '.join(lacking)}, and is not set there")
    return notes


def scale_file(entry: Entry, papers_dir: Path) -> Path:
    """Where the paper-scale parameters of ``entry`` lie."""
    return papers_dir / entry.paper / "scales" / f"{Path(entry.notebook).stem}.yaml"


def at_paper_scale(entry: Entry, papers_dir: Path) -> dict[str, Any]:
    """The paper-scale parameters of ``entry``, converted. Raises Refused where there is no file or it does not fit."""
    path = scale_file(entry, papers_dir)
    if not path.is_file():
        raise Refused(f"{entry.notebook} has no paper scale: {path} does not exist; run it without --scale paper")
    values = load_yaml(path)
    if "scale" in entry.parameters:
        values.setdefault("scale", "paper")
    result = {}
    for name, value in values.items():
        if name not in entry.parameters:
            near = did_you_mean(name, entry.parameters)
            raise Refused(f"{path}: {entry.notebook} has no parameter {name!r}{near}")
        try:
            result[name] = convert(entry.parameters[name], value, path.parent)
        except Refused as error:
            raise Refused(f"{path}: {error}") from None
    return result


def resolve(
    entry: Entry, scale_values: Mapping[str, Any], user: Mapping[str, Any], base: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters to set in ``entry``, and those among them that the user changed from default or paper scale."""
    parameters, changed = dict(scale_values), {}
    for name, value in user.items():
        if name not in entry.parameters:
            continue
        try:
            converted = convert(entry.parameters[name], value, base)
        except Refused as error:
            raise Refused(f"{entry.notebook}: {error}") from None
        if converted != scale_values.get(name, entry.parameters[name].default):
            changed[name] = converted
        parameters[name] = converted
    defaults = {name: parameter.default for name, parameter in entry.parameters.items()}
    return {name: value for name, value in parameters.items() if value != defaults[name]}, changed


def _absolute(name: str, value: str, base: Path) -> str:
    try:
        path = (base / Path(value).expanduser()).resolve()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, of an unknown user, with a null byte
        raise Refused(f"parameter {name}: {value!r} is no path ({getattr(error, 'strerror', None) or error})") from None
    return str(path)


def in_words(values: Mapping[str, Any]) -> str:
    """``rounds=1 lr=0.1``: for the record, in one line; without paths, which say nothing of the scale."""
    told = {name: value for name, value in values.items() if not name.endswith(PATHS)}
    return " ".join(f"{name}={value if _plain(value) else json.dumps(value)}" for name, value in told.items())


def _plain(value: Any) -> bool:
    return not isinstance(value, (list, bool)) and not any(mark.isspace() for mark in str(value)) and value != ""


def _parse(kind: str, text: str) -> Any:
    """``text`` as a value of ``kind``, or ``text`` itself where it is none."""
    import yaml

    try:
        if kind in ("int", "float"):
            return TYPES[kind](text)
        if kind == "bool":
            return {"true": True, "false": False}.get(text.strip().lower(), text)
        return yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        return text


def _check_elements(parameter: Parameter, value: list) -> list:
    """Elements are plain values, and of the default's type where its elements have one."""
    if not all(type(element) in (int, float, str, bool, list) and element == element for element in value):
        raise Refused(f"parameter {parameter.name}: {value!r} holds something other than numbers, texts, true or false")
    kinds = {type(element) for element in parameter.default}
    if kinds == {float}:
        value = [float(element) if type(element) is int else element for element in value]
    if len(kinds) == 1 and {type(element) for element in value} - kinds:
        kind = next(iter(kinds)).__name__
        raise Refused(f"parameter {parameter.name}: {value!r} has elements that are not {kind}, as the default's are")
    return value
