"""`main_test.py infer`: what is said of images, folders, globs, videos and a camera, and of what cannot be read."""

import csv
import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import matplotlib.cbook
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import commands.infer
from commands.infer_files import Tables
from commands.media import Frame, Medium
from commands.trained_model import TrainedModel
from data.synthetic_faces import labelled_face
from models.select_network import define_G
from tests.trained_models import CLASSES, Command, command, trained
from utils import utils_option
from views.drawing import draw_headlines, fitted
from views.view_base import Box, Finding, View, whole
from views.view_faces import FaceView

__all__ = ["command", "trained"]  # fixtures

Pixels = NDArray[np.uint8]


@pytest.fixture
def infer(trained: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run infer in an empty folder, with annotated copies in its `out`; the inputs come first."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> int:
        return command("infer", trained / "best_model.pth", "--output", "out", "--input", *arguments)

    return run


def probabilities(trained: Path, crop: Pixels) -> NDArray[np.float32]:
    """What the network says of a grey 48x48 face, from its file alone."""
    content = torch.load(trained / "best_model.pth", weights_only=True)
    net = define_G(utils_option.validate(content["options"]).netG).eval()
    net.load_state_dict(content["model_state_dict"])
    with torch.no_grad():
        return net((torch.from_numpy(crop)[None, None].float() / 255 - 0.5) / 0.25)[0].softmax(0).numpy()


def noise(seed: int, *shape: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape or (48, 48), np.uint8)


def drawn_face(number: int, side: int) -> Pixels:
    return cv2.resize(labelled_face(0, "PrivateTest", number)[1], (side, side), interpolation=cv2.INTER_CUBIC)


PLACES = ((0, 40, 60, 200), (2, 330, 130, 150))  # number of a face that the cascade finds, left, top, side


def party(shift: int = 0) -> Pixels:
    """Two faces on a grey wall."""
    picture = np.full((320, 560, 3), 128, np.uint8)
    for number, left, top, side in PLACES:
        picture[top : top + side, left + shift : left + shift + side] = drawn_face(number, side)[..., None]
    return picture


def save(path: str, image: Pixels) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(cv2.imencode(Path(path).suffix, image)[1].tobytes())
    return Path(path)


def save_video(path: str, frames: list[Pixels], code: str = "mp4v", fps: float = 12.5) -> Path:
    writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*code), fps, frames[0].shape[1::-1])
    for frame in frames:
        writer.write(frame)
    writer.release()
    return Path(path)


def read_video(path: str) -> tuple[float, list[Pixels]]:
    capture, frames = cv2.VideoCapture(path), []
    while (read := capture.read())[0]:
        frames.append(read[1])
    return capture.get(cv2.CAP_PROP_FPS), frames


def rows_of(path: str) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def said(row: dict[str, str]) -> list[float]:
    return [float(row[label]) for label in CLASSES]


