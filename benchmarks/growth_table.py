"""The points of benchmarks.growth as Markdown, and whether a long run stays flat."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from benchmarks.measure import median, spread

WARM_UP = 0.2
"""The share of a long run, at its beginning, in which memory and time may still settle."""
MOST_BYTES = 1e6
"""What memory may grow in 10,000 iterations of a flat run."""
MOST_TIME = 0.05
"""What the time of an iteration may grow over a flat run, as a share, unless it is within two standard errors."""
MOST_ROWS = 12


@dataclasses.dataclass(frozen=True)
class Point:
    """One size: microseconds an iteration, a value a turn (`bare`: none without a bare loop), and bytes allocated."""

    x: float
    cpu: list[float]
    bare: list[float]
    wall: list[float]
    memory: float

    @property
    def ratios(self) -> list[float]:
        """CPU time over that of the bare loop, turn by turn."""
        return [ours / bare for ours, bare in zip(self.cpu, self.bare, strict=True)] if self.bare else []


@dataclasses.dataclass(frozen=True)
class Section:
    """Points over one quantity; per_unit: ("byte", unit) where memory should be proportional to it."""

    title: str
    unit: str
    points: list[Point]
    per_unit: tuple[str, str] | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Line:
    """A least-squares line: its slope, and the standard error of that."""

    slope: float
    error: float


def fit(x: Sequence[float], y: Sequence[float]) -> Line:
    """The least-squares line through three points or more."""
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    centred = xs - xs.mean()
    slope = float(centred @ ys / (centred @ centred))
    residuals = ys - ys.mean() - slope * centred
    return Line(slope, float(np.sqrt(residuals @ residuals / (len(xs) - 2) / (centred @ centred))))


def table(section: Section) -> str:
    """A heading, a row a point (of many, some), and what is to be said about them."""
    step = -(-len(section.points) // MOST_ROWS)
    lines = [
        f"## {section.title.capitalize()}\n",
        f"| {section.unit} | CPU us an iteration | bare loop | ratio | wall us an iteration | memory MB |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
        *(_row(point) for point in section.points[step - 1 :: step]),
    ]
    said = [section.note] if section.note else []
    if section.per_unit is not None:
        first, last = section.points[0], section.points[-1]
        each = (last.memory - first.memory) / (last.x - first.x)
        said.insert(0, f"From the smallest to the largest: {each:,.1f} {section.per_unit[0]}s a {section.per_unit[1]}.")
    return "\n".join(lines + (["", " ".join(said)] if said else []))


def _row(point: Point) -> str:
    bare, ratio = "-", "-"
    if point.bare:
        bare = f"{median(point.bare):,.0f}"
        ratio = f"{median(point.ratios):.2f}" + (f" ± {spread(point.ratios):.2f}" if len(point.ratios) > 1 else "")
    times = f"{median(point.cpu):,.0f} | {bare} | {ratio} | {median(point.wall):,.0f}"
    return f"| {point.x:,.0f} | {times} | {point.memory / 1e6:,.0f} |"


def flatness(section: Section) -> tuple[str, bool]:
    """What the slopes of a long run say, and whether both its memory and its time are flat."""
    points = section.points[int(WARM_UP * len(section.points)) :]
    x = [point.x for point in points]
    length = x[-1] - x[0]
    memory = fit(x, [point.memory for point in points])
    ratio = fit(x, [point.ratios[0] for point in points])
    average = float(np.mean([point.ratios[0] for point in points]))
    grows = ratio.slope * length / average
    is_memory_flat = memory.slope * 10_000 < MOST_BYTES
    is_time_flat = grows < MOST_TIME or ratio.slope < 2 * ratio.error
    text = (
        f"From iteration {x[0]:,.0f} to {x[-1]:,.0f}, least squares with standard errors: memory "
        f"{memory.slope * 1e4 / 1e6:+.3f} ± {memory.error * 1e4 / 1e6:.3f} MB in 10,000 iterations "
        f"({'flat' if is_memory_flat else 'NOT FLAT'}: less than {MOST_BYTES / 1e6:g} MB is asked); time over that of "
        f"the bare loop {100 * grows:+.1f} ± {100 * ratio.error * length / average:.1f} % in all "
        f"({'flat' if is_time_flat else 'NOT FLAT'}: less than {100 * MOST_TIME:g} %, or two standard errors)."
    )
    return text, is_memory_flat and is_time_flat
