"""The endless stream of training samples: position -> sample, and which positions a rank draws in which iteration."""

import functools

import numpy as np
import numpy.typing as npt

from utils.utils_error import UserError
from utils.utils_seed import permutation

Indices = npt.NDArray[np.int64]


class TrainStream:
    """Iteration i (1-based) of global batch B draws positions (i-1)B ... iB-1; epoch = position // num_samples.

    Each epoch is a permutation of the data set that depends on (seed, epoch) alone. The ranks share a batch in
    contiguous parts, so any number of ranks draws the same samples in the same iteration. UserError for a batch of more
    samples than there are, or of a number that the ranks do not divide.
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if num_samples < batch_size:
            raise UserError(
                f"datasets.train.dataloader_batch_size: {batch_size} is more than the {num_samples} training samples; "
                f"use {num_samples} or less"
            )
        if batch_size % world_size:
            below = batch_size // world_size * world_size
            allowed = " or ".join(str(size) for size in (below, below + world_size) if size)
            raise UserError(
                f"datasets.train.dataloader_batch_size: {batch_size} is not divisible by {world_size} ranks; "
                f"use {allowed}"
            )
        self.num_samples = num_samples
        self.batch_size = batch_size
        self._seed = seed
        self._share = batch_size // world_size
        self._offset = rank * self._share
        self._order = functools.lru_cache(maxsize=2)(self._shuffle)

    def positions(self, current_iter: int) -> Indices:
        """The positions that this rank draws in iteration `current_iter`: (batch_size / world_size,)."""
        start = (current_iter - 1) * self.batch_size + self._offset
        return np.arange(start, start + self._share, dtype=np.int64)

    def samples(self, positions: Indices) -> Indices:
        """The sample index at each of some consecutive positions: (B,). Not a copy: do not write to it."""
        epoch, place = divmod(int(positions[0]), self.num_samples)
        drawn = self._order(epoch)[place : place + len(positions)]
        rest = positions[len(drawn) :]
        return np.concatenate([drawn, self.samples(rest)]) if len(rest) else drawn

    def epoch(self, current_iter: int) -> int:
        """The 0-based epoch that iteration `current_iter` begins in."""
        return max(current_iter - 1, 0) * self.batch_size // self.num_samples

    def ends_epoch(self, current_iter: int) -> bool:
        """Whether iteration `current_iter` draws the last sample of an epoch."""
        before, after = (current_iter - 1) * self.batch_size, current_iter * self.batch_size
        return after // self.num_samples > before // self.num_samples

    def num_iters(self, num_epochs: int) -> int:
        """The iterations that see every sample `num_epochs` times."""
        return -(-num_epochs * self.num_samples // self.batch_size)

    def _shuffle(self, epoch: int) -> Indices:
        return permutation(self._seed, "shuffle", epoch, self.num_samples)
