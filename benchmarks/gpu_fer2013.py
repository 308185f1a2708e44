"""FER2013 with fer_resnet on one GPU: how fast it trains, what a save costs, and what bounds it. Made for 8 minutes.

    python -m benchmarks.gpu_fer2013
    LONGHAUL_FER2013_CSV=fer2013.csv python -m benchmarks.gpu_fer2013 --batch_size 256

Without the real CSV it takes as many generated faces. options/fer.json with train.compile and bf16, a batch size after
another. Without a GPU the exit status is 2; --cpu_rehearsal shows that the script runs.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.profiler

from data.select_dataset import define_datasets
from models.loss import LOSSES
from models.model_plain import Batch
from models.optimizer import define_optimizer
from models.select_network import define_G
from tables import TABLES
from trainer import Trainer
from utils import utils_option
from utils.utils_dist import process_group
from utils.utils_experiment import Experiment
from utils.utils_file import PROJECT_FOLDER
from utils.utils_option import Options
from utils.utils_signal import StopRequest

HEADING = (
    "batch size", "images/s", "of a bare loop", "of a bare loop with CUDA graphs", "GPU busy", "kernels / iteration",
    "bound by", "a save: host stands still", "a save: run takes longer by", "epochs", "seconds in total", "accuracy",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is measured: iterations of warm-up and of each timed chunk, chunks of each kind, faces and epochs."""

    warm_up: int = 20
    chunk: int = 100
    rounds: int = 5
    num_training: int = 28_709
    num_test: int = 3_589
    epochs: int = 50
    compile: bool = True


REHEARSAL = Plan(warm_up=1, chunk=2, rounds=1, num_training=40, num_test=9, epochs=1, compile=False)


def option_overrides(plan: Plan, batch_size: int, root: Path) -> list[str]:
    """What is changed in options/fer.json."""
    csv = os.environ.get("LONGHAUL_FER2013_CSV")
    generated = {"dataset_type": "synthetic_faces", "num_training": plan.num_training,
                 "num_public_test": plan.num_test, "num_private_test": plan.num_test}  # fmt: skip
    values = {
        "path.root": str(root),
        "datasets.train.dataroot": csv,
        "datasets.train.fallback": None if csv else generated,
        "datasets.train.dataloader_batch_size": batch_size,
        "train.amp": "bf16",
        "train.compile": plan.compile,
        "train.total_epochs": plan.epochs,
    }
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def whole_run(overrides: list[str], root: Path) -> tuple[float, float]:
    """(seconds, best accuracy) of the command that a user types."""
    command = [sys.executable, "main_train.py", "-opt", "options/fer.json"]
    command += [word for override in overrides for word in ("--set", override)]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=PROJECT_FOLDER, check=False, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"main_train.py ended with status {done.returncode}:\n{done.stdout}{done.stderr}")
    model = torch.load(root / "fer" / "models" / "best_model.pth", weights_only=True)
    return seconds, model["metrics"]["accuracy"]


class Loop:
    """The trainer's loop, some iterations at a time, without its tests and saves."""

    def __init__(self, trainer: Trainer, experiment: Experiment) -> None:
        self._trainer, self._experiment = trainer, experiment
        self._batches = trainer.batches()
        self._iteration = 0

    def run(self, num_iters: int) -> None:
        model = self._trainer.model
        for current_iter, micro_batches in itertools.islice(self._batches, num_iters):
            model.update_learning_rate(current_iter)
            model.optimize_parameters(micro_batches, current_iter)
            model.update_E(current_iter)
            self._experiment.log.step()
            self._iteration = current_iter

    def save(self) -> float:
        """Commit a set; returns the milliseconds that the host stands still, after the device has been waited for."""
        self._trainer.model.losses.collect(self._iteration)
        start = time.perf_counter()
        self._trainer.save(self._iteration, "periodic")
        return 1e3 * (time.perf_counter() - start)

    def wait_for_save(self) -> None:
        assert not self._experiment.save_failed

    def take(self, num_batches: int) -> list[Batch]:
        """Batches that are ready on the device."""
        return [micro_batches[0] for _, micro_batches in itertools.islice(self._batches, num_batches)]


class BareLoop:
    """Forward, backward and update on staged batches: no data, no average, no clipping, no log."""

    def __init__(self, opt: Options, device: torch.device, batches: list[Batch], mode: str | None) -> None:
        self._net = define_G(opt.netG).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizer = define_optimizer(self._net, opt.train)
        self._lossfn: nn.Module = LOSSES.build(opt.train.G_lossfn_type, opt.train.G_lossfn_args)
        self._call = torch.compile(self._net, mode=mode) if opt.train.compile else self._net
        inputs = [batch["input"].contiguous(memory_format=torch.channels_last) for batch in batches]
        self._staged = itertools.cycle(list(zip(inputs, [batch["target"] for batch in batches], strict=True)))
        self._device = device

    def run(self, num_iters: int) -> None:
        for images, target in itertools.islice(self._staged, num_iters):
            self._optimizer.zero_grad(set_to_none=True)
            with torch.autocast(self._device.type, torch.bfloat16):
                output = self._call(images)
            self._lossfn(output.float(), target).backward()
            self._optimizer.step()


