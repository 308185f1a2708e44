"""What is shown of a task of classes whose inputs are not uint8 images: floats as they are, tables by their numbers."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn as nn

import main_train
from data.select_dataset import DATASETS
from models.model_plain import Batch, ModelPlain
from models.select_model import MODELS
from models.select_network import NETWORKS
from tests.helpers import changed, tiny_option_mapping, write_options
from tests.trained_models import Command, command
from utils.utils_image import as_uint8
from utils.utils_image_file import write_image
from utils.utils_visualise import Classified, classified_figure
from views.view_base import View
from views.view_classification import ClassificationView

__all__ = ["command"]  # a fixture

CLASSES = ("left", "ahead", "right")
Train = Callable[..., Path]


class Bars:
    """A bright bar on dark noise stands left, ahead or right. kind: bytes or floats (1, 8, 8), or a table (64,)."""

    class_names = CLASSES

    def __init__(self, dataroot: str, split: str, kind: str) -> None:
        rng = np.random.default_rng(split == "test")
        self._labels = torch.arange(24) % 3
        images = rng.integers(0, 120, (24, 1, 8, 8), dtype=np.uint8)
        for image, label in zip(images, self._labels.tolist(), strict=True):
            image[0, :, 3 * label : 3 * label + 2] += 120
        as_bytes = torch.from_numpy(images)
        floats = as_bytes.float() / 255
        self._inputs = {"bytes": as_bytes, "floats": floats, "table": floats.flatten(1)}[kind]
        self.fingerprint = f"{dataroot} {split}"

    @staticmethod
    def is_available(dataroot: str) -> bool:
        return bool(dataroot)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input": self._inputs[index], "target": self._labels[index], "name": f"row {index}"}


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Train on inputs of a kind; returns the folder of the experiment."""
    for table, name, entry in ((DATASETS, "bars", Bars), (NETWORKS, "linear", linear)):
        monkeypatch.setattr(table, "_entries", {**table._entries, name: entry})

    def run(kind: str, **more: Any) -> Path:
        data = {"dataset_type": "bars", "dataroot": "bars", "split": "train", "kind": kind}
        options = changed(
            tiny_option_mapping(tmp_path / kind, csv="unused"), task="bars", netG={"net_type": "linear"},
            datasets={"train": {**data, "dataloader_batch_size": 8}, "test": {"split": "test", "kind": kind}},
            val={"metrics": ["accuracy", "confusion_matrix"], "best_metric": "accuracy"}, train__total_iter=30, **more,
        )  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["main_train.py", "-opt", str(write_options(options, tmp_path / "o.json"))])
        assert main_train.main() == 0
        return tmp_path / kind / "bars"

    return run


