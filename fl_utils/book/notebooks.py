"""A saved notebook made ready for the book: links that resolve, pictures as files with their alt texts.

Sphinx shows a notebook's outputs as they were saved. What only a running notebook can show (widgets, scripts) and what
only a program reads (the record) is left out here.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from fl_utils.book.links import Links
from fl_utils.book.text import plain
from fl_utils.runner.outcomes import cells_of, figures_of, outputs_of
from fl_utils.runner.records import RECORD_MIME, mapping, one_line, text

FIGURES = "notebooks/figures"
WIDGET = "application/vnd.jupyter.widget-view+json"
NOT_SHOWN = (RECORD_MIME, WIDGET, "application/javascript")
SLIDER = "*In a running notebook there are controls here.*"


def prepared(content: dict[str, Any], page: str, links: Links) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The notebook for the book, and its pictures, by their path from the book's root.

    content: the notebook as JSON; it is changed. page: its path in the repository, which is its place in the book.
    """
    pictures: dict[str, bytes] = {}
    captions = iter([figure.caption for figure in figures_of(content, [])])
    for cell in cells_of(content):
        if cell.get("cell_type") == "markdown":
            cell["source"] = links.rewritten(text(cell.get("source")), page)
        if "outputs" in cell:
            cell["outputs"] = [shown for output in outputs_of(cell) if (shown := _shown(output, page, links))]
        for output in outputs_of(cell):
            data = mapping(output.get("data"))
            if "image/png" in data:
                path, picture = _picture(data["image/png"])
                pictures[path] = picture
                alt = plain(alt_of(output) or next(captions))
                way = "../" * page.count("/") + path
                output["data"], output["metadata"] = {"text/markdown": f"![{alt}]({way})"}, {}
    return content, pictures


def alt_of(output: dict[str, Any]) -> str:
    """The alt text that :func:`fl_utils.plots.show` keeps with a picture; empty where there is none."""
    return one_line(mapping(mapping(output.get("metadata")).get("image/png")).get("alt"))


def _picture(encoded: object) -> tuple[str, bytes]:
    picture = base64.b64decode("".join(text(encoded).split()), validate=True)
    return f"{FIGURES}/{hashlib.sha256(picture).hexdigest()[:16]}.png", picture


def _shown(output: dict[str, Any], page: str, links: Links) -> dict[str, Any] | None:
    """The output without what a page cannot show; None where nothing is left."""
    if output.get("output_type") not in ("display_data", "execute_result"):
        return output
    data = mapping(output.get("data"))
    widget = WIDGET in data
    data = {kind: value for kind, value in data.items() if kind not in NOT_SHOWN}
    if widget and not data.keys() & {"image/png", "text/html", "text/markdown"}:
        data = {"text/markdown": SLIDER}
    if "text/markdown" in data:
        data["text/markdown"] = links.rewritten(text(data["text/markdown"]), page)
    return {**output, "data": data} if data else None
