"""The curves of a run; matplotlib is imported only when one is drawn."""

import dataclasses
import itertools
import re
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from utils.utils_history import History, Series
from utils.utils_metrics import UNITS, spoken
from utils.utils_visualise import GRID, INK, LINES, MUTED, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
_MARKS = {"killed": "x", "stopped": "v", "failed": "X", "extended": ">"}
_SIGNS = {
    "killed": "\u2715 killed, resumed here",
    "stopped": "\u25bc stopped, resumed here",
    "failed": "\u2716 failed, resumed here",
    "extended": "\u25b6 extended",
    "best model": "\u25cb best model",
}
_MAX_POINTS, _MAX_LINES = 400, 10
_PANEL_INCHES = (4.6, 2.9)
_LABEL_STEP = 0.085
"""The height of a line's name, as a fraction of its panel's."""
_VALUE_ROOM = 0.14
"""What the best value needs beside its sign, as a fraction of its panel."""
_LONG_NAME, _ROW_LETTERS = 20, 60
"""Letters of a name for which there is no room beside its panel, and of a row below it."""
_ROW_POINTS = 11


@dataclasses.dataclass(frozen=True)
class Panel:
    """One diagram over the iterations; each of its lines has a name."""

    title: str
    unit: str
    lines: Mapping[str, Series]


def curve_panels(history: History, value_names: Sequence[str]) -> list[Panel]:
    """What there is to draw of a run: losses, every metric of the tests, then rate, speed and the like.

    value_names: what ends the columns of a metric with many values: names of classes or joints.
    """
    tests = {split: columns for split, columns in history.series.items() if split.startswith("test")}
    train = history.series.get("train", {})
    losses = {split: columns["G_loss"] for split, columns in history.series.items() if "G_loss" in columns}
    panels = [Panel("Loss", "loss", losses)] if losses else []
    names = dict.fromkeys(name for columns in tests.values() for name in columns if name not in ("lr", "G_loss"))
    grouped: dict[str, dict[str, Series]] = {}
    for name in names:
        metric, label = _metric_and_label(name, names, value_names)
        if label is None:
            lines = {split: columns[name] for split, columns in tests.items() if name in columns}
            panels.append(Panel(spoken(name), UNITS.get(name, ""), lines))
        elif name in tests.get("test", {}):
            grouped.setdefault(metric, {})[label] = tests["test"][name]
    panels += [
        Panel(f"{spoken(name)} of each class", UNITS.get(f"{name}_per_class", ""), lines)
        for name, lines in grouped.items()
        if len(lines) <= _MAX_LINES  # of more, nobody could tell one from the other
    ]
    rest = {name: series for name, series in train.items() if name != "G_loss"}
    return panels + [Panel(spoken(name), UNITS.get(name, ""), {"train": series}) for name, series in rest.items()]


def _metric_and_label(name: str, names: Collection[str], value_names: Sequence[str]) -> tuple[str, str | None]:
    """A column of a test as its metric and the class, joint or number that it is of; None if it is all of the metric.

    names: of all columns, among which those of a metric with many values stand together.
    """
    for label in sorted((each for each in value_names if name.endswith(f"_{each}")), key=len, reverse=True):
        metric = name.removesuffix(f"_{label}")
        if all(f"{metric}_{each}" in names for each in value_names):
            return metric, label
    numbered = re.fullmatch(r"(.+)_(\d+)", name)
    if numbered and f"{numbered[1]}_0" in names:  # else it is one number, such as top_5
        return numbered[1], numbered[2]
    return name, None


def panel_figure(panel: Panel, interruptions: Sequence[tuple[int, str]] = (), best_iter: int | None = None) -> "Figure":
    """One panel alone."""
    width, height = _PANEL_INCHES
    figure = new_figure(width, height + len(_rows(panel.lines)) * _ROW_POINTS / 72)
    _draw_panel(figure.add_subplot(), panel, interruptions, best_iter)
    return figure


