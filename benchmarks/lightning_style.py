"""`python -m benchmarks.lightning_style FOLDER`: the same training in Lightning, with what it documents for a resume.

ckpt_path="last" with save_last, save_on_exception so that SIGTERM saves too, seed_everything, deterministic, its own
callback for the average, a schedule that it steps and saves, and a data loader with a state, for which it asks ("make
your dataloader resumable by implementing the `state_dict` / `load_state_dict` interface"): torchdata's.
"""

# ruff: noqa: ARG002  # Lightning decides what its hooks are given

from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn as nn
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from torchdata.stateful_dataloader import StatefulDataLoader

from benchmarks.resume_task import Faces, Recorder, Task, read_task

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class FaceClassifier(L.LightningModule):
    """The network of the task with its loss, optimizer and schedule."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.net, self.task = task.network(), task

    def training_step(self, batch: Batch, _batch_idx: int) -> torch.Tensor:
        images, targets, _ = batch
        return nn.functional.cross_entropy(self.net(images), targets)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.Adam(self.net.parameters(), lr=self.task.rate)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(self.task.milestones), self.task.gamma)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Record(Callback):
    """Tells the recorder what happens; stands before the average, which replaces the network when training ends."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def on_train_start(self, trainer: L.Trainer, pl_module: FaceClassifier) -> None:
        self.recorder.started(G=trainer.global_step)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: FaceClassifier, batch: Batch, batch_idx: int) -> None:
        self.rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: FaceClassifier, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.recorder.updated(trainer.global_step, self.rate, batch[2])

    def on_train_end(self, trainer: L.Trainer, pl_module: FaceClassifier) -> None:
        self.netG = pl_module.task.network()
        self.netG.load_state_dict(pl_module.net.state_dict())


def main() -> None:
    task = read_task()
    L.seed_everything(task.seed, workers=True)
    torch.set_num_threads(1)
    record = Record(Recorder(task.folder))
    checkpoint = ModelCheckpoint(
        Path(task.folder) / "checkpoints", every_n_train_steps=task.save_every, save_last=True, save_on_exception=True
    )
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_steps=task.total_iter, max_epochs=-1, deterministic=True, logger=False,
        callbacks=[record, EMAWeightAveraging(decay=task.E_decay), checkpoint], default_root_dir=task.folder,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    model = FaceClassifier(task)
    loader = StatefulDataLoader(Faces(task), task.batch_size, shuffle=True, drop_last=True)
    trainer.fit(model, loader, ckpt_path="last")
    record.recorder.ended(G=record.netG, E=model.net)


if __name__ == "__main__":
    main()
