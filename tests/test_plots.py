import matplotlib
import pytest

matplotlib.use("agg")

import matplotlib.pyplot as plt
from IPython.utils.capture import capture_output

from fl_utils import plots


def test_a_figure_is_shown_with_its_caption_and_its_text_and_is_closed():
    plt.plot([1, 2])
    with capture_output() as shown:
        plots.show("Figure 1. A line", "A line that rises from 1 to 2.")
    picture, caption = shown.outputs
    assert picture.data["image/png"].startswith(b"\x89PNG")
    assert picture.metadata["image/png"] == {"alt": "A line that rises from 1 to 2.", "caption": "Figure 1. A line"}
    assert caption.data["text/markdown"] == "*Figure 1. A line*"
    assert not plt.get_fignums()


@pytest.mark.parametrize(("caption", "alt"), [("", "A line."), ("Figure 1", " ")])
def test_neither_may_be_empty(caption, alt):
    plt.plot([1, 2])
    with pytest.raises(ValueError, match="caption and an alt text"):
        plots.show(caption, alt)
    plt.close("all")


def test_without_a_figure_there_is_nothing_to_show():
    plt.close("all")
    with pytest.raises(ValueError, match="no figure is open"):
        plots.show("Figure 1", "A line.")
