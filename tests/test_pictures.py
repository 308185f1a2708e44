"""images/ of a run: of its best model, never often, and never at the cost of the run."""

import csv
import dataclasses
import gc
import io
import logging
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.text import Text

import main_train
import views.pictures
from tests.helpers import changed, contrast, messages, tiny_option_mapping, write_options
from tests.own_parts import Launch, launch
from tests.trained_models import Command, command, trained
from utils.utils_curves import Panel, curves_figure
from utils.utils_report import inline_svg
from utils.utils_visualise import Classified, classified_figure, confusion_figure, save_figure
from views.pictures import BestModelPictures, rows_to_show, write_samples
from views.test_outputs import TestOutputs
from views.view_base import Sample, View
from views.view_classification import ClassificationView

__all__ = ["command", "launch", "trained"]  # fixtures


def nowhere(_tag: str, _figure: object, _current_iter: int) -> None:
    """TensorBoard is off."""


RESULT = {"confusion_matrix": [[1.0, 1.0], [0.0, 2.0]]}
PICTURES = {"best_confusion.png", "best_right.png", "best_wrong.png", "curves.png"}


class Images:
    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input": torch.full((1, 8, 8), index, dtype=torch.uint8), "name": f"sample {index}"}


def test_a_run_leaves_pictures_of_its_best_model(trained: Path) -> None:
    images = trained.parent / "images"
    assert {path.name for path in images.glob("*.png")} == PICTURES
    for path in images.glob("*.png"):
        assert cv2.imread(str(path)).std() > 10, f"{path} is blank"


def outputs() -> TestOutputs:
    found = TestOutputs()
    for index in ([5, 3], [4, 9]):
        logits = torch.tensor([[2.0, 0.0], [0.0, float(index[0])]])
        found.add({"index": np.array(index)}, logits, torch.tensor([0, index[1] % 2]))
    return found


def test_samples_are_those_of_the_data_set_with_these_outputs() -> None:
    chosen = outputs().choose(ClassificationView("ab"), Images(), 3, wrong=False)
    assert {row: [each.name for each in samples] for row, samples in chosen.items()} == {
        "a": ["sample 5", "sample 4"],
        "b": ["sample 3", "sample 9"],
    }
    sample = chosen["b"][0]
    assert (sample.image == 3).all()
    assert (sample.target, sample.output.tolist()) == (1, [0.0, 5.0])
    assert outputs().choose(ClassificationView("ab"), Images(), 3, wrong=True) == {"a": [], "b": []}


@pytest.mark.parametrize("named", [{}, {"name": 5}])
def test_a_sample_without_a_name_is_shown_by_its_index(tmp_path: Path, named: dict[str, int]) -> None:
    class Nameless(Images):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"input": super().__getitem__(index)["input"], **named}

    view = ClassificationView("ab")
    chosen = outputs().choose(view, Nameless(), 1, wrong=False)
    written = write_samples(view, {"a": chosen["a"]}, False, tmp_path)
    assert [path.name for path in written] == ["right_1_5.png", "right.png"]


@dataclasses.dataclass
class Clock:
    now: float = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(views.pictures, "time", found)
    return found


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> list[str]:
    """Titles of what was drawn; a drawing takes two seconds."""
    titles: list[str] = []

    def draw(_: BestModelPictures, _iter: int, title: str, *_rest: object) -> None:
        clock.now += 2
        titles.append(title)

    monkeypatch.setattr(BestModelPictures, "_draw", draw)
    return titles


def test_pictures_take_a_fiftieth_of_the_time_and_the_last_best_is_drawn(
    tmp_path: Path, clock: Clock, drawn: list[str]
) -> None:
    pictures = BestModelPictures(tmp_path, ClassificationView("ab"), Images(), nowhere)
    for second in range(300):
        clock.now += 1
        pictures.tested(second, f"{second}", RESULT, outputs(), is_best=True)
    assert drawn == ["0", "100", "200"]
    pictures.tested(300, "a worse one", RESULT, outputs(), is_best=False)
    pictures.finish(299)
    pictures.finish(299)
    assert drawn == ["0", "100", "200", "299"]