def curves_figure(
    panels: Sequence[Panel], title: str, interruptions: Sequence[tuple[int, str]] = (), best_iter: int | None = None
) -> "Figure":
    """All panels in one picture."""
    num_columns = min(3, max(1, len(panels)))
    num_rows = max(1, -(-len(panels) // num_columns))
    width, height = _PANEL_INCHES
    figure = new_figure(width * num_columns, height * num_rows + 0.4)
    figure.suptitle(title)
    figure.supxlabel("      ".join(signs(interruptions, best_iter)), fontsize=9, color=MUTED)
    for number, panel in enumerate(panels, 1):
        _draw_panel(figure.add_subplot(num_rows, num_columns, number), panel, interruptions, best_iter)
    return figure


def signs(interruptions: Sequence[tuple[int, str]], best_iter: int | None) -> list[str]:
    """What the signs in a run's curves mean."""
    kinds = {kind for _, kind in interruptions} | ({"best model"} if best_iter is not None else set())
    return [words for kind, words in _SIGNS.items() if kind in kinds]


def _draw_panel(axes: Any, panel: Panel, interruptions: Sequence[tuple[int, str]], best_iter: int | None) -> None:
    ends: list[tuple[float, str, str]] = []
    best: tuple[int, float] | None = None
    is_peak = False
    for (name, series), colour, dash in zip(
        panel.lines.items(), itertools.cycle(LINES), itertools.cycle(_DASHES), strict=False
    ):
        iterations, values = _thinned(series)
        is_drawn = np.isfinite(values)
        padded = np.pad(is_drawn, 1)
        alone = np.flatnonzero(is_drawn & ~padded[:-2] & ~padded[2:]).tolist()  # no line leads to them
        axes.plot(iterations, values, color=colour, linestyle=dash, linewidth=1.4, marker="o", markersize=3,
                  markevery=alone)  # fmt: skip
        axes.update_datalim(np.stack([iterations, 0 * iterations], axis=1), updatey=False)  # gaps have room
        if is_drawn.any():
            ends.append((float(values[is_drawn][-1]), name, colour))
        if name == "test":
            best = next((point for point in series if point[0] == best_iter and np.isfinite(point[1])), None)
            is_peak = best is not None and best[1] > values[is_drawn].mean()
    if best is not None:  # after all lines: then the panel has its height
        axes.plot(*best, "o", color=INK, markerfacecolor="none", markersize=8)
        _write_best(axes, best, is_peak)
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
    if len(panel.lines) > 1 and ends:
        _label_ends(axes, ends)


def _write_best(axes: Any, best: tuple[int, float], is_peak: bool) -> None:
    """The best value, above a peak and below a dip, where its own line is not, and within the panel."""
    low, high = axes.get_ylim()
    room = _VALUE_ROOM * (high - low)
    axes.set_ylim(min(low, best[1] - room * (not is_peak)), max(high, best[1] + room * is_peak))
    left, right = axes.get_xlim()
    place = (best[0] - left) / (right - left)
    side = "left" if place < _VALUE_ROOM else "right" if place > 1 - _VALUE_ROOM else "center"
    axes.annotate(f"{best[1]:.4g}", best, (0, 8 if is_peak else -14), textcoords="offset points", ha=side,
                  fontsize=8, color=INK)  # fmt: skip


def _label_ends(axes: Any, ends: Sequence[tuple[float, str, str]]) -> None:
    """The name of each line at its right end, moved apart where they would touch, within the height of the panel.

    Long names stand below the panel, from the highest end to the lowest: beside it they would leave it no width.
    """
    low, high = axes.get_ylim()
    ends = sorted(ends)
    colours = {name: colour for _, name, colour in reversed(ends)}
    if rows := _rows(colours):
        for number, (text, name) in enumerate(rows):
            axes.annotate(text, (0, 0), (0, -38 - number * _ROW_POINTS), xycoords="axes fraction",
                          textcoords="offset points", color=colours[name], fontsize=8)  # fmt: skip
        return
    step = min(_LABEL_STEP, 1 / len(ends))
    heights = [(value - low) / (high - low or 1) for value, _, _ in ends]
    for number in range(1, len(heights)):
        heights[number] = max(heights[number], heights[number - 1] + step)
    ceiling = 1.0
    for number in reversed(range(len(heights))):
        heights[number] = min(heights[number], ceiling)
        ceiling = heights[number] - step
    for height, (_, name, colour) in zip(heights, ends, strict=True):
        axes.text(1.01, height, name, color=colour, fontsize=8, va="center", transform=axes.transAxes)


def _rows(names: Iterable[str]) -> list[tuple[str, str]]:
    """(part of a name, the name) for each row below a panel; none if all names have room beside it."""
    names = list(names)
    if max(map(len, names), default=0) <= _LONG_NAME:
        return []
    return [(text, name) for name in names for text in textwrap.wrap(name, _ROW_LETTERS)]


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
