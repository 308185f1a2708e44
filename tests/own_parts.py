"""A user's own network, loss, schedule and data set in their tables, and launches with them."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn

import main_train
from data.select_dataset import DATASETS
from models.learning_rate import SCHEDULES
from models.loss import LOSSES
from models.select_network import NETWORKS
from tests.helpers import changed, tiny_option_mapping, write_options
from utils.utils_metrics import METRICS

NUM_SAMPLES, NUM_CLASSES, LAST = 24, 3, 6

Launch = Callable[..., int]


class Numbers:
    """Resident samples (64,) of three classes; a subclass spoils one thing."""

    class_names = ("none", "one", "two")

    def __init__(self, dataroot: str, split: str = "train") -> None:
        self.fingerprint: Any = f"{dataroot} {split}"
        generator = torch.Generator().manual_seed(len(split))
        self._input = torch.rand(NUM_SAMPLES, 64, generator=generator)
        self._target = torch.arange(NUM_SAMPLES) % NUM_CLASSES

    @staticmethod
    def is_available(dataroot: str) -> bool:
        return bool(dataroot)

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input": self._input[index], "target": self._target[index], "name": str(index)}


class Resident(Numbers):
    def resident(self) -> dict[str, Any]:
        return {"input": self._input, "target": self._target}

    def name(self, index: int) -> str:
        return str(index)


class Linear(nn.Module):
    """A linear classifier; a subclass does one thing more."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, NUM_CLASSES)

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x)


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launch:
    """Train on Resident with Linear and cross entropy, or with the parts given; returns the exit status."""

    def launch(
        task: str = "own", data: type = Resident, net: type = Linear,
        loss: Callable[[], nn.Module] = nn.CrossEntropyLoss,
        schedule: Callable[[int, Any], Any] = lambda _iter, _train: 1.0,
        metric: Callable[[], Any] | None = None, **more: Any,
    ) -> int:  # fmt: skip
        parts = [(DATASETS, data), (NETWORKS, net), (LOSSES, loss), (SCHEDULES, schedule)]
        for table, part in [*parts, *([(METRICS, metric)] if metric else [])]:
            monkeypatch.setattr(table, "_entries", {**table._entries, "own": part})  # type: ignore[attr-defined]
        options = changed(
            tiny_option_mapping(tmp_path, csv="unused"), task=task, netG={"net_type": "own"},
            datasets={
                "train": {"dataset_type": "own", "dataroot": "x", "split": "train", "dataloader_batch_size": 8},
                "test": {"split": "test"},
            },
            val={"metrics": ["accuracy", *(["own"] if metric else [])], "best_metric": "accuracy", "save_img": False},
            train__G_lossfn_type="own", train__G_lossfn_args={}, train__G_scheduler_type="own",
            train__total_iter=LAST,
        )  # fmt: skip
        options = changed(options, **more)
        monkeypatch.setattr(sys, "argv", ["main_train.py", "-opt", str(write_options(options, tmp_path / "o.json"))])
        return main_train.main()

    return launch


def refused(launch: Launch, capsys: pytest.CaptureFixture[str], **parts: Any) -> str:
    """What a launch says that ends before it trains."""
    assert launch(**parts) == 2
    said = capsys.readouterr()
    assert "iter:" not in said.out + said.err
    return said.out + said.err


def files(folder: Path, parts: Sequence[str] = ("G", "E", "optimizerG")) -> Mapping[str, bytes]:
    return {part: (folder / "models" / f"{LAST}_{part}.pth").read_bytes() for part in parts}
