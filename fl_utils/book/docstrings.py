"""Our docstrings as reStructuredText: prose with backticks and ``:func:`` roles, everything else taken literally.

The docstrings are written for a reader of the source: blocks are indented, numbers listed, Raises headed, without the
blank lines that reStructuredText asks for. Here those are put in, and what docutils would take for markup is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Callable

TOKEN = re.compile(r"(:[a-z]+:`[^`]+`)|``(.+?)``|`([^`]+)`")
MARKS = re.compile(r"([\\*|`]|_(?!\w))")
ITEM = re.compile(r"(?:[*-]|\d+[.)])\s+(?=\S)")


def as_rest(docstring: str, resolve: Callable[[str, str], str] = lambda kind, name: name) -> str:
    """``docstring``, without the margin that it has in the source, as reStructuredText.

    resolve: kind and name of a role's target -> the full name of what it means, empty where nothing has that name.
    """
    out: list[str] = []
    depths: list[int] = [0]
    text_at = 0  # column at which the lines of the current paragraph begin
    lines = docstring.splitlines()
    position = 0
    while position < len(lines):
        line = lines[position]
        stripped = line.strip()
        indent = len(line) - len(line.lstrip())
        if not stripped:
            out.append("")
            position += 1
            continue
        if stripped.startswith(">>>"):
            position = _example(lines, position, out)
            continue
        fresh = not out or not out[-1]
        item = ITEM.match(stripped)
        if item or fresh or indent != text_at:
            if not fresh:
                out.append("")
            while depths[-1] > indent:
                depths.pop()
            if indent > depths[-1]:
                depths.append(indent)
        text_at = indent + (len(item[0]) if item else 0)
        if item and out[-1:] != [""]:
            out.append("")
        margin = "   " * (len(depths) - 1)
        out.append(margin + (item[0] if item else "") + _inline(stripped[len(item[0]) if item else 0 :], resolve))
        position += 1
        if item:  # lines that go on under the item's text belong to it
            while position < len(lines) and lines[position].strip() and _indent(lines[position]) == text_at:
                out.append(margin + " " * len(item[0]) + _inline(lines[position].strip(), resolve))
                position += 1
            text_at = indent
    return "\n".join(out).strip("\n")


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _example(lines: list[str], position: int, out: list[str]) -> int:
    """Add the interactive example that begins at ``position``; the position after it."""
    if out and out[-1]:
        out.append("")
    out += [".. code-block:: pycon", ""]
    while position < len(lines) and lines[position].strip():
        out.append("   " + lines[position].strip())
        position += 1
    out.append("")
    return position


def _inline(text: str, resolve: Callable[[str, str], str]) -> str:
    parts, end = [], 0
    for match in TOKEN.finditer(text):
        parts.append(MARKS.sub(r"\\\1", text[end : match.start()]))
        role, double, single = match.groups()
        parts.append(_role(role, resolve) if role else f"``{double or single}``")
        end = match.end()
        if end < len(text) and (text[end].isalnum() or text[end] == "_"):
            parts.append("\\ ")
    parts.append(MARKS.sub(r"\\\1", text[end:]))
    joined = "".join(parts)
    return re.sub(r"(?<=[\w])(?=``|:[a-z]+:`)(?<!`)", "", joined)


def _role(role: str, resolve: Callable[[str, str], str]) -> str:
    kind, name = re.fullmatch(r":([a-z]+):`~?([^`]+)`", role).groups()
    full = resolve(kind, name)
    return f":py:{kind}:`{name} <{full}>`" if full else f"``{name}``"
