"""Buffers that no file holds, which a resume starts afresh."""

import logging

import torch
import torch.nn as nn

from models.model_base import listing

logger = logging.getLogger("longhaul")


class UnsavedBuffers:
    """The loss's buffers, and those of a network that are not persistent, as they are before training."""

    def __init__(self, net: nn.Module, lossfn: nn.Module) -> None:
        self._nets = net, lossfn
        self._first = {name: buffer.clone() for name, buffer in self._buffers().items()}

    def warn_if_changed(self) -> None:
        """Say once which of them training has changed: a cache may, a running mean makes a resume inexact."""
        now = self._buffers() if self._first else {}
        changed = [name for name, buffer in now.items() if not torch.equal(buffer, self._first.get(name, buffer))]
        if changed:
            logger.warning(
                "%s: changed in training and in no file, so a resume starts afresh there and may not be exact; "
                "what training changes belongs into a persistent buffer of netG.", listing(changed),
            )  # fmt: skip
            self._first.clear()

    def _buffers(self) -> dict[str, torch.Tensor]:
        net, lossfn = self._nets
        saved = net.state_dict().keys()
        unsaved = {f"netG.{name}": buffer for name, buffer in net.named_buffers() if name not in saved}
        return {**unsaved, **{f"lossfn.{name}": buffer for name, buffer in lossfn.named_buffers()}}
