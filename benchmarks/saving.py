"""What a checkpoint set of 409 MB costs the loop, how soon it is durable, and what training pays meanwhile.

    python -m benchmarks.saving

The set is that of 25.6M parameters: netG, netE and Adam's two moments. All contenders write to one folder of the disk
that holds the temporary files.
"""

import functools
import gc
import itertools
import os
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from torch.distributed.checkpoint.state_dict_saver import async_save

from benchmarks.measure import Mark, Row, interleave, main, num_cores
from utils.utils_checkpoint import CheckpointFolder, Manifest
from utils.utils_progress import Progress
from utils.utils_snapshot import BackgroundWriter

WIDTH, DEPTH = 508, 11  # 25.6M parameters
STEPS = 10

State = dict[str, Any]


class Training:
    """A network of DEPTH convolutions, its average and its optimizer: what is saved, and steps that go on meanwhile."""

    def __init__(self, width: int = WIDTH, depth: int = DEPTH) -> None:
        def network() -> nn.Sequential:
            layers = [[nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)] for _ in range(depth)]
            return nn.Sequential(*itertools.chain.from_iterable(layers))

        self.netG, self.netE = network(), network()
        self.optimizer = torch.optim.Adam(self.netG.parameters(), fused=True)
        self._images = torch.randn(2, width, 2, 2)
        self.step()

    def step(self) -> None:
        """One update."""
        self.optimizer.zero_grad()
        self.netG(self._images).square().mean().backward()
        self.optimizer.step()

    def state(self) -> State:
        """The parts of a set."""
        return {"G": self.netG.state_dict(), "E": self.netE.state_dict(), "optimizerG": self.optimizer.state_dict()}

    def arrays(self) -> list[np.ndarray]:
        """All tensors in the set."""
        moments = [each for state in self.optimizer.state.values() for each in state.values()]
        weights = [*self.netG.state_dict().values(), *self.netE.state_dict().values()]
        return [each.numpy() for each in (*weights, *moments)]

    def num_bytes(self) -> int:
        """Of all tensors in the set."""
        return sum(each.nbytes for each in self.arrays())


class Longhaul:
    """Sets committed as the trainer commits them."""

    def __init__(self, folder: Path) -> None:
        self._checkpoints = CheckpointFolder(folder)
        self._iterations = itertools.count(1)
        self._is_written = threading.Event()
        self.writer = BackgroundWriter()
        self.durable_at = 0.0  # of the newest set, on the clock of time.perf_counter

    def save(self, state: State) -> None:
        """Returns when the loop may go on."""
        manifest = Manifest(
            iteration=next(self._iterations), epoch=0, reason="periodic", progress=Progress(), stream={}, machine={}
        )
        self._is_written.clear()
        self.writer.save("checkpoint set", state, lambda copied: self._commit(copied, manifest))

    @property
    def is_writing(self) -> bool:
        """Whether the set that was saved last is still on its way."""
        return not (self._is_written.is_set() or self.writer.failed)

    def wait(self) -> None:
        """Returns when the set is durable and the oldest one is gone."""
        self.writer.wait()
        assert not self.writer.failed

    def _commit(self, copied: State, manifest: Manifest) -> None:
        self._checkpoints.commit(copied, manifest, max_to_keep=0)
        self.durable_at = time.perf_counter()
        self._checkpoints.prune(2)
        self._is_written.set()


