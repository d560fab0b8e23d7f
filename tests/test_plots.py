import matplotlib
import pytest

matplotlib.use("agg")

import IPython.display
import matplotlib.pyplot as plt

from fl_utils import plots


def test_a_figure_is_shown_with_its_caption_and_its_text_and_is_closed(monkeypatch):
    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda what, **how: shown.append((what, how)))
    plt.plot([1, 2])
    plots.show("Figure 1. A line", "A line that rises from 1 to 2.")
    (picture, how), (caption, _) = shown
    assert picture["image/png"].startswith(b"\x89PNG")
    about = {"alt": "A line that rises from 1 to 2.", "caption": "Figure 1. A line"}
    assert how == {"metadata": {"image/png": about}, "raw": True}
    assert caption.data == "*Figure 1. A line*"
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
