"""What the book adds to Sphinx: formulas as MathML, which needs no script and no font, and exact links of types."""

from __future__ import annotations

import builtins
import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.nodes import find_pending_xref_condition

SIZES = re.compile(r"\\[bB]igg?[lrm]?(?![A-Za-z])")  # of delimiters: MathML's grow by themselves
log = logging.getLogger(__name__)


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_block, None))
    app.connect("doctree-read", name_types_exactly)
    app.add_css_file("book.css")
    app.add_js_file("book.js", priority=300)  # after the options that it changes
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def visit_math(translator: Any, node: nodes.math) -> None:
    """A formula in a line."""
    translator.body.append(mathml(node, block=False))
    raise nodes.SkipNode


def visit_block(translator: Any, node: nodes.math_block) -> None:
    """A formula on its own lines."""
    translator.body.append(f'<div class="formula">{mathml(node, block=True)}</div>')
    raise nodes.SkipNode


def mathml(node: nodes.Node, block: bool) -> str:
    """The formula as MathML; one that is no LaTeX is warned of, and shown as it was written."""
    source = node.astext()
    try:
        return tex2mathml(SIZES.sub("", source), as_block=block)
    except MathError as error:
        log.warning("formula %r cannot be shown: %s", source, error, location=node)
        return f"<code>{nodes.unescape(source)}</code>"


def name_types_exactly(app: Sphinx, doctree: nodes.document) -> None:
    """Let a type in a signature link to the definition of its full name, and not to any other of the same last name."""
    for reference in list(doctree.findall(addnodes.pending_xref)):
        if reference.get("refdomain") == "py" and reference.hasattr("refspecific"):
            del reference["refspecific"]  # Sphinx asks whether it is there, not what it says
            if hasattr(builtins, reference["reftarget"]):
                shown = find_pending_xref_condition(reference, "*")
                reference.replace_self((shown or reference).children)
