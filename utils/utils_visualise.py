"""Figures; matplotlib is imported only when one is drawn."""

import dataclasses
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from utils.utils_history import History, Series
from utils.utils_metrics import UNITS, spoken

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Figure  # the views name it too


INK, MUTED, GRID, ACCENT = "#1b1f24", "#68707a", "#d5dae0", "#1f6fb2"
LINES = (ACCENT, "#c4572b", "#2f8f5b", "#8a5fb0", "#b58a00", "#c2497f", "#4f6d7a")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
_MARKS = {"killed": "x", "stopped": "v", "failed": "X", "extended": ">"}
LEGEND = {
    "killed": "\u2715 killed, resumed here",
    "stopped": "\u25bc stopped, resumed here",
    "failed": "\u2716 failed, resumed here",
    "extended": "\u25b6 extended",
    "best model": "\u25cb best model",
}
"""The signs of `interruptions` and of the best model, in words."""
_MAX_POINTS, _MAX_LINES = 400, 10
PANEL_INCHES = (4.6, 2.9)


@dataclasses.dataclass(frozen=True)
class Panel:
    """One diagram over the iterations; each of its lines has a name."""

    title: str
    unit: str
    lines: Mapping[str, Series]


@dataclasses.dataclass(frozen=True)
class Classified:
    """One image, uint8 (C, H, W), its true class, and the probability of every class."""

    name: str
    image: NDArray[np.uint8]
    target: int
    probabilities: Sequence[float]


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a PNG; drawn in memory first, so that a kill meanwhile leaves the file as it was."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    path.write_bytes(content.getvalue())


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


def classified_figure(
    cells: Sequence[Sequence["Classified"]], row_names: Sequence[str], class_names: Sequence[str], title: str
) -> "Figure":
    """Rows of images, each beside the probability of every class; the true class is marked with a star."""
    from matplotlib.figure import Figure

    num_columns = max(1, *(len(row) for row in cells))
    figure = Figure(figsize=(3.4 * num_columns + 0.6, 1.75 * len(cells) + 0.5), dpi=110, layout="constrained")
    grid = figure.add_gridspec(len(cells), 2 * num_columns, width_ratios=[1, 0.9] * num_columns)
    figure.suptitle(title, fontsize=11)
    for i, (row, row_name) in enumerate(zip(cells, row_names, strict=True)):
        for j, cell in enumerate(row):
            _draw_classified(
                figure.add_subplot(grid[i, 2 * j]), figure.add_subplot(grid[i, 2 * j + 1]), cell, class_names
            )
        if not row:
            empty = figure.add_subplot(grid[i, 0])
            empty.axis("off")
            empty.text(0.5, 0.5, f"{row_name}:\nnone", ha="center", va="center", fontsize=9)
    return figure


def _draw_classified(image_axes: Any, bar_axes: Any, cell: "Classified", class_names: Sequence[str]) -> None:
    image = np.moveaxis(cell.image, 0, -1)
    image_axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
    image_axes.axis("off")
    predicted = int(np.argmax(cell.probabilities))
    image_axes.set_title(f"{class_names[predicted]} {cell.probabilities[predicted]:.2f}", fontsize=9)
    colours = ["#1f6fb2" if k == predicted else "#b8c4ce" for k in range(len(class_names))]
    bar_axes.barh(range(len(class_names)), cell.probabilities, color=colours)
    labels = [f"* {name}" if k == cell.target else name for k, name in enumerate(class_names)]
    bar_axes.set_yticks(range(len(class_names)), labels, fontsize=7)
    bar_axes.invert_yaxis()
    bar_axes.set_xlim(0, 1)
    bar_axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"], fontsize=6)
    bar_axes.set_xlabel("probability", fontsize=6, labelpad=1)
    for side in ("top", "right"):
        bar_axes.spines[side].set_visible(False)


