"""Training loops to compare: the bare one, Longhaul's, KAIR's style, and those of Accelerate, Lightning and MindSpore.

    python -m benchmarks.loops LOOP -opt FILE --num_iters N [--set KEY.PATH=VALUE ...] [--malloc default]

All take network, data, batch size, optimizer and precision from one option file. Each trains for ever, and is measured
through benchmarks.contender. Only Longhaul keeps an average of the weights, a schedule, and the rest of its promises;
KAIR's style has the average.
"""

import argparse
import copy
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader

import main_train
from benchmarks.augmented_faces import AugmentedFaces
from benchmarks.contender import Pacer
from benchmarks.measure import set_arguments
from data.loaders import define_train_loader
from data.select_dataset import define_dataset
from data.train_stream import TrainStream
from models.optimizer import define_optimizer
from models.select_network import define_G
from tables import TABLES
from trainer import Trainer
from utils import utils_option
from utils.utils_device import chosen_amp
from utils.utils_dist import Dist
from utils.utils_memory import keep_freed_memory
from utils.utils_option import Options

NUM_STAGED, NUM_CLASSES = 8, 7

Pair = tuple[torch.Tensor, torch.Tensor]


class Bare:
    """Network, optimizer and precision of the options, and one step of them: the least that training can be."""

    def __init__(self, opt: Options) -> None:
        train = opt.train
        torch.manual_seed(0)
        self.net: nn.Module = define_G(opt.netG)
        if train.channels_last:
            self.net = self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = define_optimizer(self.net, train)
        self.called = torch.compile(self.net) if train.compile else self.net
        self._is_bf16 = _is_bf16(opt)
        self._channels_last = train.channels_last

    def loss(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Forward pass and loss."""
        if self._channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=self._is_bf16):
            return F.cross_entropy(self.called(images), targets)

    def step(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """One update; returns the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(images, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()


def bare(opt: Options, tick: Callable[[], None]) -> None:
    """Batches that were augmented before the clock started."""
    model = Bare(opt)
    for images, targets in itertools.cycle(_staged(opt)):
        model.step(images, targets)
        tick()


def bare_gather(opt: Options, tick: Callable[[], None]) -> None:
    """Raw samples gathered from tensors in memory, in the order of one shuffle an epoch."""
    model = Bare(opt)
    tensors = define_dataset("train", opt.datasets["train"]).dataset.resident()  # type: ignore[attr-defined]
    size = _batch_size(opt)
    while True:
        order = torch.randperm(len(tensors["target"]))
        for index in order[: len(order) // size * size].reshape(-1, size):
            images = tensors["input"].index_select(0, index).float() / 255
            model.step(images, tensors["target"].index_select(0, index))
            tick()


def bare_dataloader(opt: Options, tick: Callable[[], None]) -> None:
    """Samples one by one, with the augmentation of the options, from a DataLoader in the same process."""
    model = Bare(opt)
    for images, targets in _epochs(_dataloader(opt)):
        model.step(images, targets)
        tick()


def kair(opt: Options, tick: Callable[[], None]) -> None:
    """A DataLoader, the loss read in each step, the average in Python: from a description of KAIR."""
    model = Bare(opt)
    average = copy.deepcopy(model.net).eval()
    for images, targets in _epochs(_dataloader(opt)):
        _ = model.step(images, targets).item()
        with torch.no_grad():
            for mean, weight in zip(average.parameters(), model.net.parameters(), strict=True):
                mean.mul_(opt.train.E_decay).add_(weight, alpha=1 - opt.train.E_decay)
        tick()


def accelerate(opt: Options, tick: Callable[[], None]) -> None:
    """The loop of Accelerate's quick tour."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if _is_bf16(opt) else "no")
    model = Bare(opt)
    net, optimizer, loader = accelerator.prepare(model.net, model.optimizer, _dataloader(opt))
    for images, targets in _epochs(loader):
        optimizer.zero_grad()
        if opt.train.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with accelerator.autocast():
            loss = F.cross_entropy(net(images), targets)
        accelerator.backward(loss)
        optimizer.step()
        tick()


def lightning(opt: Options, tick: Callable[[], None]) -> None:
    """Lightning's Trainer with everything that can be switched off switched off."""
    from benchmarks.lightning_loop import fit

    fit(Bare(opt), _dataloader(opt), _is_bf16(opt), tick)


def mindspore(opt: Options, tick: Callable[[], None]) -> None:
    """The same network in MindSpore, on batches that were augmented before the clock started."""
    from benchmarks.mindspore_loop import fit

    staged = [(images.numpy(), F.one_hot(targets, NUM_CLASSES).float().numpy()) for images, targets in _staged(opt)]
    fit(opt, itertools.cycle(staged), tick)


def longhaul(arguments: Sequence[str], tick: Callable[[], None]) -> None:
    """main_train.py itself, with a tick after each iteration."""
    batches = Trainer.batches

    def paced(self: Trainer) -> Iterator[Any]:
        for batch in batches(self):
            yield batch
            tick()

    Trainer.batches = paced  # type: ignore[method-assign]
    sys.argv = ["main_train.py", *arguments]
    raise SystemExit(f"Longhaul ended with status {main_train.main()}")


LOOPS = {
    "bare": bare,
    "bare_gather": bare_gather,
    "bare_dataloader": bare_dataloader,
    "kair": kair,
    "accelerate": accelerate,
    "lightning": lightning,
    "mindspore": mindspore,
}


def command(loop: str, option_file: Path, num_iters: int, *changes: str, malloc: str = "kept") -> list[str]:
    """The command line of one loop: stretches of num_iters iterations, `changes` as --set takes them."""
    arguments = ["-opt", str(option_file), "--num_iters", str(num_iters), "--malloc", malloc, *set_arguments(changes)]
    return [sys.executable, "-m", "benchmarks.loops", loop, *arguments]


def _is_bf16(opt: Options) -> bool:
    return chosen_amp(opt.train.amp, torch.device("cpu")) == "bf16"


def _batch_size(opt: Options) -> int:
    return opt.datasets["train"].dataloader_batch_size


def _staged(opt: Options) -> list[Pair]:
    source = define_dataset("train", opt.datasets["train"])
    stream = TrainStream(len(source.dataset), _batch_size(opt), seed=0)
    loader = define_train_loader(source, stream, Dist(), seed=0, start_iter=0)
    return [(batch["input"], batch["target"]) for _, (batch,) in itertools.islice(loader, NUM_STAGED)]


def _dataloader(opt: Options) -> DataLoader[Pair]:
    return DataLoader(AugmentedFaces(opt.datasets["train"]), _batch_size(opt), shuffle=True, drop_last=True)


def _epochs(loader: DataLoader[Pair]) -> Iterator[Pair]:
    while True:
        yield from loader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loop", choices=[*LOOPS, "longhaul"])
    parser.add_argument("-opt", type=Path, required=True)
    parser.add_argument("--num_iters", type=int, required=True, help="iterations of a stretch")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE")
    parser.add_argument("--malloc", choices=["kept", "default"], default="kept", help="see utils/utils_memory.py")
    args = parser.parse_args()
    tick = Pacer(args.num_iters)
    if args.loop == "longhaul":
        longhaul(["-opt", str(args.opt), *set_arguments(args.set)], tick)
    if args.malloc == "kept":
        keep_freed_memory()
    torch.set_num_threads(1)
    LOOPS[args.loop](utils_option.parse(args.opt, args.set, TABLES), tick)


if __name__ == "__main__":
    main()
