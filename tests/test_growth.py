"""benchmarks.growth on points made by hand, and one short run of it."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.growth import SECTIONS, TINY, point, run, turns
from benchmarks.growth_picture import draw
from benchmarks.growth_run import Job
from benchmarks.growth_table import Point, Section, fit, flatness, table


def long_run(bytes_in_10_000: float = 0.0, more_time: float = 0.0, jitter: float = 0.0) -> Section:
    """A hundred thousand iterations; the first tenth has a higher memory, as a warm-up in reverse."""
    rng = np.random.default_rng(1)
    points = []
    for iteration in range(2000, 100_001, 2000):
        settled = 5e8 if iteration > 10_000 else 6e8
        ours = 1000 * (1 + more_time * iteration / 100_000 + jitter * rng.standard_normal())
        memory = settled + bytes_in_10_000 * iteration / 10_000
        points.append(Point(iteration, [ours], [500.0], [ours], memory))
    return Section("iterations", "iterations", points)


@pytest.mark.parametrize(
    ("section", "is_flat"),
    [
        (long_run(), True),
        (long_run(bytes_in_10_000=0.9e6), True),
        (long_run(bytes_in_10_000=1.1e6), False),
        (long_run(more_time=0.05), True),  # four fifths of the run are judged
        (long_run(more_time=0.1), False),
        (long_run(more_time=-0.5), True),
        (long_run(jitter=0.5), True),
        (long_run(more_time=0.5, jitter=0.1), False),
    ],
)
def test_a_run_that_grows_is_not_flat(section: Section, is_flat: bool) -> None:
    text, verdict = flatness(section)
    assert verdict is is_flat
    assert ("NOT FLAT" in text) is not is_flat


def test_the_line_is_that_of_numpy() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random(20), rng.random(20)
    (slope, _), covariance = np.polyfit(x, y, 1, cov=True)
    line = fit(list(x), list(y))
    assert line.slope == pytest.approx(slope)
    assert line.error == pytest.approx(np.sqrt(covariance[0, 0]))


def test_the_table_has_medians_ratios_and_bytes_a_unit() -> None:
    points = [Point(x, [30.0, 10.0, 20.0], [10.0, 5.0, 20.0], [40.0], 1e8 + 20 * x) for x in (1000, 1_000_000)]
    text = table(Section("parameters", "parameters", points, ("byte", "parameter"), "As it should be."))
    assert "| 1,000,000 | 20 | 10 | 2.00 ± 0.50 | 40 | 120 |" in text
    assert "20.0 bytes a parameter. As it should be." in text


def test_a_long_table_ends_with_the_last_point() -> None:
    rows = [line for line in table(long_run()).splitlines() if line.startswith(("| 1", "| 9"))]
    assert rows[-1].startswith("| 100,000 |")


def test_a_run_is_measured_once(tmp_path: Path) -> None:
    job = turns(Job(TINY, 8, 64, 16, 0, 0), every=2, number=3)
    notes = run(job, tmp_path)
    measured = point(8, job, notes)
    assert notes[0].num_parameters == 1905
    assert len(measured.cpu) == len(measured.bare) == len(measured.ratios) == 3
    assert min(*measured.cpu, *measured.bare) > 0
    assert measured.memory > 1e8
    written = (tmp_path / "notes_0.json").stat().st_mtime_ns
    assert run(job, tmp_path) == notes
    assert (tmp_path / "notes_0.json").stat().st_mtime_ns == written
    (tmp_path / "job.json").unlink()  # as if it had been cut off: it is not resumed, but repeated
    assert run(job, tmp_path)[0].iters == notes[0].iters


def test_the_picture(tmp_path: Path) -> None:
    few = [Point(x, [20.0], [10.0], [20.0], 1e8) for x in (1, 10)]
    draw([Section("batch size", "images", few), long_run()], tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_a_rehearsal_of_all_sections(tmp_path: Path) -> None:
    sections = [measure(tmp_path, True) for measure in SECTIONS]
    assert [len(each.points) for each in sections] == [2, 2, 2, 2, 20]
    flatness(sections[-1])
