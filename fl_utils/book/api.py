"""The API of ``fl_utils``: a page per module with what it offers, read from its syntax tree; nothing is imported."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from pathlib import Path

from fl_utils.book.docstrings import as_rest
from fl_utils.book.text import plain
from fl_utils.runner.readme import table

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass
class Module:
    """One module: its dotted ``name``, its docstring and its public definitions, in the file's order."""

    name: str
    path: str
    docstring: str
    definitions: list[Definition] = field(default_factory=list)
    constants: list[tuple[str, str]] = field(default_factory=list)
    imports: dict[str, str] = field(default_factory=dict)  # a name here -> its full name, of our own modules

    @property
    def page(self) -> str:
        return f"api/{self.name}.rst"

    @property
    def summary(self) -> str:
        return self.docstring.strip().split("\n\n")[0].replace("\n", " ")


def modules(package: Path) -> list[Module]:
    """Every module of ``package``, by name. Raises SyntaxError where one is not Python."""
    found = []
    for path in sorted(package.rglob("*.py")):
        relative = path.relative_to(package.parent)
        parts = relative.with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if parts[-1].startswith("__") and parts[-1] != "__init__":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        module = Module(name, relative.as_posix(), ast.get_docstring(tree) or "")
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package.name:
                module.imports |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
            if isinstance(node, Definition) and not node.name.startswith("_"):
                module.definitions.append(node)
            module.constants += _constants(node)
        found.append(module)
    return sorted(found, key=lambda module: module.name)


def _constants(node: ast.stmt) -> list[tuple[str, str]]:
    """Names in capitals that ``node`` assigns, with the value as it is written."""
    target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
    if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(target, ast.Name) or not node.value:
        return []
    value = ast.unparse(node.value)
    public = target.id.isupper() and not target.id.startswith("_")
    return [(target.id, value if len(value) <= 80 else "")] * public


def pages(found: list[Module]) -> dict[str, str]:
    """``api/index.md`` and a page per module, in reStructuredText."""
    targets = _targets(found)
    rows = [(f"[`{module.name}`]({module.name}.rst)", plain(module.summary.replace("`", ""))) for module in found]
    index = [
        "# The API of fl_utils",
        "The package that the notebooks share, a page per module. Module pages are found by the search as well, by "
        "any name in them.",
        table(("Module", "What it is"), rows),
    ]
    return {"api/index.md": "\n\n".join(index) + "\n", **{module.page: _page(module, targets) for module in found}}


def _targets(found: list[Module]) -> dict[str, list[str]]:
    """Every way to name a definition -> the full names that it may mean."""
    full = []
    for module in found:
        full.append(module.name)
        full += [f"{module.name}.{name}" for name, _ in module.constants]
        for node in module.definitions:
            full.append(f"{module.name}.{node.name}")
            if isinstance(node, ast.ClassDef):
                full += [f"{module.name}.{node.name}.{member.name}" for member in _members(node)]
    ways: dict[str, list[str]] = {}
    for name in full:
        parts = name.split(".")
        for start in range(len(parts)):
            ways.setdefault(".".join(parts[start:]), []).append(name)
    return ways


def _page(module: Module, targets: dict[str, list[str]]) -> str:
    def resolve(kind: str, name: str) -> str:
        first, _, rest = name.partition(".")
        name = f"{module.imports.get(first, first)}.{rest}".rstrip(".")
        meant = targets.get(name, [])
        near = [full for full in meant if full.startswith(module.name + ".")]
        return (near or meant)[0] if near or len(meant) == 1 else ""

    for node in module.definitions:
        _name_types_in_full(node, module.imports)
    lines = [":orphan:", "", f"``{module.name}``", "=" * (len(module.name) + 4), ""]
    lines += [":doc:`All modules <index>`", "", f".. py:module:: {module.name}", ""]
    lines += [as_rest(module.docstring, resolve), ""]
    if module.constants:
        for name, value in module.constants:
            lines += [f".. py:data:: {name}", *([f"   :value: {value}"] if value else []), ""]
    for node in module.definitions:
        lines += _described(node, "", resolve)
    return "\n".join(lines).rstrip() + "\n"


def _name_types_in_full(definition: Definition, imports: dict[str, str]) -> None:
    """Change the annotations of ``definition`` and of what it defines: an imported name becomes its full one."""
    for node in ast.walk(definition):
        for place in ("annotation", "returns"):
            annotation = getattr(node, place, None)
            if annotation is not None:
                for name in ast.walk(annotation):
                    if isinstance(name, ast.Name):
                        name.id = imports.get(name.id, name.id)


def _described(node: Definition, margin: str, resolve) -> list[str]:
    """A definition, and in a class its public members, as directives of Sphinx's Python domain."""
    body = margin + "   "
    docstring = as_rest(ast.get_docstring(node) or "", resolve)
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        lines = [f"{margin}.. py:class:: {node.name}{_constructor(node)}", ""]
        if bases:
            lines += [f"{body}Bases: ``{bases}``", ""]
    else:
        kinds = {ast.unparse(decorator) for decorator in node.decorator_list}
        accessor = kinds & {"property", "cached_property", "functools.cached_property"}
        kind = "property" if accessor else "method" if margin else "function"
        returns = ast.unparse(node.returns) if node.returns else ""
        if kind == "property":
            lines = [f"{margin}.. py:property:: {node.name}", *([f"{body}:type: {returns}"] if returns else [])]
        else:
            lines = [
                f"{margin}.. py:{kind}:: {node.name}({_arguments(node, bool(margin))})"
                + f" -> {returns}" * bool(returns)
            ]
            lines += [f"{body}:{word}:" for word in ("staticmethod", "classmethod") if word in kinds]
            lines += [f"{body}:async:"] * isinstance(node, ast.AsyncFunctionDef)
        lines.append("")
    lines += [body + line if line else "" for line in docstring.splitlines()] + [""]
    if isinstance(node, ast.ClassDef):
        for name, annotation in _fields(node):
            lines += [
                f"{body}.. py:attribute:: {name}",
                f"{body}   :type: {annotation}",
                f"{body}   :no-index-entry:",
                "",
            ]
        for member in _members(node):
            lines += _described(member, body, resolve)
    return lines


def _members(node: ast.ClassDef) -> list[Definition]:
    return [
        member
        for member in node.body
        if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef)
        and not member.name.startswith("_")
        and not any(ast.unparse(decorator).endswith((".setter", ".deleter")) for decorator in member.decorator_list)
    ]


def _fields(node: ast.ClassDef) -> list[tuple[str, str]]:
    """The fields of a data class or named tuple: names with their types."""
    return [
        (each.target.id, ast.unparse(each.annotation))
        for each in node.body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name) and not each.target.id.startswith("_")
    ]


def _constructor(node: ast.ClassDef) -> str:
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and member.name == "__init__":
            return f"({_arguments(member, True)})"
    return ""


def _arguments(node: ast.FunctionDef | ast.AsyncFunctionDef, bound: bool) -> str:
    """The arguments as written, without ``self`` or ``cls``."""
    arguments = node.args
    static = any(ast.unparse(decorator) == "staticmethod" for decorator in node.decorator_list)
    first = [*arguments.posonlyargs, *arguments.args][:1]
    if bound and not static and first and first[0].arg in ("self", "cls"):
        (arguments.posonlyargs or arguments.args).pop(0)
    return ast.unparse(arguments)
