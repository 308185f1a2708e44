"""Figures of what a test has found; matplotlib is imported only when one is drawn."""

import dataclasses
import functools
import io
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Figure  # the views name it too

logger = logging.getLogger("longhaul")

INK, MUTED, GRID, ACCENT = "#1b1f24", "#68707a", "#d5dae0", "#1f6fb2"
_MOST_BARS, _MOST_COUNTS, _MOST_NAMES, _MOST_LETTERS = 12, 40, 150, 24
"""Classes whose probabilities, whose counts and whose names a picture has room for, and letters of such a name."""
LINES = (ACCENT, "#c4572b", "#2f8f5b", "#8a5fb0", "#b58a00", "#c2497f", "#4f6d7a")


@dataclasses.dataclass(frozen=True)
class Classified:
    """One image, uint8 (C, H, W), its true class, and the probability of every class."""

    image: NDArray[np.uint8]
    target: int
    probabilities: Sequence[float]


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of this size in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["text.parse_math"] = False  # a $ in the name of a class or a run begins no formula
    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a PNG; drawn in memory first, so that what cannot be drawn leaves the file as it was."""
    content = io.BytesIO()
    with warnings.catch_warnings(record=True) as caught:
        figure.savefig(content, format="png")
    path.write_bytes(content.getvalue())
    for each in caught:
        _warn_once(str(each.message))


@functools.cache
def _warn_once(message: str) -> None:
    """Say what is true of every picture, such as a character in the name of a class that the font lacks."""
    logger.warning("%s", message)


def line_of_text(text: str, capital: int) -> tuple[NDArray[np.uint8], int]:
    """(H, W): how much of each pixel a line of text covers, 0 to 255, and the row on which its letters stand.

    capital: the height of a capital letter in pixels.
    """
    from matplotlib.font_manager import findfont
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(findfont("DejaVu Sans"), round(capital * 4 / 3))
    ascent, descent = font.getmetrics()
    picture = Image.new("L", (math.ceil(font.getlength(text)), ascent + descent))
    ImageDraw.Draw(picture).text((0, 0), text, fill=255, font=font)
    return np.asarray(picture), ascent


def _short(name: str) -> str:
    """A name without its middle, if it is so long that it would leave no room for what it names."""
    half = _MOST_LETTERS // 2
    return name if len(name) <= _MOST_LETTERS else f"{name[:half]}\u2026{name[1 - half :]}"


def confusion_figure(counts: Sequence[Sequence[float]], class_names: Sequence[str], title: str) -> "Figure":
    """A confusion matrix: counts[true][predicted], each cell with its count, shaded by the share of its true class.

    Of many classes the cells are shaded alone; of very many the axes have their numbers.
    """
    matrix = np.asarray(counts, dtype=np.float64)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    num_classes = len(class_names)
    size = 2.5 + (0.55 if num_classes <= _MOST_COUNTS else 0.16) * min(num_classes, _MOST_NAMES)
    figure = new_figure(size + 1, size)
    axes = figure.add_subplot()
    shaded = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix if num_classes <= _MOST_COUNTS else matrix[:0]):
        colour = "white" if shares[row, column] > 0.7 else "black"
        axes.text(column, row, f"{count:.0f}", ha="center", va="center", color=colour, fontsize=8)
    if num_classes <= _MOST_NAMES:
        points, slant = (10, 45) if num_classes <= _MOST_COUNTS else (7, 60)
        names = list(map(_short, class_names))
        axes.set_xticks(range(num_classes), names, rotation=slant, ha="right", fontsize=points)
        axes.set_yticks(range(num_classes), names, fontsize=points)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(title)
    figure.colorbar(shaded, label="share of the true class", fraction=0.046)
    return figure


def likeliest_classes(probabilities: Sequence[float], target: int) -> list[int]:
    """The classes to show of a sample, in their order: all, or of many the likeliest and the true one."""
    order = sorted(range(len(probabilities)), key=probabilities.__getitem__, reverse=True)
    return sorted({*order[:_MOST_BARS], target})


def classified_figure(
    cells: Sequence[Sequence[Classified]], row_names: Sequence[str], class_names: Sequence[str], title: str
) -> "Figure":
    """Rows of images, each beside the probabilities of `likeliest_classes`; the true class is marked with a star."""
    class_names, row_names = list(map(_short, class_names)), list(map(_short, row_names))
    num_columns = max(1, *(len(row) for row in cells))
    figure = new_figure(3.4 * num_columns + 0.6, 1.75 * len(cells) + 0.7)
    grid = figure.add_gridspec(len(cells), 2 * num_columns, width_ratios=[1, 0.9] * num_columns)
    figure.suptitle(title, fontsize=11, wrap=True)
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


def _draw_classified(image_axes: Any, bar_axes: Any, cell: Classified, class_names: Sequence[str]) -> None:
    image = np.moveaxis(cell.image, 0, -1)
    image_axes.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
    image_axes.axis("off")
    predicted = int(np.argmax(cell.probabilities))
    image_axes.set_title(f"{class_names[predicted]} {cell.probabilities[predicted]:.2f}", fontsize=9, loc="left")
    shown = likeliest_classes(cell.probabilities, cell.target)
    colours = [ACCENT if k == predicted else "#b8c4ce" for k in shown]
    bar_axes.barh(range(len(shown)), [cell.probabilities[k] for k in shown], color=colours)
    labels = [f"* {class_names[k]}" if k == cell.target else class_names[k] for k in shown]
    bar_axes.set_yticks(range(len(shown)), labels, fontsize=7)
    bar_axes.invert_yaxis()
    bar_axes.set_xlim(0, 1)
    bar_axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"], fontsize=6)
    bar_axes.set_xlabel("probability", fontsize=6, labelpad=1)
    for side in ("top", "right"):
        bar_axes.spines[side].set_visible(False)


def _show_to_scale(axes: Any, joints: NDArray[np.float64]) -> None:
    """A cube around all joints, (x, z, -y) as they are drawn: a millimetre is as long in every direction."""
    from matplotlib.ticker import MultipleLocator

    drawn = joints[np.isfinite(joints).all(axis=1)][:, [0, 2, 1]] * [1, 1, -1]
    middle = (drawn.min(axis=0) + drawn.max(axis=0)) / 2
    half = max(float(np.abs(drawn - middle).max()), 1.0)
    for name, centre in zip("xyz", middle, strict=True):
        getattr(axes, f"set_{name}lim")(centre - half, centre + half)
        getattr(axes, f"{name}axis").set_major_locator(MultipleLocator(50 * math.ceil(half / 150)))
    axes.set_box_aspect((1, 1, 1), zoom=0.85)  # room for the labels


def skeletons_figure(
    rows: Mapping[str, Sequence[tuple[NDArray[np.uint8], str, NDArray[np.float64], NDArray[np.float64]]]],
    bones: Sequence[tuple[int, int]], colours: Sequence[str], title: str,
) -> "Figure":  # fmt: skip
    """Rows of images, uint8 (3, H, W), each beside its predicted and its true joints (J, 3) in mm; the true are dashed.

    bones: pairs of joints, as many to each of `colours`. Joints are in camera coordinates: x right, y down, z away.
    """
    num_columns = max(1, *(len(row) for row in rows.values()))
    figure = new_figure(4.6 * num_columns, 2.5 * len(rows) + 0.7)
    figure.suptitle(f"{title}\npredicted coloured; true grey, dashed in 3D; mm", fontsize=11, wrap=True)
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
            _show_to_scale(axes, np.concatenate([output, target]))
            for axis, label in zip((axes.xaxis, axes.yaxis, axes.zaxis), ("right", "away", "up"), strict=True):
                axis.set_label_text(label, fontsize=7)
                axis.set_tick_params(labelsize=6, pad=-2)
                axis.labelpad = -6
    return figure
