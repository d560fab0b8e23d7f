"""The figures' common look: one idea each, axes with units, colours that survive colour-blindness, small files."""

from __future__ import annotations

from collections.abc import Sequence

# Okabe and Ito's palette, in an order that also differs in lightness.
BLUE, ORANGE, GREEN, PINK, SKY, YELLOW, BLACK = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#000000",
)
PUBLISHED = {"marker": "D", "color": BLACK, "linestyle": "none", "label": "paper"}  # how a published number looks


def use() -> None:
    """Set matplotlib up for this notebook."""
    import matplotlib as mpl
    from cycler import cycler

    mpl.rcParams.update(
        {
            "figure.figsize": (6.4, 3.4),
            "figure.dpi": 90,
            "figure.constrained_layout.use": True,
            "axes.prop_cycle": cycler(color=[BLUE, ORANGE, GREEN, PINK, SKY, YELLOW, BLACK]),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.alpha": 0.3,
            "legend.frameon": False,
            "font.size": 10,
        }
    )


def show(caption: str, alt: str) -> None:
    """Show the current figure with what it needs to be read: a caption below it, and a text in its place.

    caption: Markdown; names the paper's figure where there is one. alt: what is to be seen, for who cannot see it. Both
    are kept with the picture in the notebook, where Jupyter, the report and the book read them. Closes the figure.
    Raises ValueError where either is empty, or no figure is open.
    """
    import io

    import matplotlib.pyplot as plt
    from IPython.display import Markdown, display

    if not caption.strip() or not alt.strip():
        raise ValueError("a figure is shown with a caption and an alt text: neither may be empty")
    if not plt.get_fignums():
        raise ValueError("no figure is open: draw one before plots.show")
    figure, picture = plt.gcf(), io.BytesIO()
    figure.savefig(picture, format="png", bbox_inches="tight")
    data = {"image/png": picture.getvalue(), "text/plain": f"<Figure: {alt}>"}
    display(data, metadata={"image/png": {"alt": alt, "caption": caption}}, raw=True)
    display(Markdown(f"*{caption}*"))
    plt.close(figure)


def confusion(axes, matrix: Sequence[Sequence[int]], labels: Sequence[str], title: str) -> None:
    """Draw a confusion matrix (rows: true class, columns: predicted), each cell with its count."""
    import numpy as np

    matrix = np.asarray(matrix)
    axes.imshow(matrix, cmap="Blues", vmin=0, vmax=max(1, matrix.max()))
    for (row, column), count in np.ndenumerate(matrix):
        dark = count > matrix.max() / 2
        axes.text(column, row, f"{count}", ha="center", va="center", color="white" if dark else "black")
    axes.set(title=title, xlabel="predicted", ylabel="true", xticks=range(len(labels)), yticks=range(len(labels)))
    axes.set_xticklabels(labels)
    axes.set_yticklabels(labels)
    axes.grid(False)
    axes.spines[:].set_visible(False)


def grouped_bars(axes, groups: Sequence[str], series: dict[str, Sequence[float]], errors=None, published=None) -> None:
    """Bars of each series side by side in every group.

    errors: spreads, as ``series``. published: the paper's numbers, as ``series`` (None where it has none), drawn as
    diamonds upon the bars.
    """
    import numpy as np

    positions, width = np.arange(len(groups)), 0.8 / len(series)
    for index, (name, heights) in enumerate(series.items()):
        x = positions + (index - (len(series) - 1) / 2) * width
        axes.bar(x, heights, width * 0.92, label=name, yerr=(errors or {}).get(name), capsize=2)
        marks = [
            (place, value)
            for place, value in zip(x, (published or {}).get(name, []), strict=False)
            if value is not None
        ]
        if marks:
            axes.plot(
                *zip(*marks, strict=True), **{**PUBLISHED, "label": PUBLISHED["label"] if index == 0 else None}, ms=5
            )
    axes.set_xticks(positions, groups)
    axes.grid(axis="x", visible=False)
