"""`python -m benchmarks.longhaul_style FOLDER`: main_train.py with the same training, and the recorder around it."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import main_train
import trainer
from benchmarks.resume_task import MEAN, STD, Recorder, Task, read_task, row_of
from data.loaders import define_train_loader
from models.model_plain import Batch, ModelPlain
from trainer import Trainer


def options(task: Task) -> dict[str, Any]:
    """The option file of the task."""
    transforms: list[dict[str, Any]] = [{"type": "normalize", "mean": MEAN, "std": STD}]
    if not task.plain:
        transforms.insert(0, {"type": "random_affine", "flip": task.flip})
    return {
        "task": "run",
        "path": {"root": task.folder},
        "datasets": {
            "train": {
                "dataset_type": "fer2013",
                "dataroot": task.csv,
                "split": "Training",
                "dataloader_batch_size": task.batch_size,
                "transforms": transforms,
            }
        },
        "netG": {
            "net_type": "fer_resnet",
            "widths": task.widths,
            "depths": [1] * len(task.widths),
            "dropout": task.dropout,
        },
        "train": {
            "G_lossfn_type": "cross_entropy",
            "G_optimizer_type": "adam",
            "G_optimizer_lr": task.rate,
            "G_scheduler_type": "MultiStepLR",
            "G_scheduler_milestones": task.milestones,
            "G_scheduler_gamma": task.gamma,
            "E_decay": task.E_decay,
            "total_iter": task.total_iter,
            "checkpoint_save": task.save_every,
            "manual_seed": task.seed,
            "num_threads": 1,
        },
        "log": {"tensorboard": False},
    }


def record(recorder: Recorder) -> None:
    """Wrap what loads, updates and ends, so that the recorder hears of it."""
    resume, update_E, finish = Trainer.resume, ModelPlain.update_E, Trainer.finish
    samples: dict[int, list[int]] = {}

    def resumed(self: Trainer) -> None:
        resume(self)
        recorder.started(G=self.start_iter)

    def watched_loader(*args: Any) -> Iterator[tuple[int, list[Batch]]]:
        for current_iter, micro_batches in define_train_loader(*args):
            samples[current_iter] = [row_of(name) for batch in micro_batches for name in batch["name"]]
            yield current_iter, micro_batches

    def updated(self: ModelPlain, current_iter: int) -> None:
        update_E(self, current_iter)
        recorder.updated(current_iter, self.current_learning_rate(), samples[current_iter])

    def finished(self: Trainer, current_iter: int) -> int:
        status = finish(self, current_iter)
        if status == 0 and self.model.netE is not None:
            recorder.ended(G=self.model.netG, E=self.model.netE)
        return status

    Trainer.resume, ModelPlain.update_E, Trainer.finish = resumed, updated, finished  # type: ignore[method-assign]
    trainer.define_train_loader = watched_loader  # type: ignore[attr-defined, assignment]


def main() -> int:
    task = read_task()
    option_file = Path(task.folder) / "options.json"
    option_file.write_text(json.dumps(options(task)))
    record(Recorder(task.folder))
    sys.argv = ["main_train.py", "-opt", str(option_file)]
    return main_train.main()


if __name__ == "__main__":
    sys.exit(main())
