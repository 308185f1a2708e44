"""`main_test.py verify`: the metrics of one file equal those of the run that saved it, and nothing else passes."""

import csv
import json
import math
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
import torch.nn as nn

import commands.verify
from data.dataset_fer2013 import Fer2013
from models.model_plain import ModelPlain
from models.select_model import MODELS
from tests.disk_faults import drop_privileges
from tests.run_helpers import flip_bit
from tests.trained_models import CLASSES, Command, add_notes, command, trained
from utils.utils_metric_sums import Metric, sample_mean
from utils.utils_metrics import METRICS
from views.view_base import View
from views.view_classification import ClassificationView

__all__ = ["command", "trained"]  # fixtures


@pytest.fixture
def verify(command: Command) -> Command:
    return lambda *arguments: command("verify", *arguments)


@pytest.mark.parametrize("name", ["best_model.pth", "final_model.pth"])
def test_a_saved_model_measures_as_recorded(
    trained: Path, verify: Command, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert verify(trained / name) == 0
    shown = capsys.readouterr().out
    recorded = torch.load(trained / name, weights_only=True)["metrics"]
    assert f"accuracy          {recorded['accuracy']:.4f}" in shown
    assert "recorded          the same" in shown


def test_an_experiment_stands_for_its_best_model(
    trained: Path, verify: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (trained.parent, trained):
        assert verify(folder) == 0
        assert f"{trained / 'best_model.pth'}: fer_resnet" in capsys.readouterr().out


def test_the_average_of_a_set_measures_as_logged(
    trained: Path, verify: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    final = torch.load(trained / "final_model.pth", weights_only=True)["metrics"]
    assert verify(trained / "60_E.pth") == 0
    shown = capsys.readouterr().out
    assert f"accuracy          {final['accuracy']:.4f}" in shown
    assert "recorded          the same" in shown
    verify(trained / "60_G.pth")  # the run has tested netE alone
    assert "no result of this file" in capsys.readouterr().out


def test_a_model_that_was_trained_compiled_needs_no_compiler(
    trained: Path, verify: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert verify(trained / "best_model.pth", "--set", "train.compile=true") == 0


def test_a_set_is_compared_with_what_was_tested_then(
    trained: Path, verify: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A later launch has trained without an average, and its options are the newest."""
    experiment = Path(shutil.copytree(trained.parent, tmp_path / "later"))
    newest = max((experiment / "options").iterdir())
    options = json.loads(newest.read_text())
    options["train"]["E_decay"] = 0
    newest.with_name("later_991231_235959.json").write_text(json.dumps(options))
    assert verify(experiment / "models" / "60_G.pth") == 0
    assert "no result of this file" in capsys.readouterr().out
    assert verify(experiment / "models" / "60_E.pth") == 0
    assert "recorded          the same" in capsys.readouterr().out


def test_a_note_in_the_metrics_is_no_record(
    trained: Path, verify: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(trained.parent, tmp_path / "noted"))
    add_notes(folder / "metrics.csv")
    assert verify(folder / "models" / "60_E.pth") == 0
    assert "recorded          the same" in capsys.readouterr().out


@pytest.mark.parametrize(("digits", "status"), [(6, 0), (3, 1)])
def test_the_record_may_have_the_digits_that_a_spreadsheet_leaves(
    trained: Path, verify: Command, tmp_path: Path, digits: int, status: int
) -> None:
    folder = Path(shutil.copytree(trained.parent, tmp_path / "rounded"))
    metrics = folder / "metrics.csv"
    metrics.write_text(re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):.{digits}g}", metrics.read_text()))
    assert verify(folder / "models" / "60_E.pth") == status


@pytest.mark.parametrize("kind", ["best_model.pth", "60_E.pth"])
def test_what_real_samples_taught_is_not_judged_by_generated_ones(
    trained: Path, verify: Command, command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str
) -> None:
    small = {"dataset_type": "synthetic_faces", "num_training": 7, "num_public_test": 7, "num_private_test": 7}
    absent = (
        "--set", "datasets.test.dataroot=absent.csv", "--set", f"datasets.test.fallback={json.dumps(small)}",
        "--output", tmp_path / "out",
    )  # fmt: skip
    assert verify(trained / kind, *absent) == command("samples", trained / kind, *absent) == 2
    said = capsys.readouterr().err
    assert said.count("Bring the data back, or name their place") == 2
    assert f"{kind} learned from real samples, and would be tested on synthetic_faces, because there is no" in said
    assert not (tmp_path / "out").exists()
    content = torch.load(trained / "best_model.pth", weights_only=True)
    torch.save({**content, "synthetic": "synthetic_faces, because"}, tmp_path / "taught_by_generated.pth")
    assert verify(tmp_path / "taught_by_generated.pth", *absent) == 0
    assert "SYNTHETIC DATA" in capsys.readouterr().err


@pytest.mark.parametrize(("factor", "status"), [(1.004, 0), (0.9, 1)])
def test_another_device_may_differ_a_little(
    trained: Path, verify: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path, factor: float, status: int
) -> None:
    """Other kernels round differently, and a sample may change sides: one cell of the matrix says nothing."""
    content = torch.load(trained / "best_model.pth", weights_only=True)
    content["metrics"]["loss"] *= factor
    content["metrics"]["confusion_matrix"][0][0] += 1
    torch.save(content, tmp_path / "here.pth")
    assert verify(tmp_path / "here.pth") == 1
    torch.save({**content, "device": "a GPU"}, tmp_path / "there.pth")
    capsys.readouterr()
    assert verify(tmp_path / "there.pth") == status
    said = "the same within 1 %, as measured on another device (a GPU)" if status == 0 else "DIFFERENT: loss"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(("machine", "status"), [({"ranks": 4, "NCCL": "2.28.9"}, 0), ({"ranks": 4}, 1)])
def test_several_gpus_may_differ_a_little_from_one(
    trained: Path, verify: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path, machine: dict[str, Any],
    status: int,
) -> None:  # fmt: skip
    """Each was tested on smaller batches, whose kernels may round to TF32 otherwise; CPUs do not."""
    content = torch.load(trained / "best_model.pth", weights_only=True)
    content["metrics"]["loss"] *= 1.004
    torch.save({**content, "machine": {**content["machine"], **machine}}, tmp_path / "of_four.pth")
    assert verify(tmp_path / "of_four.pth") == status
    said = f"as measured on another device (4 x {content['device']})" if status == 0 else "DIFFERENT: loss"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(("recorded", "status"), [(math.nan, 0), (0.5, 1), (math.inf, 1)])
def test_a_metric_that_is_no_number_again_is_the_same(
    trained: Path, verify: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: float, status: int
) -> None:
    def undefined() -> Metric:
        return sample_mean(lambda output, _target: output[:, :2] * math.nan, (2,))

    monkeypatch.setattr(METRICS, "_entries", {**METRICS._entries, "recall_per_class": undefined})
    content = torch.load(trained / "best_model.pth", weights_only=True)
    content["metrics"]["recall_per_class"] = [math.nan, recorded]
    torch.save(content, tmp_path / "changed.pth")
    assert verify(tmp_path / "changed.pth", "--json", tmp_path / "found.json") == status
    found = json.loads((tmp_path / "found.json").read_text(), parse_constant=pytest.fail)  # NaN is none of JSON's
    assert found["metrics"]["recall_per_class"] == [None, None]


def test_everything_is_in_the_json_and_the_pictures(trained: Path, verify: Command, tmp_path: Path) -> None:
    assert verify(trained / "best_model.pth", "--json", tmp_path / "found.json", "--output", tmp_path / "out") == 0
    found = json.loads((tmp_path / "found.json").read_text())
    recorded = torch.load(trained / "best_model.pth", weights_only=True)["metrics"]
    assert found["metrics"]["confusion_matrix"] == recorded["confusion_matrix"]
    assert found["num_parameters"] == 2599
    assert found["file_bytes"] == (trained / "best_model.pth").stat().st_size
    assert found["images_per_s"] > 0
    assert [row["class"] for row in found["classes"]] == list(CLASSES)
    lines = (tmp_path / "out" / "verify_best_model_fer2013_PublicTest_confusion.csv").read_text().splitlines()
    assert [line.split(",")[1:] for line in lines[1:]] == [
        [f"{count:.0f}" for count in row] for row in recorded["confusion_matrix"]
    ]
    picture = (tmp_path / "out" / "verify_best_model_fer2013_PublicTest_confusion.png").read_bytes()
    assert picture.startswith(b"\x89PNG")


def test_the_table_of_the_classes_is_that_of_scikit_learn() -> None:
    true, predicted = [0, 0, 1, 1, 1, 3, 3], [0, 1, 1, 1, 0, 3, 1]
    matrix = sklearn.metrics.confusion_matrix(true, predicted, labels=range(4)).astype(float).tolist()
    rows = ClassificationView("abcd").rows({"confusion_matrix": matrix})
    expected = sklearn.metrics.precision_recall_fscore_support(true, predicted, labels=range(4), zero_division=np.nan)
    for row, *values in zip(rows, *expected, strict=True):
        found = [row["precision"], row["recall"], row["f1"], row["samples"]]
        assert [None if np.isnan(value) else pytest.approx(value) for value in values] == found


def test_any_view_has_a_row_for_each_name_with_what_was_measured_of_it() -> None:
    result = {"loss": 1.0, "of_each": [0.5, 0.25], "counts": [[1.0, 2.0], [3.0, 4.0]], "curve": [0.1, 0.2, 0.3]}
    assert View("ab").rows(result) == [{"class": "a", "of_each": 0.5}, {"class": "b", "of_each": 0.25}]
    assert View((), "ab").rows(result) == [{"joint": "a", "of_each": 0.5}, {"joint": "b", "of_each": 0.25}]
    assert View().rows({**result, "empty": []}) == View("ab").rows({"loss": 1.0}) == []


def test_the_average_of_views_is_the_mean_probability_of_mirror_images_and_shifts(
    trained: Path, verify: Command, tmp_path: Path
) -> None:
    view, image = ClassificationView(), torch.arange(64.0).reshape(1, 1, 8, 8)
    seen = view.inputs(image)
    assert torch.equal(seen[0], image)
    assert len({tuple(each.flatten().tolist()) for each in seen}) == len(seen) == 10
    logits = [torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.0]])]
    mean = (torch.softmax(logits[0], 1) + torch.softmax(logits[1], 1)) / 2
    assert torch.allclose(view.average(logits).softmax(1), mean)
    verify(trained / "best_model.pth", "--tta", "--json", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["test_time_average"]
    assert found["recorded"] == {}


class AlwaysHappy(ModelPlain):
    """A user's model, whose network is called in a way of its own."""

    def netG_forward(self, netG: nn.Module) -> torch.Tensor:
        logits: torch.Tensor = netG(self.input)
        return logits + 1000 * torch.eye(7)[3]


def test_a_users_model_is_averaged_as_it_is(
    trained: Path, verify: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODELS, "_entries", {**MODELS._entries, "always_happy": AlwaysHappy})
    arguments = ("--tta", "--set", "model=always_happy", "--json", tmp_path / "found.json")
    assert verify(trained / "best_model.pth", *arguments) == 1  # it cannot be right
    recall = json.loads((tmp_path / "found.json").read_text())["metrics"]["recall_per_class"]
    assert recall == [0, 0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("bias", "doubt"), [(torch.zeros(7), "near uniform"), (torch.tensor([9.0, 0, 0, 0, 0, 0, 0]), "taken for angry")]
)
def test_what_cannot_be_right_is_said(
    trained: Path, verify: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    bias: torch.Tensor, doubt: str,
) -> None:  # fmt: skip
    content = torch.load(trained / "best_model.pth", weights_only=True)
    content["model_state_dict"]["head.weight"].zero_()
    content["model_state_dict"]["head.bias"].copy_(bias)
    content["metrics"] = {}
    torch.save(content, tmp_path / "changed.pth")
    assert verify(tmp_path / "changed.pth") == 1
    assert doubt in capsys.readouterr().err


@pytest.mark.parametrize(("num_classes", "doubted", "trusted"), [(7, 0.19, 0.2), (1000, 0.0019, 0.03)])
def test_how_sure_an_opinion_is_depends_on_the_number_of_classes(
    num_classes: int, doubted: float, trusted: float
) -> None:
    view = ClassificationView(list(map(str, range(num_classes))))
    result = {"loss": 1.0, "confusion_matrix": np.eye(num_classes).tolist()}
    assert "near uniform" in str(view.doubts({**result, "confidence": doubted}))
    assert view.doubts({**result, "confidence": trusted}) == []


def test_other_weights_are_noticed(
    trained: Path, verify: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    content = torch.load(trained / "best_model.pth", weights_only=True)
    content["model_state_dict"]["head.bias"] += torch.arange(7.0)
    torch.save(content, tmp_path / "changed.pth")
    assert verify(tmp_path / "changed.pth") == 1
    assert "DIFFERENT" in capsys.readouterr().out


def test_another_split_has_no_record(trained: Path, verify: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(trained / "best_model.pth", "--split", "PrivateTest") == 0
    shown = capsys.readouterr().out
    assert "2 samples of fer2013 PrivateTest" in shown
    assert "no result of this file on these data" in shown


def _weights_without_options(trained: Path, folder: Path) -> Path:
    return Path(shutil.copy(trained / "60_G.pth", folder))


def _with_a_flipped_bit(trained: Path, folder: Path) -> Path:
    path = Path(shutil.copy(trained / "best_model.pth", folder))
    flip_bit(path)
    return path


def _in_a_damaged_set(trained: Path, folder: Path) -> Path:
    experiment = folder / "copy"
    shutil.copytree(trained.parent, experiment)
    flip_bit(experiment / "models" / "60_optimizerG.pth")
    return experiment / "models" / "60_E.pth"


def _truncated(trained: Path, folder: Path) -> Path:
    path = folder / "truncated.pth"
    path.write_bytes((trained / "best_model.pth").read_bytes()[:-2000])
    return path


def _without_its_iteration(trained: Path, folder: Path) -> Path:
    content = torch.load(trained / "best_model.pth", weights_only=True)
    del content["iter"]
    torch.save(content, folder / "foreign.pth")
    return folder / "foreign.pth"


def _text(_trained: Path, folder: Path) -> Path:
    path = folder / "text.pth"
    path.write_text("not a model")
    return path


def _of_another_network(trained: Path, folder: Path) -> Path:
    content: dict[str, Any] = torch.load(trained / "best_model.pth", weights_only=True)
    content["netG"]["widths"] = [8, 16]
    torch.save(content, folder / "other.pth")
    return folder / "other.pth"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_weights_without_options, "holds weights alone"),
        (_with_a_flipped_bit, "checksum"),
        (_in_a_damaged_set, "60_optimizerG.pth does not have the hash"),
        (lambda trained, _: trained / "60_optimizerG.pth", "not a self-contained model"),
        (lambda _, folder: folder, "holds no best_model.pth"),
        (_truncated, "its end is missing: it was cut off"),
        (_text, "torch.save did not write it"),
        (_without_its_iteration, "not a self-contained model"),
        (_of_another_network, "another shape"),
        (lambda _trained, folder: folder / "absent.pth", "no such file"),
    ],
)
def test_a_wrong_file_gets_one_message_and_status_2(
    trained: Path, verify: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    make: Callable[[Path, Path], Path], reason: str,
) -> None:  # fmt: skip
    path = make(trained, tmp_path)
    assert verify(path) == 2
    message = capsys.readouterr().err
    assert any(each in message for each in reason.split("|")), message
    assert "Traceback" not in message


@pytest.mark.parametrize("option", ["--output", "--json"])
def test_a_place_that_cannot_be_written_gets_one_message_and_status_2(
    trained: Path, verify: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path, option: str
) -> None:
    (tmp_path / "file").write_text("mine")
    assert verify(trained / "best_model.pth", option, tmp_path / "file" / "below") == 2
    message = capsys.readouterr().err
    assert str(tmp_path / "file") in message
    assert "Traceback" not in message
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("status", [0, 1])
def test_a_read_only_experiment_is_verified_without_pictures(
    trained: Path, verify: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path, status: int
) -> None:
    experiment, statuses = Path(shutil.copytree(trained.parent, tmp_path / "kept")), []
    model = experiment / "models" / "best_model.pth"
    content = torch.load(model, weights_only=True)
    content["metrics"]["accuracy"] += status
    torch.save(content, model)

    def run() -> None:
        drop_privileges()
        statuses.append(verify(experiment, "--json", tmp_path / "found.json"))
        statuses.append(verify(experiment, "--output", experiment / "mine"))

    for path in (experiment, *experiment.rglob("*")):
        path.chmod(path.stat().st_mode & 0o555)
    thread = threading.Thread(target=run)  # they are a thread's own
    thread.start()
    thread.join()
    for path in (experiment, *experiment.rglob("*")):
        path.chmod(path.stat().st_mode | 0o200)
    assert statuses == [status, 2]
    shown = capsys.readouterr()
    assert shown.out.count("DIFFERENT: accuracy" if status else "the same") == 2
    assert f"No pictures: [Errno 13] Permission denied: '{experiment}/images/verify_best" in shown.err
    assert f"[Errno 13] Permission denied: '{experiment}/mine'; choose another --output" in shown.err
    assert json.loads((tmp_path / "found.json").read_text())["num_samples"] == 21


def test_a_comma_in_the_name_of_a_class_moves_no_cell(
    trained: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("stop, all way", 'a "quoted" one', *CLASSES[2:])
    monkeypatch.setattr(Fer2013, "class_names", names)
    monkeypatch.setattr(ClassificationView, "figures", lambda *_: {})
    command("verify", trained / "best_model.pth", "--output", tmp_path)
    with open(next(tmp_path.glob("*_confusion.csv")), newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0][1:] == [row[0] for row in rows[1:]] == list(names)
    assert {len(row) for row in rows} == {8}


def test_a_run_that_replaces_its_best_model_meanwhile_is_measured_as_it_was(
    trained: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are of the moment of the numbers with which they are compared."""
    path = Path(shutil.copy(trained / "best_model.pth", tmp_path))
    content = torch.load(path, weights_only=True)
    better = {name: each * 2 for name, each in content["model_state_dict"].items()}
    load = commands.verify.load_trained_model

    def and_replaced(*arguments: Any) -> Any:
        found = load(*arguments)
        torch.save({**content, "model_state_dict": better}, path)
        return found

    assert command("verify", path, "--output", tmp_path) == 0
    monkeypatch.setattr(commands.verify, "load_trained_model", and_replaced)
    assert command("verify", path, "--output", tmp_path) == 0
    assert capsys.readouterr().out.count("the same") == 2