def test_a_table_has_no_samples_and_the_rest_is_shown(
    train: Train, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = train("table")
    assert {path.name for path in (experiment / "images").iterdir()} == {"best_confusion.png", "curves.png"}
    assert "could not be written" not in (experiment / "train.log").read_text()

    assert command("samples", experiment) == 2
    error = capsys.readouterr().err
    assert "the inputs have the shape (64,), and only pictures can be drawn" in error
    assert "main_test.py verify" in error
    assert not (experiment / "images" / "samples").exists()

    assert command("verify", experiment, "--tta") == 2
    assert "--tta: nothing is known" in capsys.readouterr().err
    write_image(experiment / "photo.png", np.zeros((8, 8), np.uint8))
    assert command("infer", experiment, "--input", experiment / "photo.png", "--no_detect") == 2
    assert "the network's inputs have the shape (64,)" in capsys.readouterr().err

    assert command("report", experiment) == 0
    page = (experiment / "report.html").read_text()
    for shown in ("measures as recorded", "Learning Rate", "true \\ predicted"):
        assert shown in page
    for absent in (ClassificationView.sample_titles["right"], "Where attention lies", "data:image/png"):
        assert absent not in page


def test_a_table_is_not_said_to_want_a_view_which_would_not_help(
    train: Train, command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bars, "view", "plain", raising=False)
    assert command("samples", train("table")) == 2
    assert "the inputs have the shape (64,), and only pictures can be drawn" in capsys.readouterr().err


def test_a_split_that_is_a_path_names_files_all_the_same(train: Train, command: Command, tmp_path: Path) -> None:
    assert command("verify", train("bytes"), "--split", "a/test", "--output", tmp_path / "out") == 0
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {f"verify_best_model_bars_a_test_confusion.{suffix}" for suffix in ("png", "csv")}


def test_a_headline_says_that_there_is_more_of_an_output() -> None:
    assert View().headline(torch.arange(8.0)) == "0 1 2 3 4 5 6 7"
    assert View().headline(torch.arange(9.0).reshape(3, 3)) == "0 1 2 3 4 5 6 7 ..."


@pytest.mark.parametrize("kind", ["bytes", "floats"])
def test_infer_says_that_an_image_becomes_other_inputs_than_bytes(
    train: Train, command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str
) -> None:
    write_image(tmp_path / "photo.png", np.zeros((8, 8), np.uint8))
    arguments = ("--input", tmp_path / "photo.png", "--no_draw")
    assert command("infer", train(kind), *arguments) == 0
    assert ("was trained on inputs of float32" in capsys.readouterr().err) == (kind == "floats")


def test_floats_are_drawn_as_the_bytes_that_they_stand_for(train: Train, command: Command) -> None:
    pictures, pages = [], []
    for kind in ("bytes", "floats"):
        experiment = train(kind)
        assert command("samples", experiment) == 0
        assert command("report", experiment) == 0
        found = sorted((experiment / "images").rglob("*right*.png"))
        pictures.append({path.relative_to(experiment): path.read_bytes() for path in found})
        samples, heading, _ = (experiment / "report.html").read_text().partition("Where attention lies")
        assert heading
        pages.append(re.findall(r"data:image/png[^\"]*", samples))
    assert len(pictures[0]) == 2 + 3 * 3, "best_right.png, right.png, and three of each class"
    assert pictures[0] == pictures[1]
    assert len(pages[0]) >= 9
    assert pages[0] == pages[1]


class Sided(Bars):
    """Each image comes with a number that the model takes too."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**super().__getitem__(index), "side": torch.tensor(float(index % 2))}


class ModelSided(ModelPlain):
    def feed_data(self, batch: Batch) -> None:
        super().feed_data(batch)
        self.side = batch["side"]

    def netG_forward(self, netG: nn.Module) -> torch.Tensor:
        output: torch.Tensor = netG(self.input)
        return output + self.side[:, None]


def test_a_model_that_takes_more_than_the_input_says_so_where_there_is_no_more(
    train: Train, command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DATASETS._entries, "bars", Sided)
    monkeypatch.setattr(MODELS, "_entries", {**MODELS._entries, "sided": ModelSided})
    experiment = train("bytes", model="sided")
    write_image(experiment / "photo.png", np.zeros((8, 8), np.uint8))
    for arguments in (("infer", experiment, "--input", experiment / "photo.png"), ("export", experiment)):
        assert command(*arguments) == 2
        assert "sided asks for 'side' of a sample, and only its input is known here" in capsys.readouterr().err
    assert command("report", experiment) == 1
    assert "where attention lies is not shown: " in capsys.readouterr().err
    page = (experiment / "report.html").read_text()
    assert "measures as recorded" in page
    assert ClassificationView.sample_titles["right"] in page


def test_what_floats_lie_beyond_0_and_1_is_not_cut_off() -> None:
    every_byte = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    assert torch.equal(as_uint8(every_byte.float() / 255), every_byte)
    assert torch.equal(as_uint8(every_byte), every_byte)
    assert as_uint8(torch.tensor([-1.0, 0.0, 1.0])).tolist() == [0, 128, 255]
    assert as_uint8(torch.tensor([0.0, 0.5])).tolist() == [0, 128], "a dark picture stays dark"
    assert as_uint8(torch.tensor([False, True])).tolist() == [0, 255]


def test_a_picture_of_one_row_is_drawn() -> None:
    cell = Classified(np.arange(64, dtype=np.uint8).reshape(1, 1, 64), 0, [1.0, 0.0])
    image: Any = classified_figure([[cell]], ["a"], "ab", "title").axes[0].images[0]
    assert image.get_array().tolist() == [list(range(64))]
