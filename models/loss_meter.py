"""The losses of a run: kept on the device until somebody needs them, then means over the ranks."""

import math

import torch

from utils.utils_dist import Dist


class NonFiniteLossError(ArithmeticError):
    """The loss or the gradient was not finite; the message names the iteration and the value."""


class LossMeter:
    """The losses of the updates: `add` leaves them on the device, `collect` waits for it, for a log line, test or save.

    sum: of the `count` losses, means over the ranks, that were collected since the last `take_mean`; a resume restores
    both.
    """

    def __init__(self, dist: Dist) -> None:
        self.sum, self.count = 0.0, 0
        self._dist = dist
        self._on_device: list[torch.Tensor] = []
        self._unlogged: list[float] = []

    def add(self, loss: torch.Tensor) -> None:
        """Take the loss of one update, a detached scalar on the device."""
        self._on_device.append(loss)

    def collect(self, current_iter: int) -> None:
        """Fetch the losses up to this iteration; NonFiniteLossError on every rank if one is not finite. Collective."""
        if not self._on_device:
            return
        losses: list[float] = (self._dist.sum(torch.stack(self._on_device).cpu()) / self._dist.world_size).tolist()
        for iteration, loss in enumerate(losses, current_iter - len(losses) + 1):
            if not math.isfinite(loss):
                raise NonFiniteLossError(f"the loss of iteration {iteration} is {loss}")
        self._on_device.clear()
        self._unlogged += losses
        self.count += len(losses)
        for loss in losses:  # one by one: the same bits wherever a run was cut
            self.sum += loss

    def take_logged(self) -> float | None:
        """The mean of what was collected since the last call; None if there was nothing."""
        mean = sum(self._unlogged) / len(self._unlogged) if self._unlogged else None
        self._unlogged.clear()
        return mean

    def take_mean(self) -> float | None:
        """The mean of what was collected since the last call, whatever launches it spans; None without a loss."""
        mean = self.sum / self.count if self.count else None
        self.sum, self.count = 0.0, 0
        return mean
