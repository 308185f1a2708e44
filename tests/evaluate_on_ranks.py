"""One rank's part of test_metrics: evaluate on small data sets, write the results to <folder>/<rank>.json."""

import functools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.loaders import TestLoader
from data.select_dataset import DataSource
from models.evaluate import evaluate
from models.model_plain import ModelPlain
from tests.helpers import ONE_RANK, net_options
from utils.utils_dist import Dist, process_group
from utils.utils_option import DatasetOptions

METRIC_NAMES = ["accuracy", "balanced_accuracy", "macro_f1", "recall_per_class", "confusion_matrix"]
NUM_CLASSES = 7
SIZES = [1, 2, 5, 13, 16]


class RandomImages:
    """Resident images and class ids; the first of a larger set are those of a smaller one."""

    class_names = tuple("abcdefg")

    def __init__(self, size: int) -> None:
        rng = np.random.default_rng(0)
        self._input = torch.from_numpy(rng.integers(0, 256, (100, 1, 16, 16), dtype=np.uint8))[:size]
        self._target = torch.from_numpy(rng.integers(0, NUM_CLASSES, 100))[:size]
        self.fingerprint = str(size)

    def __len__(self) -> int:
        return len(self._target)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input": self._input[index], "target": self._target[index], "name": self.name(index)}

    def name(self, index: int) -> str:
        return f"image {index}"

    def resident(self) -> dict[str, torch.Tensor]:
        return {"input": self._input, "target": self._target}


def source(size: int) -> DataSource:
    return DataSource("test", RandomImages(size), DatasetOptions(dataset_type="x", dataloader_batch_size=6), None)


def loader(each: DataSource, dist: Dist = ONE_RANK) -> TestLoader:
    return TestLoader(each, dist)


@functools.cache
def model(dist: Dist = ONE_RANK) -> ModelPlain:
    """A network whose buffers differ from rank to rank, as those of batch norm do after training."""
    net = ModelPlain(net_options({"E_decay": 0.5}), dist, 0)
    if dist.rank:
        for buffer in net.tested_net.buffers():
            buffer += dist.rank
    return net


def result(size: int, dist: Dist = ONE_RANK) -> Any:
    return evaluate(model(dist), loader(source(size), dist), METRIC_NAMES, NUM_CLASSES)


def run_rank(rank: int, world_size: int, port: int, folder: Path) -> None:
    """What a process that torchrun starts does."""
    given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    os.environ.update({key: str(value) for key, value in given.items()}, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with process_group(num_threads=1) as dist:
        results = {str(size): result(size, dist) for size in SIZES}
        (folder / f"{rank}.json").write_text(json.dumps(results))
