"""The second task, from its option file through every command of main_test.py, with no code of the trainer's own."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
import torch

import main_train
from data.dataset_freihand import JOINT_NAMES, FreiHand
from tests.freihand_files import write_freihand
from tests.trained_models import Command, command
from utils import Evaluator
from utils.utils_curves import curve_panels
from utils.utils_history import read_history
from views.select_view import define_view
from views.test_outputs import TestOutputs
from views.view_base import Box, Finding, Sample
from views.view_hand_pose import _BONES, HandPoseView, _side_view

__all__ = ["command"]  # a fixture

PROJECT = Path(__file__).parent.parent
SMALL = {
    "datasets.train.size": 32,
    "datasets.test.size": 32,
    "datasets.train.dataloader_batch_size": 8,
    "netG.size": 32,
    "netG.widths": [4, 8, 8],
    "netG.depths": [1, 1],
    "netG.heat_width": 8,
    "train.total_epochs": 2,
    "train.num_threads": 1,
    "log.progress_bar": False,
    "val.metrics": ["mpjpe", "pa_mpjpe", "avg_metric", "joint_error", "pck_curve"],
}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the shipped options on a tiny FreiHAND, with a tiny network."""
    folder = tmp_path_factory.mktemp("hands")
    write_freihand(folder / "freihand")
    changes = {**SMALL, "datasets.train.dataroot": str(folder / "freihand"), "path.root": str(folder)}
    settings = [word for key, value in changes.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    with pytest.MonkeyPatch.context() as patch:
        option_file = str(PROJECT / "options" / "hand_pose.yaml")
        patch.setattr(sys, "argv", ["main_train.py", "-opt", option_file, *settings])
        assert main_train.main() == 0
    return folder / "hand_pose"


def test_the_log_reads_as_people_expect(experiment: Path) -> None:
    log = re.sub(r"^\S+ \S+  ", "", (experiment / "train.log").read_text(), flags=re.MULTILINE)
    number = r"\d+\.\d{3}"
    for epoch in (0, 1):
        losses = r"Train Loss = \d+\.\d{4}, Test Loss = \d+\.\d{4}, LR = \d\.\d\de-\d\d"
        errors = rf"  MPJPE: {number} mm, PA-MPJPE: {number} mm, Avg Metric: {number} mm"
        assert re.search(rf"^Epoch {epoch}: {losses}\n{errors}\n", log, re.MULTILINE), log
    assert re.search(rf"^  Saved best model \(avg_metric={number} mm\) to .*best_model\.pth$", log, re.MULTILINE)
    assert re.search(rf"^Best model: Epoch [01], Avg Metric = {number} mm$", log, re.MULTILINE)


def test_the_curves_have_the_names_of_the_joints(experiment: Path) -> None:
    columns = (experiment / "metrics.csv").read_text().splitlines()[0].split(",")
    assert [name for name in columns if name.startswith("joint_error_")] == [
        f"joint_error_{each}" for each in JOINT_NAMES
    ]
    assert [name for name in columns if name.startswith("pck_curve_")] == [f"pck_curve_{i}" for i in range(100)]
    titles = [panel.title for panel in curve_panels(read_history(experiment), JOINT_NAMES)]
    assert titles == ["Loss", "MPJPE", "PA-MPJPE", "Avg Metric", "Learning Rate", "Speed", "Gradient Norm"]


def test_the_best_model_holds_what_tools_expect(experiment: Path) -> None:
    content = torch.load(experiment / "models" / "best_model.pth", weights_only=True)
    assert content["avg_metric"] == pytest.approx((content["mpjpe"] + content["pa_mpjpe"]) / 2)
    assert content["test_loss"] == pytest.approx(content["mpjpe"], rel=1e-5)
    assert content["train_loss"] > 0
    assert content["optimizer_state_dict"].keys() == {"state", "param_groups"}
    assert "function of the iteration" in content["scheduler_state_dict"]["none"]
    assert {"epoch", "iter", "model_state_dict", "netG", "options"} <= content.keys()
    assert content["input"]["shape"] == [3, 32, 32]
    final = torch.load(experiment / "models" / "final_model.pth", weights_only=True)
    assert "optimizer_state_dict" not in final


def test_verify_measures_what_the_evaluator_does(
    experiment: Path, command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command("verify", experiment, "--json", tmp_path / "found.json", "--output", tmp_path / "out") == 0
    shown, warned = capsys.readouterr()
    assert "the same" in shown
    assert f"no pictures and no tables; nothing is written into {tmp_path / 'out'}" in warned
    assert not (tmp_path / "out").exists()
    found = json.loads((tmp_path / "found.json").read_text())
    assert re.search(rf"mpjpe +{found['metrics']['mpjpe']:.3f} mm\n", shown)
    assert re.search(rf"pck_auc +{found['metrics']['pck_auc']:.4f}\n", shown)
    assert [row["joint"] for row in found["classes"]] == list(JOINT_NAMES)
    assert [row["error in mm"] for row in found["classes"]] == found["metrics"]["joint_error"]
    content = torch.load(experiment / "models" / "best_model.pth", weights_only=True)
    dataset = FreiHand(str(experiment.parent / "freihand"), "val", 32)
    from models.network_hand_pose import HandPoseNet

    net = HandPoseNet(**{key: value for key, value in content["netG"].items() if key != "net_type"}).eval()
    net.load_state_dict(content["model_state_dict"])
    evaluator = Evaluator(len(dataset), metrics=("mpjpe", "pa_mpjpe", "joint_error"))
    for i in range(len(dataset)):
        sample = dataset[i]
        image, target = sample["input"], sample["target"]
        assert isinstance(image, torch.Tensor)
        assert isinstance(target, torch.Tensor)
        with torch.no_grad():
            evaluator(net((image[None] / 255 - 0.5) / 0.25), target[None])
    expected = evaluator.get_metrics_dict()
    assert found["metrics"]["mpjpe"] == pytest.approx(expected["mpjpe"], rel=1e-4)
    assert found["metrics"]["pa_mpjpe"] == pytest.approx(expected["pa_mpjpe"], rel=1e-4)
    assert found["metrics"]["joint_error"] == pytest.approx(expected["joint_error"], rel=1e-4)


def test_verify_compares_a_part_of_a_set_with_its_own_data_alone(
    experiment: Path, command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    part = max((experiment / "models").glob("*_E.pth"), key=lambda path: int(path.name.partition("_")[0]))
    assert command("verify", part) == 0
    assert "the same" in capsys.readouterr().out
    other = write_freihand(tmp_path / "other", num_training=30)
    assert command("verify", part, "--set", f"datasets.test.dataroot={other}") == 0
    assert "not compared: the run was tested on other data" in capsys.readouterr().out


def test_a_network_of_nan_cannot_be_right(
    experiment: Path, command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    content = torch.load(experiment / "models" / "best_model.pth", weights_only=True)
    broken = {name: each * float("nan") for name, each in content["model_state_dict"].items()}
    torch.save({**content, "model_state_dict": broken, "metrics": {}}, tmp_path / "broken.pth")
    assert command("verify", tmp_path / "broken.pth") == 1
    assert "CANNOT BE RIGHT: the loss is nan" in capsys.readouterr().err


def test_hands_have_no_test_time_average(
    experiment: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("verify", experiment, "--tta") == 2
    assert "--tta: nothing is known of this task that could be averaged" in capsys.readouterr().err


def test_an_exported_hand_says_what_its_numbers_are(experiment: Path, command: Command, tmp_path: Path) -> None:
    assert command("export", experiment, "--with_preprocessing", "--output", tmp_path / "hand.onnx") == 0
    said = onnxruntime.InferenceSession(tmp_path / "hand.onnx").get_modelmeta().custom_metadata_map
    found = {key: json.loads(value) for key, value in said.items()}
    assert (found["joint_names"], found["root_joint_idx"]) == (list(JOINT_NAMES), 0)
    assert (found["input"]["colours"], found["input"]["shape"]) == ("RGB", [3, 32, 32])
    assert "mm relative to the root joint: x right" in found["output"]["meaning"]


def test_every_other_command_works_on_hands(experiment: Path, command: Command, tmp_path: Path) -> None:
    assert command("samples", experiment, "--num_samples", 1, "--output", tmp_path / "samples") == 0
    assert {path.name for path in (tmp_path / "samples").glob("*.png")} == {"right.png"}
    photo = experiment.parent / "freihand" / "evaluation" / "rgb" / "00000000.jpg"
    said, copies = tmp_path / "said.csv", tmp_path / "copies"
    assert command("infer", experiment, "--input", photo, "--csv", said, "--output", copies) == 0
    heading, row = (line.split(",") for line in said.read_text().splitlines())
    assert len(heading) == len(row)
    assert [name for name in heading if name.endswith("_x_mm")] == [f"{name}_x_mm" for name in JOINT_NAMES]
    assert float(row[heading.index("wrist_x_mm")]) == 0
    assert cv2.imread(str(next(copies.glob("*.jpg")))).shape[1] > 600, "the image and two views"
    assert command("report", experiment, "--output", tmp_path / "report.html") == 0
    page = (tmp_path / "report.html").read_text()
    for text in ("The smallest errors", "The largest errors", "little_tip", "PA-MPJPE", "Where attention lies"):
        assert text in page
    assert re.search(r"\d\.\d{3} mm<", page)
    assert command("export", experiment, "--format", "torch_export", "--output", tmp_path / "hand.pt2") == 0


def test_pictures_of_the_best_model_are_drawn(experiment: Path) -> None:
    names = {path.name for path in (experiment / "images").glob("*.png")}
    assert {"best_right.png", "best_wrong.png", "curves.png"} <= names
    assert any((experiment / "tb").iterdir())


def pose(seed: int = 0) -> torch.Tensor:
    return torch.randn(21, 3, generator=torch.Generator().manual_seed(seed)) * 30


def test_the_skeleton_is_drawn_where_the_camera_sees_it() -> None:
    """Alone on black, a coloured pixel of each fingertip lies where a hand-made projection puts it."""
    joints = pose() - pose()[0]
    intrinsics, root = np.array([[60.0, 0, 30], [0, 60.0, 34], [0, 0, 1]]), np.array([5.0, -8.0, 400.0])
    black = torch.zeros(3, 64, 64, dtype=torch.uint8)
    sample = Sample("x", black, joints, joints, (intrinsics, root))
    picture = HandPoseView(joint_names=JOINT_NAMES).card(sample, side_views=False).picture
    for x, y, z in joints.numpy() + root:
        column, row = (60 * x / z + 30) * 224 / 64, (60 * y / z + 34) * 224 / 64
        patch = picture[:, round(row) - 1 : round(row) + 2, round(column) - 1 : round(column) + 2]
        assert patch.max() > 100, "nothing is drawn at this joint"
    mirrored = np.flip(picture, axis=2)
    assert not np.array_equal(picture, mirrored)
    unknown = Sample("x", black, joints, joints)
    assert HandPoseView(joint_names=JOINT_NAMES).card(unknown, side_views=False).picture.max() == 0


@pytest.mark.parametrize("shape", [(3, 40, 80), (1, 90, 30)])
def test_any_picture_of_a_hand_keeps_its_proportions_under_the_skeleton(shape: tuple[int, int, int]) -> None:
    height, width = shape[1:]
    joints = torch.zeros(21, 3)
    joints[1:, 0], joints[4, 1] = 5, 30  # the tip of the thumb is below and to the right
    intrinsics = np.array([[100.0, 0, width / 2], [0, 100.0, height / 2], [0, 0, 1]])
    sample = Sample("x", torch.zeros(shape, dtype=torch.uint8), joints, joints, (intrinsics, np.array([0, 0, 200.0])))
    view = HandPoseView(joint_names=JOINT_NAMES)
    picture = view.card(sample, side_views=False).picture
    assert picture.shape[2] / picture.shape[1] == pytest.approx(width / height, abs=0.02)
    scale = picture.shape[2] / width
    column, row = round((width / 2 + 2.5) * scale), round((height / 2 + 15) * scale)
    assert picture[:, row - 2 : row + 3, column - 2 : column + 3].max() > 100, "the tip is drawn here"
    assert view.card(sample).picture.shape[1] == picture.shape[1], "beside it, as high, the side view"


@pytest.mark.parametrize(("end", "drawn"), [([0, 0, 50], (50, 0)), ([0, 50, 0], (0, 50))])
def test_the_side_view_is_to_scale_and_upright(end: list[float], drawn: tuple[int, int]) -> None:
    """A bone of 50 mm is as long as the bar: to the right if it leads away from the camera, down if it leads down."""
    joints = np.zeros((21, 3))
    joints[1:5] = end
    picture = _side_view(joints + 1000, joints)  # the predicted hand is beyond the edge
    bar = np.argwhere((picture == (60, 60, 60)).all(axis=2) & (np.arange(224)[:, None] >= 215))[:, 1]
    found = np.argwhere(picture[20:200].min(axis=2) < 200) + [20, 0]  # without the texts above and below
    down, right = found.max(axis=0) - found.min(axis=0)
    assert [right, down] == pytest.approx(
        [np.ptp(bar) * each / 50 for each in drawn], abs=8
    )  # the white rims cover its ends
    middle = 112 - np.ptp(bar) * 4 / 21 / 50 * np.array(drawn[::-1])  # the wrist, as seen from the mean of all joints
    assert np.abs(found - middle).max(axis=1).min() < 4, "the bone starts at the wrist"
    assert (found.mean(axis=0) >= middle - 1).all(), "and leads to the right or down"


def test_the_skeletons_in_3d_are_upright_and_to_scale() -> None:
    output, target = pose(1), pose(2)
    sample = Sample("x", torch.zeros(3, 64, 64, dtype=torch.uint8), target, output)
    figure = HandPoseView(joint_names=JOINT_NAMES).samples_figure({"row": [sample]}, "title")
    axes: Any = figure.axes[1]
    wanted = {("--", bone): target[list(bone)] for bone in _BONES} | {
        ("-", bone): output[list(bone)] for bone in _BONES
    }
    assert len(axes.lines) == len(wanted)
    for line, ((dash, _), joints) in zip(axes.lines, wanted.items(), strict=True):
        right, away, up = line.get_data_3d()
        assert line.get_linestyle() == dash
        assert np.stack([right, -np.asarray(up), away], axis=1) == pytest.approx(joints.numpy(), abs=1e-4)
    limits = np.array([axes.get_xlim(), axes.get_ylim(), axes.get_zlim()])
    assert np.ptp(limits, axis=1) == pytest.approx([np.ptp(limits[0])] * 3)
    assert [axis.get_label_text() for axis in (axes.xaxis, axes.yaxis, axes.zaxis)] == ["right", "away", "up"]


def test_a_prediction_that_is_not_finite_is_drawn_beside_the_truth() -> None:
    broken = pose(1)
    broken[3, 1] = float("nan")
    sample = Sample("x", torch.zeros(3, 64, 64, dtype=torch.uint8), pose(2), broken)
    axes: Any = HandPoseView(joint_names=JOINT_NAMES).samples_figure({"row": [sample]}, "title").axes[1]
    assert np.isfinite([axes.get_xlim(), axes.get_ylim(), axes.get_zlim()]).all()


@pytest.mark.parametrize(("height", "width", "box"), [(48, 64, Box(8, 0, 48, 48)), (64, 31, Box(0, 16, 31, 31))])
def test_a_hand_is_looked_for_in_the_middle_square(height: int, width: int, box: Box) -> None:
    assert HandPoseView(joint_names=JOINT_NAMES).find(np.zeros((height, width, 3), np.uint8)) == [box]


def test_the_smallest_and_the_largest_errors_are_chosen() -> None:
    targets = torch.stack([pose(i) for i in range(9)])
    outputs = targets + torch.tensor([3.0, 1, 9, 5, 2, 8, 7, 4, 6])[:, None, None] * pose(99).sign()
    outputs[:, 0] = targets[:, 0]
    view = HandPoseView(joint_names=JOINT_NAMES)
    assert view.choose(outputs, targets, 2, wrong=False) == {"smallest error": [1, 4], "median error": [7, 3]}
    assert view.choose(outputs, targets, 2, wrong=True) == {"largest error": [2, 5], "median error": [8, 3]}
    assert view.choose(outputs[:1], targets[:1], 3, wrong=True) == {"largest error": [0], "median error": [0]}


def test_what_is_said_of_a_hand() -> None:
    view = define_view(FreiHand, ())
    assert isinstance(view, HandPoseView)
    joints = torch.zeros(21, 3)
    joints[8] = torch.tensor([3.0, 4.0, 0.0])
    box = Box(0, 0, 9, 9)
    assert view.headline(joints) == "wrist to fingertips T 0, I 5, M 0, R 0, L 0 mm"
    said = view.says(joints, box)
    assert (said["index_tip_x_mm"], said["index_tip_y_mm"], len(said)) == (3.0, 4.0, 63)
    image = np.zeros((30, 40, 3), np.uint8)
    shown = view.annotate(image, [Finding(box, joints)])
    assert shown.shape[0] == 224
    assert image.max() == 0
    assert TestOutputs().choose(view, [], 3, wrong=False) == {}  # type: ignore[arg-type]


@pytest.mark.parametrize(("height", "width"), [(1, 5000), (20_000, 2), (1, 1)])
def test_a_strip_becomes_a_picture_that_a_file_can_hold(height: int, width: int) -> None:
    image = np.zeros((height, width, 3), np.uint8)
    view = HandPoseView(joint_names=JOINT_NAMES)
    shown = view.annotate(image, [Finding(view.find(image)[0], pose())])
    assert 224 <= shown.shape[0] <= 4096
    assert shown.shape[1] <= 10 * shown.shape[0] + 1


@pytest.mark.parametrize("height", [300, 3000])
def test_what_is_said_is_as_bold_beside_a_large_image_as_beside_a_small_one(height: int) -> None:
    """Of the strip with the text, dark letters take the same share in any size, and none is cut off."""
    image = np.full((height, height * 3, 3), 255, np.uint8)
    shown = HandPoseView(joint_names=JOINT_NAMES).annotate(image, [Finding(Box(0, 0, 1, 1), pose())])
    strip = shown[height * 9 // 10 :, : height * 5 // 4].max(axis=2) < 100
    assert 0.04 < strip.mean() < 0.2
    assert not strip[-1].any()
