"""One run of benchmarks.growth in a process a rank: `python -m benchmarks.growth_run JOB FOLDER`, the job as JSON.

FOLDER/options.json is there already, from `options`: no rank may read it while another one writes. main_train.py's own
loop trains on images that are made in memory. At marked iterations the process notes its clocks and its memory; from
iteration `bare_from` on, a bare loop of the same network then does `bare_iters` iterations of its own.
"""

import copy
import dataclasses
import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import data.select_dataset
import main_train
from data.select_dataset import DataSource
from models.model_plain import Batch, ModelPlain
from models.optimizer import define_optimizer
from trainer import Trainer
from utils.utils_dist import end_process, launched_rank
from utils.utils_option import DatasetOptions

NORMALIZE = {"type": "normalize", "mean": 0.5, "std": 0.25}
NUM_CLASSES = 7


@dataclasses.dataclass(frozen=True)
class Job:
    """What is trained. every: iterations between two notes; save_every: 0 is at the end; test_every: 0 is never."""

    widths: tuple[int, ...]
    batch_size: int
    num_samples: int
    pixels: int
    total_iter: int
    every: int
    save_every: int = 0
    test_every: int = 0
    bare_from: int = 0
    bare_iters: int = 0
    num_ranks: int = 1


@dataclasses.dataclass
class Notes:
    """What one rank wrote down: a value for each `every` iterations, with the tests and saves that fell into them.

    Bytes are taken at their end. `bare_seconds` has a value for each note from `bare_from` on.
    """

    num_parameters: int = 0
    iters: list[int] = dataclasses.field(default_factory=list)
    cpu_seconds: list[float] = dataclasses.field(default_factory=list)
    wall_seconds: list[float] = dataclasses.field(default_factory=list)
    allocated_bytes: list[int] = dataclasses.field(default_factory=list)
    bare_seconds: list[float] = dataclasses.field(default_factory=list)


class RandomImages:
    """`num_samples` uint8 images (1, pixels, pixels) of noise, and class ids, resident."""

    class_names = tuple(f"class {number}" for number in range(NUM_CLASSES))
    view = "classification"

    def __init__(self, num_samples: int, pixels: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.fingerprint = f"noise {num_samples} {pixels} {seed}"
        self._input = torch.from_numpy(rng.integers(0, 256, (num_samples, 1, pixels, pixels), dtype=np.uint8))
        self._target = torch.from_numpy(rng.integers(0, NUM_CLASSES, num_samples))

    @staticmethod
    def is_available(dataroot: str) -> bool:  # noqa: ARG004 - of the protocol
        return True

    def __len__(self) -> int:
        return len(self._target)

    def __getitem__(self, index: int) -> Batch:
        return {"input": self._input[index], "target": self._target[index], "name": self.name(index)}

    def name(self, index: int) -> str:
        return str(index)

    def resident(self) -> dict[str, torch.Tensor]:
        return {"input": self._input, "target": self._target}


def options(job: Job, folder: Path) -> dict[str, Any]:
    """The option file of the job, whose experiment is FOLDER/run."""
    images = {"dataset_type": "fer2013", "transforms": [NORMALIZE]}
    datasets = {"train": {**images, "split": "Training", "dataloader_batch_size": job.batch_size}}
    val: dict[str, Any] = {}
    if job.test_every:
        datasets["test"] = {**images, "split": "PublicTest"}
        val = {"metrics": ["accuracy", "confusion_matrix"], "best_metric": "accuracy"}
    return {
        "task": "run",
        "path": {"root": str(folder)},
        "datasets": datasets,
        "netG": {"net_type": "fer_resnet", "widths": job.widths, "depths": [1] * len(job.widths)},
        "train": {
            "G_lossfn_type": "cross_entropy",
            "G_optimizer_lr": 1e-3,
            "total_iter": job.total_iter,
            "checkpoint_print": 100,
            "checkpoint_save": job.save_every or job.total_iter,
            "checkpoint_test": job.test_every or job.total_iter,
            "max_to_keep": 2,
            "manual_seed": 0,
            "num_threads": 1,
        },
        "val": val,
        "log": {"progress_bar": False},
    }


def watch(job: Job, notes: Notes) -> None:
    """Put the images in the place of data from disk, and the notes and the bare loop between the trainer's batches."""
    trainers_batches = Trainer.batches

    def define_dataset(name: str, options: DatasetOptions) -> DataSource:
        num_samples = job.num_samples if name == "train" else 256
        return DataSource(name, RandomImages(num_samples, job.pixels, seed=len(name)), options, None)

    def batches(self: Trainer) -> Iterator[tuple[int, list[Batch]]]:
        notes.num_parameters = sum(each.numel() for each in self.model.netG.parameters())
        bare = None
        cpu, wall = time.process_time(), time.perf_counter()
        for current_iter, micro_batches in trainers_batches(self):
            yield current_iter, micro_batches
            if current_iter % job.every:
                continue
            notes.cpu_seconds.append(time.process_time() - cpu)
            notes.wall_seconds.append(time.perf_counter() - wall)
            notes.allocated_bytes.append(allocated_bytes())
            notes.iters.append(current_iter)
            if job.bare_iters and current_iter >= job.bare_from:
                bare = bare or BareLoop(self.model, micro_batches[0])
                notes.bare_seconds.append(bare.train(job.bare_iters))
            cpu, wall = time.process_time(), time.perf_counter()

    data.select_dataset.define_dataset = define_dataset
    Trainer.batches = batches  # type: ignore[method-assign]


class BareLoop:
    """Forward, backward and step on one staged batch: a copy of the network, its loss and its optimizer, no more."""

    def __init__(self, model: ModelPlain, batch: Batch) -> None:
        self._net = copy.deepcopy(model.netG)
        self._lossfn = model.lossfn
        self._optimizer = define_optimizer(self._net, model.opt.train)
        self._input, self._target = batch["input"], batch["target"]
        self.train(1)  # the optimizer's state is made in the first step

    def train(self, num_iters: int) -> float:
        """The CPU seconds of so many iterations."""
        start = time.process_time()
        for _ in range(num_iters):
            self._optimizer.zero_grad(set_to_none=True)
            self._lossfn(self._net(self._input), self._target).backward()
            self._optimizer.step()
        return time.process_time() - start


def allocated_bytes() -> int:
    """The anonymous memory of this process that is resident: all but files, whose pages the system takes and returns.

    Linux only.
    """
    _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
    return (int(resident) - int(shared)) * resource.getpagesize()


def main() -> int:
    job, folder, notes = Job(**json.loads(sys.argv[1])), Path(sys.argv[2]), Notes()
    option_file = folder / "options.json"
    watch(job, notes)
    sys.argv = ["main_train.py", "-opt", str(option_file)]
    status = main_train.main()
    (folder / f"notes_{launched_rank()}.json").write_text(json.dumps(dataclasses.asdict(notes)))
    return status


if __name__ == "__main__":
    end_process(main())
