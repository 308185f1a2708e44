"""`main_test.py verify`: the metrics of one file equal those of the run that saved it, and nothing else passes."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import main_test
import main_train
from tests.helpers import changed, tiny_csv, tiny_option_mapping, write_options

METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "recall_per_class", "confusion_matrix")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models folder of one short run."""
    folder = tmp_path_factory.mktemp("verify")
    options = tiny_option_mapping(folder / "experiments", tiny_csv(folder, num_train=40, num_test=21))
    options = changed(options, val={"metrics": METRICS, "best_metric": "accuracy"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["main_train.py", "-opt", str(write_options(options, folder / "tiny.json"))])
        assert main_train.main() == 0
    return folder / "experiments" / "tiny" / "models"


@pytest.fixture
def verify(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["main_test.py", "verify", *map(str, arguments)])
        return main_test.main()

    return run


@pytest.mark.parametrize("name", ["best_model.pth", "final_model.pth"])
def test_a_saved_model_measures_as_recorded(
    trained: Path, verify: Callable[..., int], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert verify(trained / name) == 0
    shown = capsys.readouterr().out
    recorded = torch.load(trained / name, weights_only=True)["metrics"]
    assert f"accuracy          {recorded['accuracy']:.4f}" in shown
    assert "recorded          the same" in shown


def test_other_weights_are_noticed(
    trained: Path, verify: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    content = torch.load(trained / "best_model.pth", weights_only=True)
    content["model_state_dict"]["head.bias"] += torch.arange(7.0)
    torch.save(content, tmp_path / "changed.pth")
    assert verify(tmp_path / "changed.pth") == 1
    assert "DIFFERENT" in capsys.readouterr().out


def test_another_split_has_no_record(
    trained: Path, verify: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(trained / "best_model.pth", "--split", "PrivateTest") == 0
    shown = capsys.readouterr().out
    assert "2 samples of fer2013 {'split': 'PrivateTest'}" in shown
    assert "nothing for this split" in shown


def _weights_alone(trained: Path, _folder: Path) -> Path:
    return next(trained.glob("*_G.pth"))


def _truncated(trained: Path, folder: Path) -> Path:
    path = folder / "truncated.pth"
    path.write_bytes((trained / "best_model.pth").read_bytes()[:-2000])
    return path


def _text(_trained: Path, folder: Path) -> Path:
    path = folder / "text.pth"
    path.write_text("not a model")
    return path


def _of_another_network(trained: Path, folder: Path) -> Path:
    content: dict[str, Any] = torch.load(trained / "best_model.pth", weights_only=True)
    content["options"]["netG"]["widths"] = [8, 16]
    torch.save(content, folder / "other.pth")
    return folder / "other.pth"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_weights_alone, "not a self-contained model"),
        (_truncated, "not a readable checkpoint"),
        (_text, "truncated|refused|not a readable"),
        (_of_another_network, "do not fit the options"),
        (lambda _trained, folder: folder / "absent.pth", "no such file"),
    ],
)
def test_a_wrong_file_gets_one_message_and_status_2(
    trained: Path, verify: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path,
    make: Callable[[Path, Path], Path], reason: str,
) -> None:  # fmt: skip
    path = make(trained, tmp_path)
    assert verify(path) == 2
    message = capsys.readouterr().err
    assert any(each in message for each in reason.split("|")), message
    assert "Traceback" not in message
