"""What is read back of a run: later rows win, torn lines do not count, resumes are where launches went on."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from utils.utils_curves import Panel, curve_panels, panel_figure
from utils.utils_history import read_history
from utils.utils_metrics_csv import logged_test, read_metrics

HEADER = "iter,epoch,split,lr,G_loss,images_per_s,accuracy,recall_a,recall_b\n"


def test_a_later_row_of_an_iteration_wins(tmp_path: Path) -> None:
    lines = ["10,0,train,.1,2.0,50,,,\n", "10,0,test,.1,1.5,,.5,.4,.6\n", "10,0,train,.1,1.9,60,,,\n", "20,0,tra"]
    (tmp_path / "metrics.csv").write_text(HEADER + "".join(lines))
    assert set(read_metrics(tmp_path / "metrics.csv")) == {(10, "train"), (10, "test")}
    series = read_history(tmp_path).series
    assert series["train"]["G_loss"] == [(10, 1.9)]
    assert "accuracy" not in series["train"]
    assert series["test"]["accuracy"] == [(10, 0.5)]


@pytest.mark.parametrize(
    ("iterations", "num_launches", "shown"),
    [
        ([10, 20, 30, 40, 25, 50], 2, [10, 20, 25, 50]),
        ([10, 20, 30, 15, 30, 20], 3, [10, 15, 20]),
        ([10, 20, 30, 40, 25, 50], 1, [10, 20, 25, 30, 40, 50]),
        ([50, 40, 30, 20, 10], 2, [10, 20, 30, 40, 50]),
    ],
)
def test_rows_behind_which_a_launch_went_back_are_left_out(
    tmp_path: Path, iterations: list[int], num_launches: int, shown: list[int]
) -> None:
    """With other intervals no later row takes their place; a table that somebody has sorted is shown whole."""
    lines = [f"{iteration},0,train,.1,2.0,50,,,\n" for iteration in iterations]
    (tmp_path / "metrics.csv").write_text(HEADER + "".join(lines))
    (tmp_path / "status.json").write_text(json.dumps({"launches": [launch(0, 40, "RUNNING")] * num_launches}))
    assert [iteration for iteration, _ in read_history(tmp_path).series["train"]["G_loss"]] == shown


def test_rows_that_somebody_sorted_by_split_are_all_shown(tmp_path: Path) -> None:
    lines = [f"{iteration},0,{split},.1,2.0,,,,\n" for split in ("test", "train") for iteration in (10, 20, 30)]
    (tmp_path / "metrics.csv").write_text(HEADER + "".join(lines))
    (tmp_path / "status.json").write_text(json.dumps({"launches": [launch(0, 30, "RUNNING")] * 3}))
    series = read_history(tmp_path).series
    assert [iteration for iteration, _ in series["test"]["G_loss"]] == [10, 20, 30]
    assert [iteration for iteration, _ in series["train"]["G_loss"]] == [10, 20, 30]


def test_what_somebody_wrote_into_the_metrics_is_left_out(tmp_path: Path) -> None:
    lines = ["10,0,train,.1,two,50,,,\n", "my note\n", "20,0,train,.1,1.9,60,,,,,,\n"]
    (tmp_path / "metrics.csv").write_text(HEADER + "".join(lines))
    assert read_history(tmp_path).series["train"]["G_loss"] == [(20, 1.9)]


def test_a_column_of_text_has_no_series(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("iter,epoch,split,G_loss,notes,\n10,0,test,1.5,looks good,3\n")
    assert read_history(tmp_path).series == {"test": {"G_loss": [(10, 1.5)]}}
    assert logged_test(tmp_path / "metrics.csv", 10) == {"loss": 1.5}


def test_an_empty_folder_has_an_empty_history(tmp_path: Path) -> None:
    history = read_history(tmp_path)
    assert (history.state, history.series, history.launches, history.manifests) == (None, {}, [], {})
    assert curve_panels(history, ()) == []


@pytest.mark.parametrize("status", ["", "{", "[1]", '{"launches": [{"state": "DONE"}]}'])
def test_a_torn_or_foreign_status_has_no_launches(tmp_path: Path, status: str) -> None:
    (tmp_path / "status.json").write_text(status)
    assert read_history(tmp_path).interruptions == []


def launch(from_iter: int, to_iter: int, state: str) -> dict[str, Any]:
    return {"from_iter": from_iter, "to_iter": to_iter, "state": state}


def test_interruptions_are_where_the_next_launch_went_on(tmp_path: Path) -> None:
    failed = {**launch(55, 55, "FAILED"), "options": "fer_261123_181633.json"}
    refused = launch(90, 90, "FAILED")  # its options were never written
    launches = [
        *(launch(0, 40, "RUNNING"), launch(40, 55, "PREEMPTED"), failed, launch(55, 90, "DONE")),
        *(refused, launch(90, 90, "DONE"), refused, launch(90, 120, "DONE"), launch(120, 120, "DONE")),
    ]
    (tmp_path / "status.json").write_text(json.dumps({"state": "DONE", "launches": launches}))
    assert read_history(tmp_path).interruptions == [
        *((40, "killed"), (55, "stopped"), (55, "failed")),
        (90, "extended"),  # neither by those that had nothing to do nor by those that were refused
    ]


def test_each_number_of_a_run_stands_in_one_panel(tmp_path: Path) -> None:
    rows = ["10,0,train,.1,2.0,50,,,\n", "10,0,test,.1,1.5,,.5,.4,.6\n", "10,0,test_other,.1,1.4,,.7,.1,.2\n"]
    (tmp_path / "metrics.csv").write_text(HEADER + "".join(rows))
    panels = {panel.title: panel.lines for panel in curve_panels(read_history(tmp_path), ("a", "b"))}
    assert panels == {
        "Loss": {"train": [(10, 2.0)], "test": [(10, 1.5)], "test_other": [(10, 1.4)]},
        "Accuracy": {"test": [(10, 0.5)], "test_other": [(10, 0.7)]},
        "Recall of each class": {"a": [(10, 0.4)], "b": [(10, 0.6)]},
        "Learning Rate": {"train": [(10, 0.1)]},
        "Speed": {"train": [(10, 50.0)]},
    }


def test_a_class_whose_name_ends_another_s_has_its_own_line(tmp_path: Path) -> None:
    header = "iter,epoch,split,lr,G_loss,images_per_s,recall_dog,recall_hot_dog,MAE\n"
    (tmp_path / "metrics.csv").write_text(header + "10,0,test,.1,1.5,,.4,.6,2\n")
    panels = {panel.title: panel.lines for panel in curve_panels(read_history(tmp_path), ("dog", "hot_dog"))}
    assert panels["Recall of each class"] == {"dog": [(10, 0.4)], "hot_dog": [(10, 0.6)]}
    assert "MAE" in panels


def test_classes_whose_names_end_in_numbers_are_called_by_their_names(tmp_path: Path) -> None:
    header = "iter,epoch,split,lr,G_loss,images_per_s,recall_zone_0,recall_zone_1\n"
    (tmp_path / "metrics.csv").write_text(header + "10,0,test,.1,1.5,,.4,.6\n")
    panels = {panel.title: panel.lines for panel in curve_panels(read_history(tmp_path), ("zone_0", "zone_1"))}
    assert panels["Recall of each class"] == {"zone_0": [(10, 0.4)], "zone_1": [(10, 0.6)]}


def test_a_metric_whose_name_ends_in_a_number_is_one_of_all_tests(tmp_path: Path) -> None:
    header = "iter,epoch,split,lr,G_loss,images_per_s,top_5,range_0,range_1\n"
    (tmp_path / "metrics.csv").write_text(header + "10,0,test,.1,1.5,,.4,.1,.2\n10,0,test_b,.1,1.5,,.6,.3,.4\n")
    panels = {panel.title: panel.lines for panel in curve_panels(read_history(tmp_path), ())}
    assert panels["Top 5"] == {"test": [(10, 0.4)], "test_b": [(10, 0.6)]}
    assert panels["Range of each class"] == {"0": [(10, 0.1)], "1": [(10, 0.2)]}


@pytest.mark.parametrize(
    ("columns", "value_names"),
    [
        ("range_0,range_1,range_2,top_2", ()),  # in metrics.csv it comes last if a later launch has added it
        ("range_0,range_1,range_2,top_2", ("0", "1", "2")),
        ("top_2,range_0,range_1,range_2", ("0", "1", "2")),
    ],
)
def test_a_number_in_the_name_of_a_metric_is_no_class(
    columns: str, value_names: tuple[str, ...], tmp_path: Path
) -> None:
    header = f"iter,epoch,split,lr,G_loss,images_per_s,{columns}\n"
    (tmp_path / "metrics.csv").write_text(header + "10,0,test,.1,1.5,,.4,.4,.4,.4\n")
    panels = {panel.title: panel.lines for panel in curve_panels(read_history(tmp_path), value_names)}
    assert panels["Top 2"] == {"test": [(10, 0.4)]}
    assert panels["Range of each class"] == {each: [(10, 0.4)] for each in ("0", "1", "2")}


def test_a_panel_without_any_finite_value_is_empty() -> None:
    lines = {name: [(1, float("nan")), (2, float("nan"))] for name in ("test", "test_b")}
    assert not panel_figure(Panel("Loss", "", lines)).axes[0].texts


@pytest.mark.parametrize("ends", [[0.99, 1.0, 0.98, 0.1], [0.0, 0.01, 0.02, 1.0], [0.5] * 10])
def test_the_names_of_lines_stay_apart_and_beside_their_panel(ends: list[float]) -> None:
    lines = {f"line {number}": [(1, 0.0), (2, 1.0), (3, end)] for number, end in enumerate(ends)}
    axes = panel_figure(Panel("Recall", "", lines)).axes[0]
    heights = {text.get_text(): text.get_position()[1] for text in axes.texts}
    assert heights.keys() == lines.keys()
    in_order = sorted(heights.values())
    assert in_order[0] > -0.01
    assert in_order[-1] < 1.01
    assert min(np.diff(in_order)) > 0.08
    assert sorted(ends) == [ends[int(name.split()[1])] for name in sorted(heights, key=lambda name: heights[name])]


@pytest.mark.parametrize("best_iter", [1, 6, 12])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("values", [range(12), [11, *range(11)], [0.5] * 12], ids=["rising", "falls at once", "flat"])
def test_the_best_value_is_written_in_the_panel_and_not_across_its_line(
    values: Sequence[float], sign: int, best_iter: int
) -> None:
    series = [(iteration, sign * (value + 0.123)) for iteration, value in enumerate(values, 1)]
    figure = panel_figure(Panel("Loss", "", {"test": series}), best_iter=best_iter)
    figure.canvas.draw()
    axes = figure.axes[0]
    (label,) = [text for text in axes.texts if text.get_text() == f"{series[best_iter - 1][1]:.4g}"]
    inside, extent = axes.get_window_extent(), label.get_window_extent()
    assert inside.x0 < extent.x0 < extent.x1 < inside.x1
    assert inside.y0 < extent.y0 < extent.y1 < inside.y1
    if best_iter in (1, 12):  # an extreme, or on a slope so flat that both sides are free
        iterations, drawn = np.asarray(series).T
        fine = np.linspace(1, 12, 1000)
        line = axes.transData.transform(np.stack([fine, np.interp(fine, iterations, drawn)], axis=1))
        assert not any(extent.contains(*point) for point in line)


def test_a_best_value_that_is_not_finite_has_no_place() -> None:
    lines = {"test": [(1, 0.5), (2, float("nan"))]}
    assert not panel_figure(Panel("Recall", "", lines), best_iter=2).axes[0].texts


def test_values_beside_nan_are_seen_and_lines_named_in_their_order() -> None:
    """What is not finite has no place in a diagram: a gap, but neither a lost value nor a lost or shifted name."""
    nan, inf = float("nan"), float("inf")
    lines = {
        "high": [(1, 0.9), (2, nan), (3, 0.8)],
        "absent": [(1, nan), (2, nan), (3, nan)],
        "low": [(1, 0.1), (2, 0.2), (3, 0.1)],
        "ends": [(1, 0.5), (2, 0.4), (3, inf)],
    }
    axes = panel_figure(Panel("Recall", "", lines)).axes[0]
    assert [line.get_markevery() for line in axes.get_lines()] == [[0, 2], [], [], []]
    names = sorted(axes.texts, key=lambda text: text.get_position()[1])
    assert [text.get_text() for text in names] == ["low", "ends", "high"]
    gap = panel_figure(Panel("Loss", "", {"train": [(1, 2.0), (2, 1.0), (9, nan)], "test": [(9, nan)]})).axes[0]
    assert gap.get_xlim()[1] > 9, "where it is not finite any more belongs to the run"
    assert [text.get_text() for text in gap.texts] == ["train"]


def test_long_names_leave_their_panel_its_width() -> None:
    names = [f"fer_resnet of three stages, seed {number}, {'and so on ' * 5 * number}" for number in range(3)]
    panel = Panel("Accuracy", "", {name: [(1, 0.0), (2, float(i))] for i, name in enumerate(names)})
    figure = panel_figure(panel)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    assert axes.get_position().width > 0.8
    assert axes.get_window_extent().height == pytest.approx(panel_height(), rel=0.05)
    assert " ".join(text.get_text() for text in axes.texts) == " ".join(reversed(names)).strip().replace("  ", " ")
    places = [text.get_window_extent() for text in axes.texts]
    assert all(figure.bbox.x0 < each.x0 and each.x1 < figure.bbox.x1 and figure.bbox.y0 < each.y0 for each in places)
    assert all(above.y0 > below.y1 - 1 for above, below in itertools.pairwise(places))


def panel_height() -> float:
    """Pixels of a panel whose names are short."""
    figure = panel_figure(Panel("Accuracy", "", {"a": [(1, 0.0)], "b": [(1, 2.0)]}))
    figure.draw_without_rendering()
    return float(figure.axes[0].get_window_extent().height)
