"""What the three scripts of `benchmarks.resume` share: the task, the record of what was done, and the accidents."""

import dataclasses
import hashlib
import json
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.utils.data

from data.dataset_fer2013 import Fer2013
from models.network_fer_resnet import FerResNet

MEAN, STD = 0.5, 0.25


@dataclasses.dataclass(frozen=True)
class Task:
    """One training run, the same for every trainer; `plain`: only the initial weights and the order are random."""

    csv: str
    folder: str
    plain: bool = False
    seed: int = 0
    num_samples: int = 320
    batch_size: int = 16
    total_iter: int = 80
    save_every: int = 8
    rate: float = 0.01
    milestones: tuple[int, ...] = (15, 30, 45, 60, 75)
    gamma: float = 0.5
    E_decay: float = 0.999
    widths: tuple[int, ...] = (8, 16)

    @property
    def flip(self) -> float:
        return 0.0 if self.plain else 0.5

    @property
    def dropout(self) -> float:
        return 0.0 if self.plain else 0.2

    def network(self) -> FerResNet:
        return FerResNet(widths=self.widths, depths=(1,) * len(self.widths), dropout=self.dropout)

    def write(self) -> None:
        """Write task.json, from which the scripts read it, into its folder."""
        Path(self.folder).mkdir(parents=True)
        (Path(self.folder) / "task.json").write_text(json.dumps(dataclasses.asdict(self)))


def read_task() -> Task:
    """The task in the folder that the command line names."""
    return Task(**json.loads((Path(sys.argv[1]) / "task.json").read_text()))


class Faces(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor, int]]):
    """Index -> (image (1, 48, 48), class, row of the CSV); mirrors at random, as data sets of this kind do."""

    def __init__(self, task: Task) -> None:
        self._faces, self._flip = Fer2013(task.csv, "Training"), task.flip

    def __len__(self) -> int:
        return len(self._faces)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        sample = self._faces[index]
        image, target = sample["input"], sample["target"]
        assert isinstance(image, torch.Tensor)
        assert isinstance(target, torch.Tensor)
        image = (image / 255 - MEAN) / STD
        if self._flip and torch.rand(()) < self._flip:
            image = image.flip(-1)
        return image, target, row_of(self._faces.name(index))


def row_of(name: str) -> int:
    """17 of "fer2013.csv:row 17"."""
    return int(name.rpartition(" ")[2])


class Recorder:
    """Appends a line to log.jsonl for each launch, update and end, and lets the accident in $ACCIDENT happen.

    An accident is JSON, [iteration, kind], and happens in that iteration, after its line is written: "SIGKILL",
    "SIGTERM", "between files" (SIGKILL when the first torch.save after it has returned), or "in a file" (the kernel
    kills the process in the middle of the next large write).
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._accident_iter, self._accident = json.loads(os.environ.get("ACCIDENT", '[0, ""]'))

    def started(self, **loaded: int) -> None:
        """A launch begins with these parts, each of that iteration (0: fresh); "G" is one of them."""
        self._write(started=loaded)

    def updated(self, current_iter: int, rate: float, samples: Iterable[int]) -> None:
        """Iteration `current_iter` is done, with this learning rate and these rows of the CSV."""
        self._write(iter=current_iter, rate=rate, samples=[int(sample) for sample in samples])
        if current_iter == self._accident_iter:
            self._strike()

    def ended(self, **nets: nn.Module) -> None:
        """The run has reached its last iteration with these networks."""
        self._write(ended={name: _digest(net) for name, net in nets.items()})

    def _write(self, **line: Any) -> None:
        with open(self._folder / "log.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")

    def _strike(self) -> None:
        if self._accident == "between files":
            original = torch.save

            def save_and_die(*args: Any, **kwargs: Any) -> None:
                original(*args, **kwargs)
                os.kill(os.getpid(), signal.SIGKILL)

            torch.save = save_and_die
        elif self._accident == "in a file":
            import resource  # POSIX has it

            # Above three quarters of the largest file SIGXFSZ, which Python ignores unless told otherwise, kills.
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            limit = 3 * max(path.stat().st_size for path in checkpoint_files(self._folder)) // 4
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        else:
            os.kill(os.getpid(), signal.Signals[self._accident])


def checkpoint_files(folder: Path) -> list[Path]:
    """All files that a run could resume from, whichever trainer wrote them; the newest is the last."""
    names = ("*_G.pth", "*_E.pth", "*_optimizerG.pth", "*.ckpt")
    return sorted((path for name in names for path in folder.rglob(name)), key=lambda path: path.stat().st_mtime_ns)


def _digest(net: nn.Module) -> str:
    """SHA-256 of names and values of a state dict."""
    digest = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        digest.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()
