import base64
import io
import json

import pytest
from PIL import Image

from fl_utils.runner import picture


def saved(folder, caption):
    """A saved notebook of each paper with one red figure."""
    data = io.BytesIO()
    Image.new("RGB", (900, 300), "red").save(data, "PNG")
    for name, source in picture.SHOWN.items():
        about = {"image/png": {"caption": caption or f"{source}: bars.", "alt": "Red."}}
        png = base64.b64encode(data.getvalue()).decode()
        output = {"output_type": "display_data", "metadata": about, "data": {"image/png": png}}
        cell = {"cell_type": "code", "metadata": {}, "source": "", "outputs": [output]}
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps({"cells": [cell], "metadata": {}}))
    return folder


def test_the_sheet_has_a_figure_of_each_paper(tmp_path):
    picture.write(saved(tmp_path, ""), tmp_path / "picture.png")
    sheet = Image.open(tmp_path / "picture.png").convert("RGB")
    assert sheet.size == (1328, 768)
    centres = [(16 + x * 656 + 320, 16 + y * 376 + 180) for x in (0, 1) for y in (0, 1)]
    assert all(sheet.getpixel(centre) == (255, 0, 0) for centre in centres)
    assert sheet.getpixel((4, 4)) == (255, 255, 255)


def test_a_figure_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="no figure whose caption begins with 'Table 3a'"):
        picture.write(saved(tmp_path, "Another"), tmp_path / "picture.png")
    assert not (tmp_path / "picture.png").exists()
