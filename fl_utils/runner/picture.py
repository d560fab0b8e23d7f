"""README's one picture: a figure of each paper, as the saved notebooks have them, on one sheet."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from fl_utils.paths import write_whole
from fl_utils.runner.outcomes import Figure, figures_of
from fl_utils.runner.records import load_json

SHOWN = {  # notebook -> how its figure's caption begins
    "oarf/01_table3a_characters.ipynb": "Table 3a",
    "mobile/02_figure4-2_strides.ipynb": "Figure 4.2",
    "faces/02_tables3-5_models.ipynb": "Table 3",
    "decentralized/02_table2_submodels.ipynb": "Table II",
}
WIDTH, HEIGHT, MARGIN = 640, 360, 16  # of one figure, pixels


def write(notebooks_dir: Path, target: Path) -> None:
    """Draw the sheet, two by two, and write it as ``target`` (PNG), whole.

    Raises ValueError where a notebook of SHOWN has no figure whose caption begins so.
    """
    from PIL import Image

    sheet = Image.new("RGB", (2 * WIDTH + 3 * MARGIN, 2 * HEIGHT + 3 * MARGIN), "white")
    for place, (name, source) in enumerate(SHOWN.items()):
        picture = Image.open(io.BytesIO(base64.b64decode(_figure(notebooks_dir / name, source).png))).convert("RGB")
        picture.thumbnail((WIDTH, HEIGHT))
        row, column = divmod(place, 2)
        left = MARGIN + column * (WIDTH + MARGIN) + (WIDTH - picture.width) // 2
        sheet.paste(picture, (left, MARGIN + row * (HEIGHT + MARGIN) + (HEIGHT - picture.height) // 2))
    data = io.BytesIO()
    sheet.quantize(128).save(data, "PNG", optimize=True)
    write_whole(target, data.getvalue())


def _figure(path: Path, source: str) -> Figure:
    notebook, unreadable = load_json(path)
    for figure in () if unreadable else figures_of(notebook, []):
        if figure.caption.startswith(source):
            return figure
    raise ValueError(f"{path.name} has no figure whose caption begins with {source!r}; run it with --save")
