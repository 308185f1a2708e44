"""What several tests share and is no fixture: options as mappings and files, models, batches, records of the log."""

import copy
import json
import logging
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tables import TABLES
from tests.fer2013_files import random_faces, row_of, write_csv
from utils import utils_option
from utils.utils_dist import Dist
from utils.utils_option import Options

NORMALIZE = {"type": "normalize", "mean": 0.5, "std": 0.25}
ALL_TRANSFORMS = [
    {"type": "random_affine", "flip": 0.5, "rotation": 10, "scale": 0.1, "shift": 0.05},
    {"type": "brightness_contrast", "brightness": 0.1, "contrast": 0.2},
    {"type": "random_erasing", "probability": 0.5},
    {"type": "mixup", "alpha": 0.5},
    NORMALIZE,
]

_LAUNCH = {"state": "DONE", "from_iter": 0, "to_iter": 4, "machine": {}}
EDITED_STATUSES: list[dict[str, Any]] = [
    {"state": ["DONE"], "last_committed_iter": "abc", "began_at_iter": "abc"},
    {"launches": "none"},
    {"launches": [5, "DONE", None, {}]},
    {"launches": [{**_LAUNCH, "machine": "mine"}]},
    {"launches": [{**_LAUNCH, "machine": {"code": 5}}]},
    {"launches": [{**_LAUNCH, "from_iter": "abc"}, {**_LAUNCH, "to_iter": None}, {**_LAUNCH, "state": []}] * 2},
    {"launches": [{**_LAUNCH, "launched": 5, "ended": []}]},
    {"launches": [{**_LAUNCH, "launched": "2026-01-01 10:00:00", "ended": "2026-01-01 11:00:00+01:00"}]},
]
"""What people may make of status.json, as changes of it."""


def tiny_csv(folder: Path, num_train: int = 20, num_test: int = 9, seed: int = 0) -> str:
    """fer2013.csv of random faces: labels 0..6 in turn; Training, PublicTest, and two rows of PrivateTest."""
    usages = ["Training"] * num_train + ["PublicTest"] * num_test + ["PrivateTest"] * 2
    faces = random_faces(len(usages), seed)
    folder.mkdir(parents=True, exist_ok=True)
    return write_csv(folder / "fer2013.csv", [row_of(faces[i], i % 7, usage) for i, usage in enumerate(usages)])


def tiny_option_mapping(root: Path, csv: str) -> dict[str, Any]:
    """Six iterations of a network with 2,600 parameters; every random thing is on."""
    return {
        "task": "tiny",
        "path": {"root": str(root)},
        "datasets": {
            "train": {
                "dataset_type": "fer2013",
                "dataroot": csv,
                "split": "Training",
                "dataloader_batch_size": 8,
                "transforms": copy.deepcopy(ALL_TRANSFORMS),
            },
            "test": {"split": "PublicTest", "dataloader_batch_size": 4, "transforms": [dict(NORMALIZE)]},
        },
        "netG": {"net_type": "fer_resnet", "widths": [8, 8], "depths": [1, 1], "dropout": 0.2},
        "train": {
            "G_lossfn_type": "cross_entropy",
            "G_lossfn_args": {"label_smoothing": 0.05},
            "G_optimizer_type": "adamw",
            "G_optimizer_lr": 0.01,
            "G_optimizer_wd": 0.01,
            "G_optimizer_clipgrad": 1.0,
            "G_scheduler_type": "CosineAnnealing",
            "G_scheduler_warmup_iter": 2,
            "G_scheduler_eta_min": 1e-4,
            "G_accumulation_steps": 2,
            "E_decay": 0.9,
            "total_iter": 6,
            "checkpoint_print": 2,
            "checkpoint_save": 2,
            "checkpoint_test": 3,
            "manual_seed": 0,
            "num_threads": 1,
        },
        "val": {"metrics": ["accuracy", "confusion_matrix"], "best_metric": "accuracy", "save_img": False},
        "log": {"tensorboard": False, "progress_bar": False},
    }


def changed(options: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """A copy with changes such as train__total_iter=8, which stands for train.total_iter; a section is replaced."""
    result = copy.deepcopy(dict(options))
    for path, value in changes.items():
        *sections, key = path.split("__")
        section = result
        for name in sections:
            section = section.setdefault(name, {})
        section[key] = value
    return result


def write_options(options: Mapping[str, Any], path: Path) -> Path:
    """The mapping as a JSON option file."""
    path.write_text(json.dumps(options, indent=2))
    return path


def validated(options: Mapping[str, Any], tables: bool = True) -> Options:
    return utils_option.validate(options, "test", TABLES if tables else None)


def net_options(train: Mapping[str, Any] | None = None, **netG: Any) -> Options:
    """Options of a model alone: plain SGD and no average unless `train` says so."""
    return validated(
        {
            "task": "model",
            "datasets": {"train": {"dataset_type": "fer2013", "split": "Training", "dataloader_batch_size": 8}},
            "netG": {"net_type": "fer_resnet", "widths": [4, 8], "depths": [1, 1], **netG},
            "train": {
                "G_lossfn_type": "cross_entropy",
                "G_optimizer_type": "sgd",
                "G_optimizer_lr": 0.1,
                "E_decay": 0.0,
                "total_iter": 10,
                **(train or {}),
            },
        },
        tables=False,
    )


def class_batch(number: int, size: int = 8, num_classes: int = 7, pixels: int = 16) -> dict[str, Any]:
    """Batch number `number`: random images (B, 1, H, W), random class ids (B,)."""
    rng = np.random.default_rng(number)
    return {
        "input": torch.from_numpy(rng.random((size, 1, pixels, pixels), dtype=np.float32)),
        "target": torch.from_numpy(rng.integers(0, num_classes, size)),
        "name": [f"{number}:{place}" for place in range(size)],
    }


def same_tensors(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    """Whether two state dicts have the same names in the same order and bit-equal values."""
    return list(first) == list(second) and all(
        a.dtype == b.dtype and a.shape == b.shape and _bytes(a) == _bytes(b)
        for a, b in zip(first.values(), second.values(), strict=True)
    )


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def messages(records: list[logging.LogRecord], level: int = logging.NOTSET) -> str:
    """The text of all records of at least this level."""
    return "\n".join(record.getMessage() for record in records if record.levelno >= level)


ONE_RANK = Dist()


def contrast(first: Sequence[float], second: Sequence[float]) -> float:
    """The ratio of WCAG 2 between two colours, red, green and blue from 0 to 1: 1 to 21, 4.5 for ordinary text."""
    linear = [(((np.array(each) + 0.055) / 1.055) ** 2.4 @ [0.2126, 0.7152, 0.0722]) for each in (first, second)]
    return float((max(linear) + 0.05) / (min(linear) + 0.05))


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