def measure(overrides: list[str], plan: Plan, root: Path) -> dict[str, float | None]:
    """The figures of one batch size but those of the whole run, in this process."""
    option_file = PROJECT_FOLDER / "options" / "fer.json"
    endless = ["train.total_epochs=null", "train.total_iter=1000000", f"path.root={json.dumps(str(root / 'measured'))}"]
    opt = utils_option.parse(option_file, [*overrides, *endless, "log.tensorboard=false"], TABLES)
    with process_group(opt.train.num_threads) as dist, StopRequest(dist) as stop:
        sources = define_datasets(opt, dist)
        with Experiment(opt, dist, option_file) as experiment:
            trainer = Trainer(opt, dist, stop, experiment, sources)
            trainer.resume()
            loop = Loop(trainer, experiment)
            loops: dict[str, Loop | BareLoop] = {"ours": loop}
            staged = loop.take(8)
            loops["bare"] = BareLoop(opt, dist.device, staged, mode=None)
            loops["bare, CUDA graphs"] = BareLoop(opt, dist.device, staged, mode="reduce-overhead")
            for each in loops.values():
                each.run(plan.warm_up)
            seconds: dict[str, list[float]] = {name: [] for name in loops}
            for number in range(plan.rounds):
                for name in list(loops)[:: -1 if number % 2 else 1]:
                    seconds[name].append(timed(loops[name], plan.chunk))
            ours = statistics.median(seconds["ours"]) / plan.chunk
            busy, kernels = profile(loop, plan)
            return {
                "images/s": trainer.stream.batch_size / ours,
                **{name: ratio(times, seconds["ours"]) for name, times in seconds.items() if name != "ours"},
                "busy": busy / ours if busy else None,
                "kernels": kernels,
                **saves(loop, plan),
            }


def timed(loop: Loop | BareLoop, num_iters: int) -> float:
    """Seconds until the device has done so many iterations."""
    synchronize()
    start = time.perf_counter()
    loop.run(num_iters)
    synchronize()
    return time.perf_counter() - start


def ratio(first: list[float], second: list[float]) -> float:
    """The median of the ratios round by round."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


def saves(loop: Loop, plan: Plan) -> dict[str, float]:
    """What a save costs in ms: the host stands still; iterations with a save before them take longer than without."""
    loop.save()  # allocates the pinned buffers
    loop.wait_for_save()
    stalls, longer = [], []
    for _ in range(plan.rounds):
        alone = timed(loop, plan.chunk)
        synchronize()
        start = time.perf_counter()
        stalls.append(loop.save())
        loop.run(plan.chunk)
        synchronize()
        longer.append(1e3 * (time.perf_counter() - start - alone))
        loop.wait_for_save()
    return {"stall": statistics.median(stalls), "longer": statistics.median(longer)}


def profile(loop: Loop, plan: Plan) -> tuple[float, float]:
    """(seconds of kernels and copies on the GPU, their number), per iteration."""
    if not torch.cuda.is_available():
        return 0.0, 0.0
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        loop.run(plan.warm_up)
        synchronize()
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    on_gpu = [each["dur"] for each in events if each.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    return sum(on_gpu) / 1e6 / plan.warm_up, len(on_gpu) / plan.warm_up


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def row(batch_size: int, plan: Plan, found: dict[str, Any], seconds: float, accuracy: float) -> list[str]:
    """A line of the table."""
    busy = found["busy"]
    bound = "-" if busy is None else "the host, which launches them" if busy < 0.9 else "the GPU"
    return [
        str(batch_size), f"{found['images/s']:,.0f}", f"{found['bare']:.2f}", f"{found['bare, CUDA graphs']:.2f}",
        "-" if busy is None else f"{busy:.0%}", f"{found['kernels']:.0f}", bound, f"{found['stall']:.2f} ms",
        f"{found['longer']:.2f} ms", str(plan.epochs), f"{seconds:.1f}", f"{accuracy:.4f}",
    ]  # fmt: skip


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The trainer's log lines would stand between those of the table."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--cpu_rehearsal", action="store_true", help="a few iterations on the CPU; no figures to quote")
    args = parser.parse_args()
    if not torch.cuda.is_available() and not args.cpu_rehearsal:
        print("gpu_fer2013: there is no GPU, and nothing was measured", file=sys.stderr)
        return 2
    plan = REHEARSAL if args.cpu_rehearsal else Plan()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, a rehearsal"
    data = "fer2013.csv" if os.environ.get("LONGHAUL_FER2013_CSV") else "generated faces"
    print(f"{device}; torch {torch.__version__}, Python {platform.python_version()}; {data}")
    print(f"n = {plan.rounds} chunks of {plan.chunk} iterations, medians; total: 1 launch, kernels compiled before\n")
    print("| " + " | ".join(HEADING) + " |")
    print("|" + " --- |" * len(HEADING), flush=True)
    for batch_size in args.batch_size:
        with tempfile.TemporaryDirectory() as folder:
            overrides = option_overrides(plan, batch_size, Path(folder))
            with quiet():
                found = measure(overrides, plan, Path(folder))
                torch.compiler.reset()  # the next batch size is compiled for itself
            seconds, accuracy = whole_run(overrides, Path(folder))
        print("| " + " | ".join(row(batch_size, plan, found, seconds, accuracy)) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
