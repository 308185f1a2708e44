"""Figures; matplotlib is imported only when one is drawn."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def confusion_figure(counts: Sequence[Sequence[float]], class_names: Sequence[str], title: str) -> "Figure":
    """A confusion matrix: counts[true][predicted], each cell with its count, shaded by the share of its true class."""
    from matplotlib.figure import Figure

    matrix = np.asarray(counts, dtype=np.float64)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    size = 2.5 + 0.55 * len(class_names)
    figure = Figure(figsize=(size + 1, size), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    shaded = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        colour = "white" if shares[row, column] > 0.55 else "black"
        axes.text(column, row, f"{count:.0f}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(class_names)), class_names, rotation=45, ha="right")
    axes.set_yticks(range(len(class_names)), class_names)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(title)
    figure.colorbar(shaded, label="share of the true class", fraction=0.046)
    return figure
