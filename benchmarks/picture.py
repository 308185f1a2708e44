"""The picture of `make bench`: one panel a row, every contender as a ratio to the limit, the marks as lines."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Limit, Mark, Row, median, spread
from utils.utils_visualise import ACCENT, GRID, INK, MUTED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_COLUMNS = 2
WIDE = 5
"""From this ratio of the largest to the smallest value on, the axis is logarithmic."""
MARK = "#c4572b"
VALUE_GROUND = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}
"""Of a value: without it the mark, the grid and the spread would cross its digits."""


def figure_of(rows: Sequence[Row]) -> "Figure":
    """Medians as dots with their spread, Longhaul's in colour; a row without a contender as limit is in its unit."""
    from matplotlib.figure import Figure

    num_rows = math.ceil(len(rows) / NUM_COLUMNS)
    tallest = max(len(row.samples) for row in rows)
    figure = Figure(figsize=(6.2 * NUM_COLUMNS, num_rows * (1.3 + 0.27 * tallest)), dpi=110, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.15)  # type: ignore[union-attr, call-arg]
    for number, row in enumerate(rows, 1):
        _draw(figure.add_subplot(num_rows, NUM_COLUMNS, number), row)
    return figure


def _draw(axes: Any, row: Row) -> None:
    names = list(row.samples)
    values = {name: row.ratios(name, row.reference) if row.reference else row.samples[name] for name in names}
    for place, name in enumerate(names):
        colour = ACCENT if name == row.ours else MUTED
        middle = median(values[name])
        axes.errorbar(middle, place, xerr=spread(values[name]), fmt="o", color=colour, markersize=7, capsize=3)
        axes.annotate(
            f"{middle:.3g}", (middle, place), (0, 7), textcoords="offset points", ha="center", fontsize=8, color=colour,
            bbox=VALUE_GROUND,
        )  # fmt: skip
    _scale(axes, [median(each) for each in values.values()])
    for mark in _marks_in_view(row):
        bound = mark.ratio if isinstance(mark, Mark) else mark.value
        axes.axvline(bound, color=MARK, linestyle="--", linewidth=1)
        sign = "≥" if isinstance(mark, Mark) and mark.at_least else "≤"
        axes.annotate(f"{sign} {bound:g}", (bound, 1), (3, -9), xycoords=("data", "axes fraction"),
                      textcoords="offset points", color=MARK, fontsize=8)  # fmt: skip
    _style(axes, row, names)


def _marks_in_view(row: Row) -> list[Mark | Limit]:
    """The marks that the panel's axis can show: those beside its reference, or the absolute ones without any."""
    if row.reference is None:
        return [mark for mark in row.marks if isinstance(mark, Limit)]
    return [mark for mark in row.marks if isinstance(mark, Mark) and mark.of == row.reference]


def _scale(axes: Any, middles: Sequence[float]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    if max(middles) < WIDE * min(middles):
        return
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _style(axes: Any, row: Row, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_ylim(len(names) - 0.4, -1.2)  # the names of the marks stand above the first value
    axes.get_yticklabels()[names.index(row.ours)].set(color=ACCENT, fontweight="bold")
    axes.set_title(row.what, loc="left", fontsize=10, color=INK)
    beside = f"{row.unit}, as a ratio to: {row.reference}" if row.reference else row.unit
    axes.set_xlabel(f"{beside} (n = {row.rounds})", fontsize=8, color=MUTED)
    axes.margins(x=0.15)
    axes.tick_params(length=0, labelsize=8)
    axes.grid(axis="x", color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
