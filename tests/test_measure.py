"""benchmarks.measure on samples made by hand: in which order it measures, and what it calls met or missed."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from benchmarks import bench, measure
from benchmarks.measure import Limit, Mark, Outcome, Row, interleave, is_missed, read_rows, report
from benchmarks.picture import figure_of


def row(ours: list[float], bare: list[float], *marks: Mark | Limit) -> Row:
    return Row("a loop", "us", "Longhaul", {"bare": bare, "Longhaul": ours}, marks)


def outcomes(row: Row) -> list[Outcome]:
    return [verdict.outcome for verdict in row.verdicts()]


def test_contenders_take_turns_and_every_other_round_is_reversed() -> None:
    calls: list[str] = []

    def contender(name: str) -> float:
        calls.append(name)
        return len(calls)

    samples = interleave({name: lambda name=name: contender(name) for name in "abc"}, 3)
    assert "".join(calls) == "abccbaabc"
    assert samples == {"a": [1, 6, 7], "b": [2, 5, 8], "c": [3, 4, 9]}


@pytest.mark.parametrize(
    ("ours", "outcome"),
    [
        ([10.0, 11.0, 12.0], Outcome.MET),  # the median is the mark itself
        ([11.0, 11.5, 14.0], Outcome.CLOSE),  # 1.15, quartiles 1.125 and 1.275
        ([11.6, 11.8, 12.0], Outcome.MISSED),  # 1.18, quartiles 1.17 and 1.19
    ],
)
def test_a_mark_is_missed_only_beyond_the_spread(ours: list[float], outcome: Outcome) -> None:
    assert outcomes(row(ours, [10.0] * 3, Mark(1.1, "bare"))) == [outcome]


@pytest.mark.parametrize(
    ("ours", "outcome"),
    [([9.5, 9.6, 11.0], Outcome.MET), ([9.0, 9.4, 9.6], Outcome.CLOSE), ([9.0, 9.1, 9.2], Outcome.MISSED)],
)
def test_at_least(ours: list[float], outcome: Outcome) -> None:
    assert outcomes(row(ours, [10.0] * 3, Mark(0.95, "bare", at_least=True))) == [outcome]


def test_a_limit_judges_the_value_itself() -> None:
    assert outcomes(row([3.0, 4.0, 5.0], [1.0] * 3, Limit(4.0), Limit(3.5), Limit(3.4))) == [
        Outcome.MET, Outcome.CLOSE, Outcome.MISSED,
    ]  # fmt: skip


def test_ratios_are_taken_round_by_round() -> None:
    slow_machine = row([1.0, 10.0, 100.0], [1.0, 10.0, 100.0], Mark(1.0, "bare"))
    (verdict,) = slow_machine.verdicts()
    assert (verdict.median, verdict.spread, verdict.outcome) == (1.0, 0.0, Outcome.MET)


def test_a_mark_of_a_misspelt_contender_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"marks name \['bear'\], contenders are \['bare', 'Longhaul'\]"):
        row([2.0], [1.0], Mark(1.1, "bare"), Mark(1.1, "bear"))


def test_a_peer_that_is_missing_leaves_its_mark_unmeasured() -> None:
    alone = row([2.0], [1.0], Mark(1.1, "Lightning"))
    assert outcomes(alone) == [Outcome.UNMEASURED]
    assert alone.reference is None
    assert not is_missed([alone])
    assert "at most 1.1x Lightning: not measured" in report(alone)
    assert is_missed([alone, row([2.0], [1.0], Mark(1.1, "bare"))])


def test_a_missing_package_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert measure.is_installed("json")
    assert not measure.is_installed("no_such_peer")
    assert capsys.readouterr().err == "no_such_peer: not installed; pip install -r benchmarks/requirements.txt\n"


@pytest.mark.parametrize(("ratio", "status"), [(1.5, 0), (1.4, 1)])
def test_the_command_prints_writes_and_judges(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, ratio: float, status: int
) -> None:
    file = tmp_path / "rows.json"
    monkeypatch.setattr("sys.argv", ["benchmark", "--rounds", "2", "--json", str(file)])
    asked: list[int] = []

    def benchmark(rounds: int) -> list[Row]:
        asked.append(rounds)
        return [row([1.5] * rounds, [1.0] * rounds, Mark(ratio, "bare"), Limit(2.0))]

    assert measure.main(benchmark, "what it measures") == status
    assert asked == [2]
    assert read_rows(file) == benchmark(2)
    assert json.loads(file.read_text())[0]["samples"]["Longhaul"] == [1.5, 1.5]
    assert "1.500x  <- ours" in capsys.readouterr().out


@pytest.mark.parametrize(("rows", "status"), [(1.0, 0), (2.0, 1), (None, 1)])
def test_all_benchmarks_are_one_document_and_one_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: float | None, status: int
) -> None:
    measured = [] if rows is None else [row([rows], [1.0], Mark(1.0, "bare"))]
    asked: list[str] = []

    def run(name: str, _rounds: int | None) -> list[Row]:
        asked.append(name)
        return measured

    monkeypatch.setattr(bench, "run", run)
    monkeypatch.setattr(bench, "write", lambda folder, text, _: (folder / "benchmarks.md").write_text(text))
    monkeypatch.setattr("sys.argv", ["bench", "--output", str(tmp_path / "new" / "folder")])
    assert bench.main() == status
    assert asked == list(bench.BENCHMARKS)
    assert "## ranks" in (tmp_path / "new" / "folder" / "benchmarks.md").read_text()


def test_some_benchmarks_do_not_take_the_place_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []
    monkeypatch.setattr(bench, "run", lambda *_: [row([1.0], [1.0])])
    monkeypatch.setattr(bench, "write", lambda folder, *_: written.append(folder))
    monkeypatch.setattr("sys.argv", ["bench", "--only", "ranks"])
    assert bench.main() == 0
    monkeypatch.setattr("sys.argv", ["bench"])
    assert bench.main() == 0
    assert written == [bench.PROJECT_FOLDER / "docs"]


@pytest.mark.parametrize("mark", [Mark(1.0, "bare"), Limit(1.0)])
def test_no_mark_crosses_the_digits_of_a_value_that_lies_on_it(mark: Mark | Limit) -> None:
    figure = figure_of([row([1.0] * 3, [1.0] * 3, mark)])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    rgb = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
    is_mark = rgb[..., 0] > rgb[..., 2] + 20  # nothing else is red, not even in part
    assert is_mark.any(), "the mark is drawn"
    values = [text for text in figure.axes[0].texts if text.get_text() == "1"]
    assert len(values) == 2
    for text in values:
        left, bottom, right, top = np.round(text.get_window_extent().extents).astype(int)
        assert not is_mark[len(rgb) - top : len(rgb) - bottom, left:right].any()
