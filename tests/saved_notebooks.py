"""A saved notebook as the rules of `notebook_rules` see it."""

from __future__ import annotations

import ast
import io
import json
import tokenize
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fl_utils.runner.outcomes import cells_of, outputs_of, records_in, tags_of
from fl_utils.runner.records import text

OTHER_FOLDERS = ("tutorials", "index.ipynb")  # every other folder of notebooks is a paper's


@dataclass(frozen=True)
class Parameter:
    name: str
    kind: str
    value: object
    comment: str


@dataclass(frozen=True)
class Notebook:
    """A saved notebook and the repository (``root``) whose papers and data cards it must agree with."""

    path: Path
    root: Path

    @cached_property
    def content(self) -> dict:
        return json.loads(self.path.read_text(encoding="utf-8"))

    @cached_property
    def folder(self) -> str:
        return self.path.relative_to(self.root / "notebooks").parts[0]

    @property
    def is_experiment(self) -> bool:
        return self.folder not in OTHER_FOLDERS

    @property
    def cells(self) -> list[dict]:
        return cells_of(self.content)

    @cached_property
    def code(self) -> list[tuple[int, dict]]:
        """The code cells that hold code, each with its position in the notebook, from 1."""
        numbered = enumerate(self.cells, 1)
        return [(n, c) for n, c in numbered if c["cell_type"] == "code" and text(c["source"]).strip()]

    @property
    def metadata(self) -> dict:
        return self.content["metadata"].get("fl_notebooks", {})

    @property
    def experiments(self) -> list[str]:
        return self.metadata.get("experiments", [])

    @property
    def papers(self) -> Path:
        return self.root / "papers"

    @cached_property
    def record(self) -> dict:
        records = records_in(self.content)
        return records[-1] if records and isinstance(records[-1], dict) else {}

    @cached_property
    def parameters(self) -> list[Parameter]:
        """The annotated literals of the parameters cells; anything else is left to `parameters_are_literals`."""
        found = []
        for _, cell in self.tagged("parameters"):
            source = text(cell["source"])
            try:
                statements = ast.parse(source).body
            except SyntaxError:
                continue
            comments = {
                token.start[0]: token.string.lstrip("# ").strip()
                for token in tokenize.generate_tokens(io.StringIO(source + "\n").readline)
                if token.type == tokenize.COMMENT
            }
            for node in statements:
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
                    try:
                        value = ast.literal_eval(node.value)
                    except ValueError:
                        continue
                    comment = comments.get(node.end_lineno) or comments.get(node.lineno, "")
                    found.append(Parameter(node.target.id, ast.unparse(node.annotation), value, comment))
        return found

    def tagged(self, tag: str) -> list[tuple[int, dict]]:
        return [(n, cell) for n, cell in self.code if tag in tags_of(cell)]

    def outputs(self) -> list[tuple[int, dict]]:
        return [(n, output) for n, cell in self.code for output in outputs_of(cell)]