def test_crops_get_the_probabilities_of_the_network_alone(
    trained: Path, infer: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    crops = [noise(i) for i in range(5)]
    for i, crop in enumerate(crops):
        save(f"crops/{i}.png", crop)
    save("crops/3.png", np.stack([crops[3]] * 3, axis=-1))  # the same in colour, and in 16 bits
    save("crops/4.png", crops[4].astype(np.uint16) * 257)
    assert infer("crops", "--no_detect", "--csv", "all.csv", "--json", "all.json", "--batch_size", 2) == 0
    shown = capsys.readouterr().out
    rows = rows_of("all.csv")
    assert [row["file"] for row in rows] == [f"crops/{i}.png" for i in range(5)]
    frames = json.loads(Path("all.json").read_text())["frames"]
    for row, frame, crop in zip(rows, frames, crops, strict=True):
        expected = probabilities(trained, crop)
        assert said(row) == pytest.approx(expected, abs=1e-5)
        assert row["class"] == CLASSES[expected.argmax()]
        assert f"{row['file']}  {row['class']} {expected.max():.3f}\n" in shown
        assert [row[f"box_{side}"] for side in ("left", "top", "width", "height")] == ["0", "0", "48", "48"]
        (found,) = frame["found"]
        assert {label: str(found[label]) for label in CLASSES} == {label: row[label] for label in CLASSES}
    assert "face" not in shown


def test_faces_are_found_where_they_are_and_classified_one_by_one(
    trained: Path, infer: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    save("party.png", party())
    assert infer("party.png", "--csv", "faces.csv") == 0
    shown, rows = capsys.readouterr().out, rows_of("faces.csv")
    assert [row["number"] for row in rows] == ["1", "2"]
    grey = np.pad(cv2.cvtColor(party(), cv2.COLOR_BGR2GRAY), 100, "edge")
    for row, (_, left, top, side) in zip(rows, PLACES, strict=True):
        box = [int(row[f"box_{name}"]) for name in ("left", "top", "width", "height")]
        assert overlap(box, [left, top, side, side]) > 0.7
        x, y, width, height = box
        crop = cv2.resize(grey[100 + y :, 100 + x :][:height, :width], (48, 48), interpolation=cv2.INTER_AREA)
        assert said(row) == pytest.approx(probabilities(trained, crop), abs=1e-5)
        place = f"party.png  face {row['number']} at ({', '.join(map(str, box))})  "
        assert f"{place}{row['class']} {float(row['probability']):.3f}\n" in shown
    annotated = cv2.imread("out/party.png")
    changed = np.abs(annotated.astype(int) - party()).max(axis=2) > 0
    assert changed[:, 300:].any()
    assert changed[:, :240].any()
    assert not changed[290:].any()  # below the boxes
    assert not changed[130:200, 250:310].any()  # between them


def overlap(first: list[int], second: list[int]) -> float:
    """Intersection over union of two (left, top, width, height)."""
    sides = [max(0, min(first[i] + first[i + 2], second[i] + second[i + 2]) - max(first[i], second[i])) for i in (0, 1)]
    shared = sides[0] * sides[1]
    return shared / (first[2] * first[3] + second[2] * second[3] - shared)


def test_a_photographed_face_is_found_in_any_size() -> None:
    photo = cv2.imread(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    for scale in (0.3, 1.0, 6.0):
        (box,) = FaceView(CLASSES).find(cv2.resize(photo, None, fx=scale, fy=scale))
        place = [side / scale for side in (box.left, box.top, box.width, box.height)]
        assert overlap([round(side) for side in place], [145, 95, 240, 240]) > 0.7


def test_an_image_without_a_face_says_so_and_is_no_failure(infer: Command, capsys: pytest.CaptureFixture[str]) -> None:
    for name, shape in (("wall.jpg", (90, 120, 3)), ("dot.png", (1, 1)), ("strip.png", (3, 500, 3))):
        save(name, np.full(shape, 90, np.uint8))
    names = ("wall.jpg", "dot.png", "strip.png")
    assert infer(*names, "--csv", "none.csv") == 0
    shown = capsys.readouterr().out
    assert all(f"{name}: no face found; --no_detect takes the whole image" in shown for name in names)
    assert rows_of("none.csv") == []
    assert not Path("out").exists()
    assert infer(*names, "--no_detect", "--csv", "all.csv") == 0
    assert len(rows_of("all.csv")) == 3
    headers = [Path(name).read_text().splitlines()[0] for name in ("none.csv", "all.csv")]
    assert headers[0] == headers[1], "whoever reads the table finds its columns"
    assert min(cv2.imread("out/dot.png").shape[:2]) >= 200  # a text fits


def test_a_folder_and_a_glob_stand_for_their_images_and_copies_keep_their_tree(infer: Command) -> None:
    for name in ("in/b/x.png", "in/a/x.png", "in/ä [1]/日本.jpg", "in/.hidden/x.png", "in/a/.x.png", "in/top.bmp"):
        save(name, noise(0))
    Path("in/notes.txt").write_text("no image, and in a folder not meant")
    assert infer("in", "--no_detect", "--csv", "folder.csv") == 0
    names = [row["file"] for row in rows_of("folder.csv")]
    assert names == ["in/top.bmp", "in/a/x.png", "in/b/x.png", "in/ä [1]/日本.jpg"]
    written = sorted(str(path) for path in Path("out").rglob("*.*"))
    assert written == ["out/a/x.png", "out/b/x.png", "out/top.bmp.png", "out/ä [1]/日本.jpg"]
    assert infer("in/**/x.png", "in/a/x.png", "in/ä [1]/日本.jpg", "--no_detect", "--csv", "glob.csv") == 0
    assert [row["file"] for row in rows_of("glob.csv")] == ["in/a/x.png", "in/b/x.png", "in/ä [1]/日本.jpg"]
    assert infer("in/b/x.png", "in/b/../a/x.png", Path("in/a/x.png").resolve(), "--no_detect", "--csv", "c") == 0
    assert [row["file"] for row in rows_of("c")] == ["in/b/x.png", "in/b/../a/x.png"]


def test_copies_of_an_earlier_run_are_no_inputs(infer: Command) -> None:
    save("a.png", noise(0))
    for _ in range(2):
        assert infer(".", "--no_detect", "--json", "found.json") == 0
        assert [frame["file"] for frame in json.loads(Path("found.json").read_text())["frames"]] == ["a.png"]


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(infer: Command, capfd: pytest.CaptureFixture[str]) -> None:
    whole = save("in/whole.jpg", noise(0)).read_bytes()
    Path("in/cut.jpg").write_bytes(whole[: len(whole) // 2])
    Path("in/cut.bmp").write_bytes(save("whole.bmp", noise(0)).read_bytes()[:-99])
    Path("in/text.jpg").write_text("not an image at all\n")
    Path("in/empty.png").touch()
    Path("in/loop.png").symlink_to("loop.png")
    Path("in/text.mp4").write_text("not a video at all\n")
    Path("in/empty.avi").touch()
    Path("nothing").mkdir()
    Path("nothing/notes.txt").touch()
    save("in/zoo.png", noise(1))
    inputs = ("in", "nothing", "gone.png", "*.tiff")
    assert infer(*inputs, "--no_detect", "--csv", "rest.csv", "--json", "rest.json") == 1
    reasons = {
        "nothing": "the folder holds no image and no video",
        "gone.png": "no such file or folder",
        "*.tiff": "no image and no video matches",
        "in/cut.bmp": "a BMP that is truncated",
        "in/cut.jpg": "a JPEG that is truncated",
        "in/empty.avi": "the file is empty",
        "in/empty.png": "the file is empty",
        "in/loop.png": "symbolic link",
        "in/text.jpg": "not an image",
        "in/text.mp4": "not a video",
    }
    failed = json.loads(Path("rest.json").read_text())["failed"]
    assert [each["file"] for each in failed] == list(reasons)
    lines = capfd.readouterr().err.strip().splitlines()
    for line, each, reason in zip(lines, failed, reasons.values(), strict=True):  # nothing else stands there
        assert reason in each["reason"]
        assert line.endswith(f"  {each['file']}: {each['reason']}")
    assert [row["file"] for row in rows_of("rest.csv")] == ["in/whole.jpg", "in/zoo.png"]
    assert Path("out/zoo.png").is_file()


def test_an_empty_name_is_not_the_working_directory(infer: Command, capsys: pytest.CaptureFixture[str]) -> None:
    """As "$PHOTO" is where a script has not set it."""
    save("a.png", noise(0))
    assert infer("", "--no_detect") == 1
    assert "'': no such file or folder" in capsys.readouterr().err


def test_a_long_number_is_no_camera(infer: Command, capsys: pytest.CaptureFixture[str]) -> None:
    """As the name of a folder of photos that is not there; OpenCV has no word for an index that long."""
    assert infer("20260101123059") == 1
    assert "20260101123059: no such file or folder" in capsys.readouterr().err


def test_nothing_to_read_is_1(infer: Command, capsys: pytest.CaptureFixture[str]) -> None:
    Path("nothing").mkdir()
    assert infer("nothing") == 1
    assert "nothing: the folder holds no image and no video (.jpg" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["best_model.pth", "final_model.pth", "60_G.pth", "60_E.pth", ""])
def test_any_kind_of_model_draws_into_the_images_of_its_experiment(
    trained: Path, command: Command, tmp_path: Path, model: str
) -> None:
    crop = save(str(tmp_path / "a.png"), noise(0))
    copy = trained.parent / "images" / "infer" / "a.png"
    copy.unlink(missing_ok=True)
    assert command("infer", trained / model if model else trained.parent, "--input", crop, "--no_detect") == 0
    assert copy.is_file()
    copy.unlink()
    assert command("infer", trained / "best_model.pth", "--input", crop, "--no_detect", "--no_draw") == 0
    assert not copy.exists()


@pytest.mark.parametrize("arguments", [("in", "--output", "in"), ("in/a.png", "--csv", "in/a.png")])
def test_an_input_is_never_overwritten(
    infer: Command, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    content = save("in/a.png", noise(0)).read_bytes()
    assert infer(*arguments, "--no_detect") == 2
    assert "is an input, and would be overwritten" in capsys.readouterr().err
    assert Path("in/a.png").read_bytes() == content


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a.png", "--batch_size", 0), "--batch_size: 0 is not allowed"),
        (("a.png", "--every", -1), "--every: -1 is not allowed"),
        (("a.png", "--csv", "."), "is a folder"),
        (("a.png", "--show"), "--show: "),
        (("0", "a.png"), "a camera is watched alone"),
    ],
)
def test_wrong_arguments_are_2_and_one_message(
    infer: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...], message: str,
) -> None:  # fmt: skip
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    save("a.png", noise(0))
    assert infer(*arguments, "--no_detect") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not Path("out").exists()


def test_letters_beyond_ascii_are_drawn_as_they_are_written() -> None:
    """OpenCV draws a question mark for each of their bytes."""
    ground = np.zeros((240, 320, 3), np.uint8)

    def drawn(text: str) -> NDArray[np.uint8]:
        picture = ground.copy()
        draw_headlines(picture, [(whole(picture), text)])
        return picture

    assert not np.array_equal(drawn("gl\u00fccklich 0.93"), drawn("gl\u00f6cklich 0.93"))
    assert (drawn("gl\u00fccklich 0.93")[..., 1] > 128).sum() > 100, "bright on a dark strip"
    assert not drawn("gl\u00fccklich 0.93")[40:].any(), "in its strip"
    assert np.array_equal(drawn("\u00fc" * 200)[60:], ground[60:])


def test_a_model_that_does_not_know_its_input_is_refused(
    infer: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = commands.infer.load_trained_model
    monkeypatch.setattr(
        commands.infer, "load_trained_model",
        lambda *arguments: dataclasses.replace(load(*arguments), input_shape=None),
    )  # fmt: skip
    save("a.png", noise(0))
    assert infer("a.png", "--no_detect") == 2
    assert "the size of the network's inputs; give best_model.pth" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_state_dict": {}}, "outputs are not finite"),
        ({"class_names": CLASSES[:6]}, "6 class_names, and for each input an output of shape (7,)"),
        ({"iter": "many"}, "not as a run writes it: invalid literal"),
        ({"options": [1]}, "not as a run writes it"),
        ({"input": None}, "not as a run writes it"),
    ],
)
def test_a_model_that_cannot_answer_is_refused(
    trained: Path, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any],
    message: str,
) -> None:  # fmt: skip
    content = torch.load(trained / "best_model.pth", weights_only=True)
    if "model_state_dict" in changes:
        weights = content["model_state_dict"]
        changes = {"model_state_dict": {name: each * float("nan") for name, each in weights.items()}}
    edited = tmp_path / "edited.pth"
    torch.save({**content, **changes}, edited)
    image = save(str(tmp_path / "a.png"), noise(0))
    assert command("infer", edited, "--input", image, "--no_detect", "--no_draw") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert str(edited) in line


