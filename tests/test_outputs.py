"""What main_test.py writes where it is told to: in nobody's way, and whole or not at all."""

import json
import os
import shutil
import stat
from pathlib import Path

import cv2
import numpy as np
import pytest

from commands import verify as verify_command
from commands.media import Video
from commands.outputs import write_output
from commands.trained_model import TrainedModel
from tests.helpers import tiny_csv
from tests.trained_models import Command, command, trained
from views.view_classification import ClassificationView

__all__ = ["command", "trained"]  # fixtures


def picture(path: Path | bytes) -> None:
    data = cv2.imencode(".png", np.random.default_rng(0).integers(0, 256, (48, 48), np.uint8))[1].tobytes()
    with open(path, "wb") as file:
        file.write(data)


def needed(trained: Path) -> list[Path]:
    """Files of a run that no output may replace, and its data."""
    experiment = trained.parent
    data = experiment.parent.parent / "fer2013.csv"
    options = next((experiment / "options").iterdir())
    names = ("best_model.pth", "60_E.pth", "60_manifest.json")
    return [*(trained / name for name in names), experiment / "metrics.csv", experiment / "status.json", options, data]


@pytest.mark.parametrize("number", range(7))
def test_no_output_replaces_what_a_run_needs(
    trained: Path, command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path, number: int
) -> None:
    path = needed(trained)[number]
    link = tmp_path / "link"
    link.symlink_to(path)
    before = path.read_bytes()
    picture(tmp_path / "face.png")
    infer = ("infer", trained / "best_model.pth", "--input", tmp_path / "face.png", "--no_detect", "--no_draw")
    tries: list[tuple[object, ...]] = [
        ("verify", trained.parent, "--json", path), ("verify", trained.parent, "--json", link),
        (*infer, "--csv", path), (*infer, "--json", path),
    ]  # fmt: skip
    if path.name != "fer2013.csv":  # a report does not read it
        tries.append(("report", trained.parent, "--recorded", "--output", path))
    for arguments in tries:
        assert command(*arguments) == 2, arguments
        assert "is needed as it is, and would be overwritten" in capsys.readouterr().err
        assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["best_model.pth", "60_E.pth"])
