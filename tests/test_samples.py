"""`main_test.py samples`: the most certain right and wrong samples of each class, and nothing else."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from data.dataset_fer2013 import Fer2013
from models.select_network import define_G
from tests.trained_models import CLASSES, Command, command, trained
from utils import utils_option
from views.pictures import write_samples
from views.view_base import Sample
from views.view_classification import ClassificationView

__all__ = ["command", "trained"]  # fixtures

Said = dict[str, tuple[int, np.ndarray]]


@pytest.fixture
def said(trained: Path) -> Said:
    """Row of the CSV -> its true class and the probabilities, from the file and the CSV alone."""
    content = torch.load(trained / "best_model.pth", weights_only=True)
    opt = utils_option.validate(content["options"])
    net = define_G(opt.netG).eval()
    net.load_state_dict(content["model_state_dict"])
    result = {}
    for number, line in enumerate(Path(opt.datasets["train"].dataroot or "").read_text().splitlines()[1:], 2):
        label, pixels, usage = line.split(",")
        if usage == "PublicTest":
            face = np.array(pixels.split(), dtype=np.float32).reshape(1, 1, 48, 48) / 255
            with torch.no_grad():
                logits = net((torch.from_numpy(face) - 0.5) / 0.25)[0]
            result[f"row_{number}"] = int(label), logits.softmax(0).numpy()
    return result


@pytest.mark.parametrize("arguments", [(), ("--wrong",), ("--wrong", "--num_samples", 1)])
def test_the_most_certain_samples_of_each_class_are_written(
    trained: Path,
    command: Command,
    said: Said,
    tmp_path: Path,
    arguments: tuple[object, ...],
) -> None:
    num_samples, kind = (1 if 1 in arguments else 3), "wrong" if "--wrong" in arguments else "right"
    assert command("samples", trained / "best_model.pth", "--output", tmp_path, *arguments) == 0
    for class_id, label in enumerate(CLASSES):
        rows = {row: found for row, (true, found) in said.items() if true == class_id}
        fitting = [row for row, found in rows.items() if (found.argmax() == class_id) == (kind == "right")]
        best = sorted(fitting, key=lambda row: -rows[row].max())[:num_samples]
        names = sorted(path.name for path in (tmp_path / label).iterdir())
        assert names == [f"{kind}_{number}_{row}.png" for number, row in enumerate(best, 1)]
    assert cv2.imread(str(tmp_path / f"{kind}.png")).shape[1] > 300
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*CLASSES, f"{kind}.png"])


def test_fewer_samples_than_before_leave_none_behind(trained: Path, command: Command, tmp_path: Path) -> None:
    mine = tmp_path / CLASSES[0] / "right_of_way.png"
    assert command("samples", trained, "--output", tmp_path) == 0
    mine.write_bytes(b"mine")
    assert command("samples", trained, "--output", tmp_path, "--wrong", "--num_samples", 1) == 0
    assert command("samples", trained, "--output", tmp_path, "--num_samples", 1) == 0
    for label in CLASSES:
        numbers = [path.name.split("_")[1] for path in (tmp_path / label).glob("right_*.png") if path != mine]
        assert numbers in ([], ["1"])
    assert mine.read_bytes() == b"mine"


def test_without_a_folder_they_go_to_the_images_of_the_experiment(trained: Path, command: Command) -> None:
    assert command("samples", trained.parent) == 0
    assert (trained.parent / "images" / "samples" / "right.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--num_samples", 0), "must be at least 1"),
        (("--split", "Nonsense"), "Nonsense"),
        (("--set", "val.x=1"), "val.x"),
    ],
)
def test_wrong_arguments_are_2_and_one_message(
    trained: Path, command: Command, capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...], message: str
) -> None:
    assert command("samples", trained / "best_model.pth", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_task_without_a_view_of_its_samples_says_so(
    trained: Path, command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fer2013, "view", "plain")
    assert command("samples", trained.parent) == 2
    assert "no view of its samples" in capsys.readouterr().err


@pytest.mark.parametrize("title", [*ClassificationView.sample_titles.values(), "The most certain of very many " * 4])
def test_the_title_of_one_column_is_whole_and_above_the_pictures(title: str) -> None:
    sample = Sample("x", torch.zeros(1, 8, 8), torch.tensor(0), torch.zeros(3))
    figure: Any = ClassificationView(CLASSES[:3]).samples_figure({"angry": [sample]}, title)
    figure.savefig(io.BytesIO())
    (header,) = figure.texts
    place, page = header.get_window_extent(), figure.bbox
    assert page.x0 <= place.x0 < place.x1 <= page.x1
    assert place.y1 <= page.y1
    assert max(axes.get_tightbbox().y1 for axes in figure.axes) < place.y0


def test_any_name_of_a_class_is_one_folder_and_any_number_fits_into_the_picture(tmp_path: Path) -> None:
    """A picture of 200 columns is wider than matplotlib can draw; the single files are all there."""
    view = NumbersView(("T-shirt/top", "a\\b"))
    sample = Sample("x.png", torch.zeros(1, 8, 8), torch.tensor(0), torch.zeros(2))
    written = write_samples(view, {"T-shirt/top": [sample] * 200, "a\\b": [sample]}, False, tmp_path)
    assert {path.parent.relative_to(tmp_path).as_posix() for path in written} == {"T-shirt_top", "a_b", "."}
    assert len(set(written)) == 202
    assert view.widths == [1] * 201 + [20]


def test_classes_whose_names_differ_by_a_slash_have_a_folder_each(tmp_path: Path) -> None:
    names = ("a/b", "a_b", "a\\b", "a_b_")
    sample = Sample("x.png", torch.zeros(1, 8, 8), torch.tensor(0), torch.zeros(4))
    written = write_samples(NumbersView(names), {name: [sample] for name in names}, False, tmp_path)
    assert [path.parent.name for path in written[:-1]] == ["a_b__", "a_b", "a_b___", "a_b_"]
    assert all(path.is_file() for path in written)


class NumbersView(ClassificationView):
    """Draws nothing, and notes how many columns it was to draw."""

    def __init__(self, class_names: tuple[str, ...]) -> None:
        super().__init__(class_names)
        self.widths: list[int] = []

    def samples_figure(self, chosen: Mapping[str, Sequence[Sample]], title: str) -> Any:  # noqa: ARG002
        self.widths.append(max(map(len, chosen.values())))
        return Figure(figsize=(0.1, 0.1))
