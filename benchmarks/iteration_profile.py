"""`python -m benchmarks.iteration_profile [-opt FILE] [--set ...]`: where the CPU time of one training iteration goes.

Two tables in Markdown: by part of our loop, and by kind of operator, from torch's profiler in the same iterations.
"""

import argparse
import contextlib
import functools
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from data.select_dataset import define_datasets
from models.model_plain import ModelPlain
from tables import TABLES
from trainer import Trainer
from utils import utils_option
from utils.utils_dist import process_group
from utils.utils_experiment import Experiment
from utils.utils_memory import keep_freed_memory
from utils.utils_signal import StopRequest

KINDS = {
    "convolution": "convolution, forward and backward",
    "native_batch_norm": "batch norm, forward and backward",
    "grid_sampler": "augmentation: sampling the image",
    "optimizer": "optimizer",
    "_foreach_lerp": "moving average",
    "fused_sgd": "optimizer",
    "fused_adam": "optimizer",
}

PARTS = (
    "batch: gather and augment",
    "learning rate",
    "forward, backward, clipping, optimizer",
    "of which forward",
    "of which backward",
    "of which clipping",
    "moving average",
    "signals",
)

Seconds = dict[str, float]


def timed(seconds: Seconds, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with its CPU seconds added to `part`."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[part] += time.process_time() - start

    return wrapper


def run(trainer: Trainer, stop: StopRequest, seconds: Seconds, num_iters: int, skip: int) -> tuple[float, Any]:
    """Iterate as main_train does; returns the CPU seconds of the profiled iterations and the profile."""
    model = trainer.model
    load = timed(seconds, "batch: gather and augment", functools.partial(next, iter(trainer.batches())))
    set_rate = timed(seconds, "learning rate", model.update_learning_rate)
    optimize = timed(seconds, "forward, backward, clipping, optimizer", model.optimize_parameters)
    average = timed(seconds, "moving average", model.update_E)
    agreed = timed(seconds, "signals", stop.agreed)

    def step() -> None:
        current_iter, micro_batches = load()
        set_rate(current_iter)
        optimize(micro_batches, current_iter)
        average(current_iter)
        agreed()

    for _ in range(skip):
        step()
    seconds.clear()
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiled:
        start = time.process_time()
        for _ in range(num_iters):
            step()
        total = time.process_time() - start
    return total, profiled


@contextlib.contextmanager
def split_step(seconds: Seconds) -> Iterator[None]:
    """Time the passes, the clipping and the optimizer, which are inside of optimize_parameters."""
    forward, clip = ModelPlain.netG_forward, torch.nn.utils.clip_grad_norm_
    backward = torch.Tensor.backward
    ModelPlain.netG_forward = timed(seconds, "of which forward", forward)  # type: ignore[method-assign]
    torch.nn.utils.clip_grad_norm_ = timed(seconds, "of which clipping", clip)
    torch.Tensor.backward = timed(seconds, "of which backward", backward)  # type: ignore[method-assign]
    try:
        yield
    finally:
        ModelPlain.netG_forward = forward  # type: ignore[method-assign]
        torch.nn.utils.clip_grad_norm_ = clip
        torch.Tensor.backward = backward  # type: ignore[method-assign]


def by_kind(profiled: Any) -> Seconds:
    """CPU seconds of operators, their own time only, by kind."""
    seconds: Seconds = defaultdict(float)
    for event in profiled.key_averages():
        kind = next((shown for key, shown in KINDS.items() if key in event.key.lower()), "everything else")
        seconds[kind] += event.self_cpu_time_total / 1e6
    return seconds


def table(heading: str, seconds: Seconds, total: float) -> str:
    lines = [f"| {heading} | share |", "| --- | ---: |"]
    return "\n".join([*lines, *(f"| {name} | {100 * value / total:.2f} % |" for name, value in seconds.items()), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-opt", type=Path, default=Path("options/fer.json"), metavar="FILE")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE")
    parser.add_argument("--iterations", type=int, default=40, metavar="N")
    args = parser.parse_args()
    keep_freed_memory()
    seconds: Seconds = defaultdict(float)
    with tempfile.TemporaryDirectory() as folder:
        quiet = ["log.tensorboard=false", f"path.root={folder}", "train.num_threads=1"]
        opt = utils_option.parse(args.opt, [*quiet, *args.set], TABLES)
        with (
            process_group(opt.train.num_threads) as dist,
            StopRequest(dist) as stop,
            Experiment(opt, dist, args.opt, False, stop.save_failed) as experiment,
        ):
            trainer = Trainer(opt, dist, stop, experiment, define_datasets(opt, dist))
            trainer.resume()
            with split_step(seconds):
                total, profiled = run(trainer, stop, seconds, args.iterations, skip=5)
    batch = opt.datasets["train"].dataloader_batch_size
    print(f"{args.iterations} iterations of {batch} images, {1e3 * total / args.iterations:.1f} CPU ms each\n")
    print(table("part of the loop, CPU time", {part: seconds[part] for part in PARTS}, total))
    kinds = dict(sorted(by_kind(profiled).items(), key=lambda item: -item[1]))
    print(table("operators", kinds, sum(kinds.values())))


if __name__ == "__main__":
    main()