def test_the_option_file_that_is_given_is_not_replaced(
    trained: Path, command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    given = Path(shutil.copy(next((trained.parent / "options").iterdir()), tmp_path / "mine.json"))
    before = given.read_bytes()
    assert command("verify", trained / name, "-opt", given, "--json", given) == 2
    assert "is needed as it is, and would be overwritten" in capsys.readouterr().err
    assert given.read_bytes() == before


def test_two_outputs_of_one_name_and_a_folder_are_refused(
    trained: Path, command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    picture(tmp_path / "face.png")
    infer = ("infer", trained / "best_model.pth", "--input", tmp_path / "face.png", "--no_detect", "--no_draw")
    assert command(*infer, "--csv", tmp_path / "x", "--json", tmp_path / "x") == 2
    assert "give two names" in capsys.readouterr().err
    assert command("verify", trained.parent, "--json", tmp_path) == 2
    assert f"--json: {tmp_path} is a folder" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_found_before_the_work(
    trained: Path, command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(TrainedModel, "load", work)
    picture(tmp_path / "face.png")
    infer = ("infer", trained / "best_model.pth", "--input", tmp_path / "face.png", "--no_detect", "--no_draw")
    for tries in (
        (*infer, "--csv", tmp_path / "face.png" / "said.csv"), (*infer, "--json", tmp_path / "face.png" / "a" / "b"),
        ("verify", trained.parent, "--json", tmp_path / "face.png" / "verified.json"),
        ("samples", trained.parent, "--output", tmp_path / "face.png" / "samples"),
        ("export", trained.parent, "--output", tmp_path / "face.png" / "faces.onnx"),
        ("report", trained.parent, "--output", tmp_path / "face.png" / "report.html"),
    ):  # fmt: skip
        assert command(*tries) == 2, tries
        said = capsys.readouterr().err
        assert f"nothing can be written into {tmp_path / 'face.png'}" in said, tries
        assert "Not a directory; choose another place" in said
    assert [path.name for path in tmp_path.iterdir()] == ["face.png"]


def test_links_and_devices_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    write_output(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_output(tmp_path / "pipe", "said")
        assert os.read(reader, 10) == b"said"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_what_fails_before_its_first_image_leaves_the_older_table(
    trained: Path, command: Command, tmp_path: Path
) -> None:
    picture(tmp_path / "face.png")
    table = tmp_path / "keep.csv"
    infer = ("infer", trained / "best_model.pth", "--input", tmp_path / "face.png", "--no_detect", "--no_draw")
    assert command(*infer, "--csv", table) == 0
    before = table.read_text()
    assert before.count("\n") == 2
    assert command(*infer, "--csv", table, "--set", "netG.widths=[4,4]") == 2
    assert table.read_text() == before


def test_a_name_that_is_no_text_is_written_as_one(trained: Path, command: Command, tmp_path: Path) -> None:
    picture(os.fsencode(tmp_path) + b"/caf\xe9.png")
    said = tmp_path / "said.json"
    assert command("infer", trained / "best_model.pth", "--input", tmp_path, "--no_detect", "--no_draw",
                   "--csv", tmp_path / "said.csv", "--json", said) == 0  # fmt: skip
    assert json.loads(said.read_text())["frames"][0]["file"].endswith("caf\\xe9.png")
    assert "caf\\xe9.png" in (tmp_path / "said.csv").read_text()


def test_copies_of_two_inputs_never_share_a_name(
    trained: Path, command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("plain.bmp", "plain.bmp.png"):
        picture(tmp_path / name)
    arguments = ("infer", trained / "best_model.pth", "--input", tmp_path, "--no_detect", "--output", tmp_path / "out")
    assert command(*arguments) == 2
    assert "would both be" in capsys.readouterr().err
    (tmp_path / "plain.bmp.png").unlink()
    assert command(*arguments) == 0


def test_what_is_left_out_is_counted(
    trained: Path, command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("a.png", "b.jfif", "c.heic", "d.heic", "notes"):
        picture(tmp_path / name)
    assert command("infer", trained / "best_model.pth", "--input", tmp_path, "--no_detect", "--no_draw") == 0
    said = capsys.readouterr().out
    assert "not those of images or videos: 2 .heic, 1 without a suffix" in said
    assert "2 images" in said


def test_other_data_are_not_compared_and_have_pictures_of_their_own(
    trained: Path, command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert command("verify", trained.parent, "--output", out) == 0
    names = {path.name: path.read_bytes() for path in out.iterdir()}
    moved = tiny_csv(tmp_path / "moved", num_train=40, num_test=21)
    assert command("verify", trained.parent, "--output", out, "--set", f"datasets.test.dataroot={moved}") == 0
    assert "recorded          the same" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == names.keys(), "the same faces in another place"
    other = tiny_csv(tmp_path / "other", num_train=40, num_test=30, seed=5)
    assert command("verify", trained.parent, "--output", out, "--set", f"datasets.test.dataroot={other}") == 0
    said = capsys.readouterr().out
    assert "not compared: the run was tested on other data" in said
    assert other in said
    assert all((out / name).read_bytes() == content for name, content in names.items())
    assert len(list(out.iterdir())) == 2 * len(names)


def test_ctrl_c_is_one_line_and_130(
    trained: Path, command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verify_command, "measure", interrupted)
    assert command("verify", trained.parent) == 130
    assert "Stopped by Ctrl-C" in capsys.readouterr().err


def test_samples_of_one_class_that_are_all_right_are_no_doubt() -> None:
    view, happy = ClassificationView("ab"), [[0.0, 0.0], [0.0, 4.0]]
    assert view.doubts({"confusion_matrix": happy, "confidence": 0.9}) == []
    assert (
        "every sample is taken for b"
        in view.doubts({"confusion_matrix": [[0.0, 1.0], [0.0, 4.0]], "confidence": 0.9})[0]
    )


class Capture:
    """OpenCV's, of frames at these times."""

    def __init__(self, milliseconds: list[float]) -> None:
        self._times, self._now = iter(milliseconds), 0.0
        self._count = len(milliseconds)

    def read(self) -> tuple[bool, np.ndarray]:
        self._now = next(self._times, -1.0)
        return self._now >= 0, np.zeros((2, 2, 3), np.uint8)

    def get(self, what: int) -> float:
        return {cv2.CAP_PROP_FPS: 10.0, cv2.CAP_PROP_POS_MSEC: self._now, cv2.CAP_PROP_FRAME_COUNT: self._count}[what]


@pytest.mark.parametrize(
    ("milliseconds", "seconds"),
    [([0, 100, 600, 700], [0, 0.1, 0.6, 0.7]), ([0, 0, 0, 0], [0, 0.1, 0.2, 0.3])],
)
def test_each_frame_knows_its_own_time(milliseconds: list[float], seconds: list[float]) -> None:
    """Phones vary their rate; some containers say no times."""
    frames = list(Video("clip", Path("clip.mp4"))._frames_of(Capture(milliseconds)))  # type: ignore[arg-type]
    assert [frame.seconds for frame in frames] == pytest.approx(seconds)