def skeletons_figure(
    rows: Mapping[str, Sequence[tuple[NDArray[np.uint8], str, NDArray[np.float64], NDArray[np.float64]]]],
    bones: Sequence[tuple[int, int]], colours: Sequence[str], title: str,
) -> "Figure":  # fmt: skip
    """Rows of images, uint8 (3, H, W), each beside its predicted and its true joints (J, 3) in mm; the true are dashed.

    bones: pairs of joints, as many to each of `colours`. Joints are in camera coordinates: x right, y down, z away.
    """
    from matplotlib.figure import Figure

    num_columns = max(1, *(len(row) for row in rows.values()))
    figure = Figure(figsize=(4.6 * num_columns, 2.5 * len(rows) + 0.5), dpi=110, layout="constrained")
    figure.suptitle(f"{title}: predicted coloured, true dashed; mm", fontsize=11)
    grid = figure.add_gridspec(len(rows), 2 * num_columns)
    per_colour = len(bones) // len(colours)
    for i, (name, row) in enumerate(rows.items()):
        for j, (image, heading, output, target) in enumerate(row):
            flat = figure.add_subplot(grid[i, 2 * j])
            flat.imshow(np.moveaxis(image, 0, -1))
            flat.axis("off")
            flat.set_title(f"{name}\n{heading}", fontsize=8)
            axes: Any = figure.add_subplot(grid[i, 2 * j + 1], projection="3d")
            for joints, dash in ((target, "--"), (output, "-")):
                for number, bone in enumerate(bones):
                    x, y, z = joints[list(bone)].T
                    axes.plot(x, z, -y, dash, color=colours[number // per_colour], linewidth=1.6)
            axes.set_box_aspect((1, 1, 1))
            for axis, label in zip((axes.xaxis, axes.yaxis, axes.zaxis), ("right", "away", "up"), strict=True):
                axis.set_label_text(label, fontsize=7)
                axis.set_tick_params(labelsize=6, pad=-2)
                axis.labelpad = -6
    return figure


def curve_panels(history: History, value_names: Sequence[str]) -> list[Panel]:
    """What there is to draw of a run: losses, every metric of the tests, then rate, speed and the like.

    value_names: what ends the columns of a metric with many values: names of classes or joints.
    """
    tests = {split: columns for split, columns in history.series.items() if split.startswith("test")}
    train = history.series.get("train", {})
    losses = {split: columns["G_loss"] for split, columns in history.series.items() if "G_loss" in columns}
    panels = [Panel("Loss", "loss", losses)] if losses else []
    names = dict.fromkeys(name for columns in tests.values() for name in columns if name not in ("lr", "G_loss"))
    of_classes = {f"_{label}": label for label in value_names}
    grouped: dict[str, dict[str, Series]] = {}
    for name in names:
        ending = next((each for each in of_classes if name.endswith(each)), None)
        if numbered := re.fullmatch(r".+(_\d+)", name):
            ending = numbered[1]
            of_classes[ending] = ending[1:]
        if ending is None:
            lines = {split: columns[name] for split, columns in tests.items() if name in columns}
            panels.append(Panel(spoken(name), UNITS.get(name, ""), lines))
        elif name in tests.get("test", {}):
            grouped.setdefault(name.removesuffix(ending), {})[of_classes[ending]] = tests["test"][name]
    panels += [
        Panel(f"{spoken(name)} of each class", UNITS.get(f"{name}_per_class", ""), lines)
        for name, lines in grouped.items()
        if len(lines) <= _MAX_LINES  # of more, nobody could tell one from the other
    ]
    rest = {name: series for name, series in train.items() if name != "G_loss"}
    return panels + [Panel(spoken(name), UNITS.get(name, ""), {"train": series}) for name, series in rest.items()]


def panel_figure(panel: Panel, interruptions: Sequence[tuple[int, str]] = (), best_iter: int | None = None) -> "Figure":
    """One panel alone."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=PANEL_INCHES, dpi=110, layout="constrained")
    _draw_panel(figure.add_subplot(), panel, interruptions, best_iter)
    return figure


def curves_figure(
    panels: Sequence[Panel], title: str, interruptions: Sequence[tuple[int, str]] = (), best_iter: int | None = None
) -> "Figure":
    """All panels in one picture."""
    from matplotlib.figure import Figure

    num_columns = min(3, max(1, len(panels)))
    num_rows = max(1, -(-len(panels) // num_columns))
    width, height = PANEL_INCHES
    figure = Figure(figsize=(width * num_columns, height * num_rows + 0.4), dpi=110, layout="constrained")
    figure.suptitle(title)
    kinds = {kind for _, kind in interruptions} | ({"best model"} if best_iter is not None else set())
    signs = [words for kind, words in LEGEND.items() if kind in kinds]
    figure.supxlabel("      ".join(signs), fontsize=9, color=MUTED)
    for number, panel in enumerate(panels, 1):
        _draw_panel(figure.add_subplot(num_rows, num_columns, number), panel, interruptions, best_iter)
    return figure


def _draw_panel(axes: Any, panel: Panel, interruptions: Sequence[tuple[int, str]], best_iter: int | None) -> None:
    ends = []
    for (name, series), colour, dash in zip(
        panel.lines.items(), itertools.cycle(LINES), itertools.cycle(_DASHES), strict=False
    ):
        iterations, values = _thinned(series)
        marker = "o" if len(iterations) == 1 else None
        axes.plot(iterations, values, color=colour, linestyle=dash, linewidth=1.4, marker=marker, markersize=3)
        ends.append((float(values[-1]), name, colour))
        best = dict(series).get(best_iter) if best_iter is not None and name == "test" else None
        if best is not None:
            axes.plot([best_iter], [best], "o", color=INK, markerfacecolor="none", markersize=8)
            axes.annotate(f"{best:.4g}", (best_iter, best), (0, -14), textcoords="offset points", ha="center",
                          fontsize=8, color=INK)  # fmt: skip
    _mark_interruptions(axes, interruptions)
    axes.set_title(panel.title, fontsize=10, color=INK)
    axes.set_xlabel("iteration", fontsize=8, color=MUTED)
    axes.set_ylabel(panel.unit, fontsize=8, color=MUTED)
    axes.tick_params(labelsize=8, colors=MUTED)
    axes.xaxis.set_major_locator(_few_ticks())
    axes.grid(color=GRID, linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(MUTED)
    if len(ends) > 1:
        _label_ends(axes, ends)


def _label_ends(axes: Any, ends: Sequence[tuple[float, str, str]]) -> None:
    """The name of each line at its right end, moved apart where they would touch."""
    low, high = axes.get_ylim()
    step, previous = 0.085, -1.0
    heights = sorted(((value - low) / (high - low or 1), name, colour) for value, name, colour in ends)
    excess = max(0.0, len(heights) * step - 1)
    for height, name, colour in heights:
        previous = max(height, previous + step - excess / len(heights))
        axes.text(1.01, previous, name, color=colour, fontsize=8, va="center", transform=axes.transAxes)


def _mark_interruptions(axes: Any, interruptions: Sequence[tuple[int, str]]) -> None:
    """A sign at the top for each launch that went on from where another had ended."""
    for iteration, kind in dict.fromkeys(interruptions):
        axes.axvline(iteration, color=MUTED, linewidth=0.7, linestyle=(0, (2, 3)))
        axes.plot(iteration, 1.0, _MARKS[kind], color=MUTED, markersize=5, clip_on=False,
                  transform=axes.get_xaxis_transform())  # fmt: skip


def _thinned(series: Series) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most so many points as a picture can show: means of neighbours."""
    points = np.asarray(series, dtype=np.float64)
    parts = np.array_split(points, min(len(points), _MAX_POINTS))
    means = np.array([part.mean(axis=0) for part in parts])
    return means[:, 0], means[:, 1]


def _few_ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=5, integer=True)