# video and camera


@pytest.mark.parametrize("every", [1, 4])
def test_a_video_keeps_its_size_and_speed(infer: Command, every: int, capsys: pytest.CaptureFixture[str]) -> None:
    save_video("clip.mp4", [party(shift=2 * i) for i in range(9)])
    assert infer("clip.mp4", "--csv", "clip.csv", "--every", every, "--batch_size", 5) == 0
    rows = rows_of("clip.csv")
    numbers = range(1, 10, every)
    assert [int(row["frame"]) for row in rows] == [number for number in numbers for _ in PLACES]
    assert [float(row["seconds"]) for row in rows[::2]] == pytest.approx([(number - 1) / 12.5 for number in numbers])
    for row in rows[::2]:
        assert abs(int(row["box_left"]) - 45 - 2 * (int(row["frame"]) - 1)) < 12
    fps, frames = read_video("out/clip.mp4")
    assert fps == pytest.approx(12.5)
    assert [frame.shape for frame in frames] == [(320, 560, 3)] * 9
    for i, frame in enumerate(frames):  # a dark strip with a text above each face, also where --every leaves it out
        strip = frame[40:60, 60 + 2 * i : 200 + 2 * i]
        assert (strip.max(axis=2) < 70).mean() > 0.3, i
    assert "clip.mp4 at 0.00 s  face 1 at (" in capsys.readouterr().out