def measure(rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        return measure_in(Path(folder), Training(), rounds)


def measure_in(folder: Path, training: Training, rounds: int) -> list[Row]:
    """The rows, with all files in `folder`."""
    ours = Longhaul(folder)
    for _ in range(2):  # allocates the copy; from the third on a set is pruned for each that is written
        ours.save(training.state())
        ours.wait()
    try:
        size = f"{training.num_bytes() / 1e6:.0f} MB set (G + E + Adam)"
        return [*stall_rows(size, folder, training, ours, rounds),
                durable_row(size, folder, training, ours, rounds),
                step_row(size, training, ours, rounds)]  # fmt: skip
    finally:
        ours.writer.close()


def stall_rows(size: str, folder: Path, training: Training, ours: Longhaul, rounds: int) -> list[Row]:
    """For how long the loop stands still: CPU time of its thread, and wall time. All copy with one thread.

    The peers write into a folder that is new, as each of their saves does; it is removed while nobody is measured.

    The limit is a memcpy of each tensor. One of all bytes in one block is shown as well: where that is larger than most
    of the cache, the C library writes past the cache, which no tensor of the set is large enough for.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # others than the loop's own would not be in its CPU time
    sources = training.arrays()
    targets = [each.copy() for each in sources]
    block, other_block = (np.ones(training.num_bytes(), dtype=np.uint8) for _ in range(2))
    calls: dict[str, tuple[Callable[[Path], Any], Callable[[Any], Any]]] = {
        "memcpy": (lambda _: list(map(np.copyto, targets, sources)), ignore),
        "memcpy of one block": (lambda _: np.copyto(other_block, block), ignore),
        "Longhaul": (lambda _: ours.save(training.state()), lambda _: ours.wait()),
        "KAIR style": (lambda new: three_saves(new, training.state()), ignore),
        "DCP async_save": (lambda new: save_async(new, training.state()), lambda future: future.result()),
    }
    cpu: dict[str, list[float]] = {name: [] for name in calls}

    def timed(name: str) -> float:
        call, finish = calls[name]
        with tempfile.TemporaryDirectory(dir=folder) as new:
            settle()
            start, cpu_start = time.perf_counter(), time.thread_time()
            pending = call(Path(new))
            cpu[name].append(1e3 * (time.thread_time() - cpu_start))
            wall = 1e3 * (time.perf_counter() - start)
            finish(pending)
        return wall

    wall = interleave({name: functools.partial(timed, name) for name in calls}, rounds)
    torch.set_num_threads(threads)
    note = "KAIR style is neither atomic nor durable; memcpy copies each tensor into one of its own; one thread"
    mark = (Mark(1.15, "memcpy"),)
    return [
        Row(f"{size}: the loop stands still, CPU", "ms", "Longhaul", cpu, mark, note),
        Row(f"{size}: the loop stands still", "ms", "Longhaul", wall, mark, note),
    ]


def durable_row(size: str, folder: Path, training: Training, ours: Longhaul, rounds: int) -> Row:
    """How soon after the call the files survive a power cut. Both write new files, and remove old ones afterwards."""

    def in_background() -> float:
        settle()
        start = time.perf_counter()
        ours.save(training.state())
        ours.wait()
        return ours.durable_at - start

    def save_and_sync() -> float:
        settle()
        start = time.perf_counter()
        torch.save(training.state(), folder / "new.pth")
        with open(folder / "new.pth", "rb") as file:
            os.fsync(file.fileno())
        seconds = time.perf_counter() - start
        (folder / "new.pth").replace(folder / "old.pth")
        return seconds

    samples = interleave({"Longhaul": in_background, "torch.save + fsync": save_and_sync}, rounds)
    note = "ours is hashed, checked for finite values and committed, in the background"
    return Row(f"{size}: durable after", "s", "Longhaul", samples, (Mark(1.0, "torch.save + fsync"),), note)


def step_row(size: str, training: Training, ours: Longhaul, rounds: int) -> Row:
    """The mean step while a set is being written, and else; the step leaves one core free where there are several."""

    def during_a_save() -> float:
        settle()
        ours.save(training.state())
        seconds: list[float] = []
        while not seconds or ours.is_writing:
            seconds.append(timed(training.step)())
        ours.wait()
        return 1e3 * statistics.mean(seconds)

    def alone() -> float:
        settle()
        return 1e3 * statistics.mean(timed(training.step)() for _ in range(STEPS))

    cores, threads = num_cores(), torch.get_num_threads()
    for_the_step = max(1, min(threads, cores - 1))
    torch.set_num_threads(for_the_step)
    samples = interleave({"a step during a save": during_a_save, "a step": alone}, rounds)
    torch.set_num_threads(threads)
    note = f"{cores} cores, {for_the_step} of them for the step"
    marks = (Mark(1.05, "a step"),) if cores > for_the_step else ()
    return Row(f"{size}: a step while it is written", "ms", "a step during a save", samples, marks, note)


def three_saves(folder: Path, state: State) -> None:
    for part, content in state.items():
        torch.save(content, folder / f"{part}.pth")


def save_async(folder: Path, state: State) -> Any:
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process saves
    return async_save(state, checkpoint_id=folder)


def settle() -> None:
    """Leave nothing of the contender before for this one to pay."""
    gc.collect()
    os.sync()


def timed(call: Callable[[], Any]) -> Callable[[], float]:
    def seconds() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return seconds


def ignore(_pending: Any) -> None:
    pass


if __name__ == "__main__":
    sys.exit(main(measure, __doc__))
