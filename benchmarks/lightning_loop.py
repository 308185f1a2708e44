"""Lightning's loop around the bare model of benchmarks.loops; imported only where Lightning is installed."""

# ruff: noqa: ARG002  # Lightning decides what its hooks are given

import logging
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch.utils.data import DataLoader

if TYPE_CHECKING:
    from benchmarks.loops import Bare, Pair


class Classifier(L.LightningModule):
    """The bare model with its loss and optimizer."""

    def __init__(self, model: "Bare", tick: Callable[[], None]) -> None:
        super().__init__()
        self.net, self._model, self._tick = model.net, model, tick

    def training_step(self, batch: "Pair", _batch_idx: int) -> torch.Tensor:
        return self._model.loss(*batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self._model.optimizer

    def on_train_batch_end(self, outputs: Any, batch: "Pair", batch_idx: int) -> None:
        self._tick()


def fit(model: "Bare", loader: "DataLoader[Pair]", is_bf16: bool, tick: Callable[[], None]) -> None:
    """Train for ever; no logger, progress bar or checkpoints."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")  # it would have workers for the data, which the other loops have not either
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_epochs=-1, precision="bf16-mixed" if is_bf16 else "32-true", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Classifier(model, tick), loader)