def test_a_video_without_a_face_says_so_once(infer: Command, capsys: pytest.CaptureFixture[str]) -> None:
    save_video("wall.mp4", [np.full((120, 160, 3), 90, np.uint8)] * 4)
    assert infer("wall.mp4") == 0
    assert capsys.readouterr().out.count("no face found") == 1


def test_of_a_truncated_video_the_frames_that_are_left_are_done(
    infer: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = save_video("whole.avi", [noise(i, 64, 64, 3) for i in range(30)], "MJPG").read_bytes()
    Path("cut.avi").write_bytes(whole[: len(whole) // 2])
    save("last.png", noise(0))
    assert infer("cut.avi", "last.png", "--no_detect", "--csv", "cut.csv") == 1
    num_frames = sum(row["file"] == "cut.avi" for row in rows_of("cut.csv"))
    assert 5 < num_frames < 25
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert f"cut.avi: truncated or damaged: only {num_frames} of its 30 frames can be read" in line
    assert len(read_video("out/cut.avi.mp4")[1]) == num_frames
    assert rows_of("cut.csv")[-1]["file"] == "last.png"


def test_where_mpeg_4_is_missing_a_video_becomes_motion_jpeg(infer: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    save_video("clip.mp4", [noise(i, 240, 250, 3) for i in range(4)])
    writer = cv2.VideoWriter

    class WithoutMpeg4:
        fourcc = staticmethod(writer.fourcc)

        def __new__(cls, path: str, code: int, *arguments: Any) -> Any:
            return writer() if code == writer.fourcc(*"mp4v") else writer(path, code, *arguments)

    monkeypatch.setattr(cv2, "VideoWriter", WithoutMpeg4)
    assert infer("clip.mp4", "--no_detect") == 0
    assert len(read_video("out/clip.mp4.avi")[1]) == 4


def test_ctrl_c_keeps_what_was_done(infer: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    save_video("clip.mp4", [noise(i, 240, 250, 3) for i in range(20)])
    num_drawn = iter(range(20))
    annotate = View.annotate

    def until_ctrl_c(self: View, *arguments: Any) -> Pixels:
        if next(num_drawn) == 7:
            raise KeyboardInterrupt
        return annotate(self, *arguments)

    monkeypatch.setattr(View, "annotate", until_ctrl_c)
    arguments = ("clip.mp4", "--no_detect", "--batch_size", 3, "--csv", "clip.csv", "--json", "clip.json")
    assert infer(*arguments) == 130
    assert len(rows_of("clip.csv")) == len(json.loads(Path("clip.json").read_text())["frames"]) == 8
    assert len(read_video("out/clip.mp4")[1]) == 7


class FakeCamera:
    """A cv2.VideoCapture that shows the two faces, and then nothing."""

    def __init__(self, index: int) -> None:
        self._left = 5 if index == 0 else 0

    def isOpened(self) -> bool:
        return self._left > 0

    def get(self, _property: int) -> float:
        return 0.0

    def read(self) -> tuple[bool, Pixels | None]:
        self._left -= 1
        return (True, party()) if self._left >= 0 else (False, None)

    def release(self) -> None:
        pass


@pytest.fixture
def window(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """OpenCV's windows without a screen: what is shown, and the keys that are pressed, -1 for none."""
    state: dict[str, Any] = {"shown": [], "keys": [], "is_open": False}
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "namedWindow", lambda *_: state.update(is_open=True))
    monkeypatch.setattr(cv2, "destroyAllWindows", lambda: state.update(is_open=False))
    monkeypatch.setattr(cv2, "imshow", lambda _, picture: state["shown"].append(picture))
    monkeypatch.setattr(cv2, "waitKey", lambda _: state["keys"].pop(0))
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: float(state["is_open"]))
    yield state
    assert not state["is_open"], "the window was left open"


def test_a_window_shows_each_image_until_a_key_is_pressed(infer: Command, window: dict[str, Any]) -> None:
    for i in range(3):
        save(f"in/{i}.png", noise(i, 3000, 1000, 3))
    window["keys"] = [-1, -1, ord(" "), -1, ord("q")]
    assert infer("in", "--no_detect", "--show", "--csv", "shown.csv") == 0
    assert [picture.shape for picture in window["shown"]] == [(1280, 427, 3)] * 2
    assert len(rows_of("shown.csv")) == 2


def test_a_camera_is_watched_until_q(
    trained: Path, command: Command, window: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cv2, "VideoCapture", FakeCamera)
    window["keys"] = [-1, -1, ord("q")]
    camera = ("infer", trained / "best_model.pth", "--input", "0", "--csv", "seen.csv", "--show")
    assert command(*camera) == 0
    assert [row["frame"] for row in rows_of("seen.csv")] == ["1", "1", "2", "2", "3", "3"]
    assert all(row["file"] == "camera 0" for row in rows_of("seen.csv"))
    assert not list(tmp_path.glob("**/*.mp4"))
    monkeypatch.undo()


def test_a_camera_that_ends_or_cannot_be_opened_is_named(
    infer: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", FakeCamera)
    assert infer("0") == 1
    assert "camera 0: no more images come after 5" in capsys.readouterr().err
    assert Path("out/camera_0.mp4").stat().st_size > 1000
    assert infer("7") == 1
    assert "camera 7: it cannot be opened" in capsys.readouterr().err


def test_a_build_and_a_machine_without_windows_say_so(
    infer: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> None:
        raise cv2.error("The function is not implemented. Rebuild the library with Windows, GTK+ 2.x or Cocoa support")

    save("a.png", noise(0))
    monkeypatch.setattr(cv2, "destroyAllWindows", missing)
    assert infer("a.png", "--show") == 2
    assert "pip install 'opencv-python<5', or leave --show out" in capsys.readouterr().err
    monkeypatch.setattr(cv2, "destroyAllWindows", lambda: None)
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delitem(os.environ, name, raising=False)
    assert infer("a.png", "--show") == 2
    assert "there is no display; leave --show out" in capsys.readouterr().err


# what the views say and draw


def test_a_box_beyond_the_border_repeats_it_and_colours_come_as_red_green_blue() -> None:
    image = noise(0, 6, 8, 3)
    beyond = fitted(image, Box(-2, 3, 7, 7), (3, 7, 7))
    assert np.array_equal(beyond, np.pad(image, [(0, 4), (2, 0), (0, 0)], "edge")[3:, :7, ::-1].transpose(2, 0, 1))
    grey = fitted(image, Box(1, 1, 3, 2), (1, 2, 3))
    luma = image[1:3, 1:4] @ [0.114, 0.587, 0.299]  # ITU-R BT.601
    assert np.abs(grey[0] - luma).max() <= 0.51


def test_a_task_without_a_view_of_its_own_shows_its_numbers(
    infer: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(TrainedModel, "view", lambda _: View())
    save("a.png", noise(0))
    assert infer("a.png", "--csv", "a.csv") == 0
    (row,) = rows_of("a.csv")
    numbers = [float(row[f"output_{i}"]) for i in range(7)]
    assert "a.png  " + " ".join(f"{number:.4g}" for number in numbers) in capsys.readouterr().out
    assert Path("out/a.png").is_file()


def test_a_class_that_is_named_as_a_column_has_one_of_its_own(tmp_path: Path) -> None:
    image, output = noise(0, 9, 9, 3), torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    view = FaceView(("box", "frame", "class", "cup"))
    with Tables(tmp_path / "a.csv", tmp_path / "a.json", tmp_path, view) as tables:
        tables.add(Frame(Medium("a.png", None), image, 5), [Finding(Box(3, 2, 4, 4), output)])
    (row,) = rows_of(str(tmp_path / "a.csv"))
    assert [row[name] for name in ("file", "frame", "number", "box_left", "class")] == ["a.png", "5", "1", "3", "cup"]
    columns = ("probability_of_box", "probability_of_frame", "probability_of_class", "cup")
    assert [float(row[name]) for name in columns] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    (frame,) = json.loads((tmp_path / "a.json").read_text())["frames"]
    assert frame["found"][0]["box"] == {"left": 3, "top": 2, "width": 4, "height": 4}


@pytest.mark.parametrize("ground", [0, 128, 255])
@pytest.mark.parametrize("height", [48, 300, 3000])
def test_the_text_is_legible_on_any_ground_and_size(ground: int, height: int) -> None:
    image = np.full((height, height * 3 // 2, 3), ground, np.uint8)
    finding = Finding(Box(height // 3, height // 2, height // 3, height // 3), torch.tensor([0.0] * 6 + [5.0]))
    picture = FaceView(CLASSES).annotate(image, [finding])
    assert (image == ground).all(), "drawn into the image itself"
    above = picture[: round(picture.shape[0] * 0.49)].astype(int)  # of the box
    letters = (above[..., 2] > 200) & (above[..., 0] < 150)
    rows = np.flatnonzero(letters.any(axis=1))
    assert len(rows) >= 8
    assert 0.01 < len(rows) / picture.shape[0] < 0.1
    around = above[rows[0] : rows[-1] + 1][:, np.flatnonzero(letters.any(axis=0))]
    assert 0.2 < (around.max(axis=2) < 60).mean() < 0.9, "letters on a dark strip"