def test_drawing_is_no_part_of_the_speed_of_training(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    clock = time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + 9999 * len(drawn))
    monkeypatch.setattr(BestModelPictures, "_draw", lambda *_: drawn.append("for hours"))
    assert launch(val__save_img=True) == 0
    assert drawn
    with open(tmp_path / "own" / "metrics.csv", newline="") as file:
        speeds = [float(row["images_per_s"]) for row in csv.DictReader(file) if row["split"] == "train"]
    assert len(speeds) == 3
    assert min(speeds) > 1


def test_pictures_of_generated_samples_say_so(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the real ones nothing else tells a confusion matrix of theirs from one of the real task."""
    titles: list[str] = []
    monkeypatch.setattr(views.pictures, "save_figure", lambda figure, _path: titles.append(title_of(figure)))
    few = {"dataset_type": "synthetic_faces", "num_training": 16, "num_public_test": 8, "num_private_test": 8}
    options = changed(
        tiny_option_mapping(tmp_path, csv=str(tmp_path / "absent.csv")), datasets__train__fallback=few,
        train__total_iter=2, val={"metrics": ["accuracy", "confusion_matrix"], "best_metric": "accuracy"},
    )  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["main_train.py", "-opt", str(write_options(options, tmp_path / "o.json"))])
    assert main_train.main() == 0
    assert [title.endswith(", epoch 0, SYNTHETIC") for title in titles if "iteration 2" in title] == [True] * 3
    assert command("samples", tmp_path / "tiny") == 0
    assert titles[-1] == "The most certain right predictions, SYNTHETIC"


def title_of(figure: Any) -> str:
    return str(figure.get_suptitle() or figure.axes[0].get_title()).partition("\n")[0]


def test_a_drawing_leaves_no_figure_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two drawings nothing may make Python look for cycles."""
    figures: list[weakref.ref[Any]] = []
    monkeypatch.setattr(views.pictures, "save_figure", lambda figure, _path: figures.append(weakref.ref(figure)))
    (tmp_path / "metrics.csv").write_text("iter,epoch,split,lr,G_loss\n1,0,train,.1,2.0\n")
    pictures = BestModelPictures(tmp_path, ClassificationView("ab"), Images(), nowhere)
    gc.disable()
    try:
        pictures.tested(1, "first", RESULT, outputs(), is_best=True)
        assert [figure() for figure in figures] == [None] * len(PICTURES)
    finally:
        gc.enable()


def test_a_disk_that_is_full_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    (tmp_path / "metrics.csv").write_text("iter,epoch,split,lr,G_loss\n1,0,train,.1,2.0\n")
    pictures = BestModelPictures(tmp_path, ClassificationView("ab"), Images(), nowhere)
    pictures.tested(1, "first", RESULT, outputs(), is_best=True)
    pictures.finish(1)
    said = messages(logged.records, logging.ERROR)
    assert "The pictures of the best model could not be written: [Errno 28]" in said
    assert "The curves could not be written: [Errno 28]" in said


def test_a_drawing_that_fails_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("cannot draw this")

    monkeypatch.setattr(ClassificationView, "figures", fail)
    pictures = BestModelPictures(tmp_path, ClassificationView("ab"), Images(), nowhere)
    pictures.tested(1, "first", RESULT, outputs(), is_best=True)
    assert "could not be written: cannot draw this" in messages(logged.records, logging.ERROR)


def test_a_task_of_which_nothing_is_known_has_its_curves(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "metrics.csv").write_text("iter,epoch,split,lr,G_loss\n1,0,train,.1,2.0\n")
    pictures = BestModelPictures(tmp_path, View(), Images(), nowhere)
    pictures.tested(1, "first", {"loss": 1.0}, outputs(), is_best=True)
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["curves.png"]


def test_of_many_classes_as_much_is_drawn_as_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And in a picture that memory holds: a cell of half an inch for each of a thousand classes takes 14 GB."""
    figures: list[Any] = []
    monkeypatch.setattr(views.pictures, "save_figure", lambda figure, _path: figures.append(figure))
    names = [f"class {number}" for number in range(1000)]
    logits = torch.arange(1000.0) / 100
    sample = Sample("x", torch.zeros(1, 8, 8), torch.tensor(3), logits)
    view, chosen = ClassificationView(names), {name: [sample] if name[-1] == "3" else [] for name in names}
    write_samples(view, dict(list(chosen.items())[3:4]), True, tmp_path)
    write_samples(view, chosen, True, tmp_path)
    assert [text.get_text() for text in figures[0].axes[1].get_yticklabels()] == [
        "* class 3", *(f"class {number}" for number in range(988, 1000)),
    ]  # fmt: skip
    assert list(view.card(sample).bars) == ["class 3", *(f"class {number}" for number in range(988, 1000))]
    assert figures[-1].get_suptitle().startswith("The most certain wrong predictions, 20 of 1,000 rows")
    assert len(figures[-1].axes) == 2 * 20, "a row for each of the first classes that have a sample"
    assert set(rows_to_show(dict.fromkeys(names, ()))) == set(names[:20]), "none has"
    assert rows_to_show(dict.fromkeys(names[:20], ())) == dict.fromkeys(names[:20], ())


@pytest.mark.parametrize(("num_classes", "num_texts", "num_names"), [(40, 1600, 40), (41, 0, 41), (1000, 0, 0)])
def test_a_confusion_matrix_of_many_classes_is_shaded_alone(num_classes: int, num_texts: int, num_names: int) -> None:
    names = [f"class {number}" for number in range(num_classes)]
    figure = confusion_figure(np.eye(num_classes).tolist(), names, "many")
    assert len(figure.axes[0].texts) == num_texts
    assert sum(text.get_text() in names for text in figure.axes[0].get_yticklabels()) == num_names
    assert max(figure.get_size_inches()) < 30


def test_the_numbers_of_a_confusion_matrix_are_legible_on_every_colour() -> None:
    counts = [[share, 100 - share] for share in range(0, 101, 2)]
    axes = confusion_figure(counts, ["a", "b"], "all shares").axes[0]
    shades = axes.images[0].to_rgba(np.array(counts) / 100)
    for text in axes.texts:
        column, row = map(int, text.get_position())
        assert contrast(shades[row, column, :3], to_rgb(text.get_color())) > 4


def test_a_long_name_leaves_room_for_the_picture_beside_it() -> None:
    names = [f"a class of many words, and of its kind the one of number {number}" for number in (1, 2)]
    cell = Classified(np.zeros((3, 8, 8), np.uint8), 0, [0.75, 0.25])
    figure = classified_figure([[cell], []], names, names, "long")
    figure.savefig(io.BytesIO())
    image, bars, empty = figure.axes
    shown = [text.get_text() for text in bars.get_yticklabels()]
    assert shown == ["* a class of m\u2026of number 1", "a class of m\u2026of number 2"]
    assert image.get_title(loc="left") == "a class of m\u2026of number 1 0.75"
    assert empty.texts[0].get_text() == "a class of m\u2026of number 2:\nnone"
    assert image.get_window_extent().width > 80
    matrix = confusion_figure([[1, 2], [3, 4]], names, "long")
    assert [text.get_text() for text in matrix.axes[0].get_xticklabels()] == [shown[0][2:], shown[1]]


@pytest.mark.filterwarnings("always:Glyph")
def test_a_character_that_the_font_lacks_is_said_once(
    tmp_path: Path, logged: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    for number in range(3):
        figure = confusion_figure([[1, 2], [3, 4]], ["a", "\u9df9"], "birds")
        save_figure(figure, tmp_path / f"{number}.png")
        assert "\u9df9" in inline_svg(figure, "birds")
    assert messages(logged.records, logging.WARNING).count("Glyph 40441 ") == 1
    assert not recwarn.list


def test_a_dollar_in_a_name_begins_no_formula() -> None:
    names = ["$5 to $10", "a$x^$"]
    sample = Sample("x", torch.zeros(1, 8, 8), torch.tensor(0), torch.zeros(2))
    lines = {name: [(1, 0.0), (2, 1.0)] for name in names}
    for figure in (
        confusion_figure([[1, 2], [3, 4]], names, "a$x^$"),
        ClassificationView(names).samples_figure({names[0]: [sample], names[1]: []}, "a$x^$"),
        curves_figure([Panel("Recall", "", lines)], "a$x^$"),
    ):
        figure.savefig(io.BytesIO())  # raised
        assert not any(text.get_parse_math() for text in figure.findobj(Text))
