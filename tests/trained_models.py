"""One short run for all tests of main_test.py, and its commands."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import main_test
import main_train
from tests.helpers import NORMALIZE, changed, tiny_csv, tiny_option_mapping, write_options

CLASSES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "recall_per_class", "confusion_matrix")

Command = Callable[..., int]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models folder of the run."""
    folder = tmp_path_factory.mktemp("trained")
    options = tiny_option_mapping(folder / "experiments", tiny_csv(folder, num_train=40, num_test=21))
    options = changed(
        options, val={"metrics": METRICS, "best_metric": "accuracy"}, train__G_optimizer_lr=0.03,
        datasets__train__transforms=[NORMALIZE], train__G_lossfn_args={}, netG__dropout=0.0,  # opinions are wanted
        train__total_iter=60, train__checkpoint_test=20, train__checkpoint_save=20,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["main_train.py", "-opt", str(write_options(options, folder / "tiny.json"))])
        assert main_train.main() == 0
    return folder / "experiments" / "tiny" / "models"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run main_test.py with these arguments; returns the exit status."""

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["main_test.py", *map(str, arguments)])
        return main_test.main()

    return run


def add_notes(metrics: Path) -> None:
    """A column of text in metrics.csv, as people add it."""
    head, *lines = metrics.read_text().splitlines()
    metrics.write_text("\n".join([f"{head},notes", *(f"{line},looks good" for line in lines), ""]))
