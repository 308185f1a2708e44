"""docs/growth.png: a column for each quantity that grows, time above memory."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.growth_table import Section
from benchmarks.measure import median
from utils.utils_visualise import ACCENT, GRID, INK, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL_INCHES = (2.7, 2.3)


def draw(sections: Sequence[Section], path: Path) -> None:
    """Time of an iteration and memory over each quantity; logarithmic, but for the iterations."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PANEL_INCHES[0] * len(sections), PANEL_INCHES[1] * 2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(sections), squeeze=False, sharex="col")
    for (time_panel, memory_panel), section in zip(panels.T, sections, strict=True):
        _draw_time(time_panel, section)
        _draw_memory(memory_panel, section)
        _frame(time_panel, section)
        _frame(memory_panel, section)
        time_panel.set_title(section.title, color=INK, fontsize=10)
        memory_panel.set_xlabel(section.unit, color=MUTED, fontsize=8)
    panels[0, 0].set_ylabel("CPU ms an iteration", color=MUTED, fontsize=8)
    panels[1, 0].set_ylabel("memory MB", color=MUTED, fontsize=8)
    panels[0, 0].legend(frameon=False, fontsize=8, labelcolor=INK)
    figure.savefig(path, dpi=150)


def _draw_time(panel: "Axes", section: Section) -> None:
    x, style = [point.x for point in section.points], _style(section)
    if section.points[0].bare:
        bare = [median(point.bare) / 1e3 for point in section.points]
        panel.plot(x, bare, color=MUTED, label="bare loop", linestyle="--", **style)
    panel.plot(x, [median(point.cpu) / 1e3 for point in section.points], color=ACCENT, label="Longhaul", **style)


def _draw_memory(panel: "Axes", section: Section) -> None:
    x = [point.x for point in section.points]
    panel.plot(x, [point.memory / 1e6 for point in section.points], color=ACCENT, **_style(section))


def _frame(panel: "Axes", section: Section) -> None:
    if section.title == "iterations":
        panel.set_ylim(0, 1.3 * panel.get_ylim()[1])
        panel.set_xticks([0, section.points[-1].x], ["0", f"{section.points[-1].x:,.0f}"])
    else:
        panel.set_xscale("log", base=2 if section.title in ("batch size", "ranks") else 10)
        panel.set_yscale("log")
        low, high = panel.dataLim.intervaly
        decades = math.floor(math.log10(low)), math.floor(math.log10(high)) + 1
        panel.set_ylim(10 ** decades[0], 10 ** decades[1])  # so that flat lines look flat
    if section.title in ("batch size", "ranks"):
        panel.set_xticks([point.x for point in section.points], [f"{point.x:.0f}" for point in section.points])
    panel.minorticks_off()
    panel.tick_params(colors=MUTED, labelsize=7, length=2)
    panel.grid(color=GRID, linewidth=0.5)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(GRID)


def _style(section: Section) -> dict[str, Any]:
    return {"linewidth": 1.2, "marker": "" if len(section.points) > 12 else "o", "markersize": 3}
