"""FER2013 with fer_resnet on one GPU: how fast it trains, what a save costs, and what bounds it. Made for 8 minutes.

    python -m benchmarks.gpu_fer2013
    LONGHAUL_FER2013_CSV=fer2013.csv python -m benchmarks.gpu_fer2013 --batch_size 256

Without the real CSV it takes as many generated faces. options/fer.json with train.compile and bf16, a batch size after
another; --eager leaves the compiler out. The bare loops have the trainer's settings, deterministic kernels among them.
What fails leaves "failed" in its cells and its traceback on stderr, the rest goes on, and the exit status is 1. Without
a GPU it is 2; --cpu_rehearsal shows that the script runs.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.profiler

from benchmarks.measure import interleave, median, set_arguments, spread
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
from utils.utils_logger import start_console
from utils.utils_option import Options
from utils.utils_signal import StopRequest

HEADING = (
    "batch size", "images/s", "of a bare loop", "of a bare loop with CUDA graphs", "GPU busy", "kernels / iteration",
    "bound by", "a save: host stands still", "a save: run takes longer by", "epochs", "seconds in total", "accuracy",
)  # fmt: skip

CUDA_GRAPHS = {"triton.cudagraphs": True, "triton.cudagraph_or_error": True}
"""torch.compile's "reduce-overhead", which else goes on in silence where it can make no graph."""

Cells = dict[str, str]
"""Of one line of the table, by HEADING."""


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


def whole_run(overrides: list[str], root: Path) -> Cells:
    """The command that a user types, and the accuracy of its best model."""
    command = [sys.executable, "main_train.py", "-opt", "options/fer.json", *set_arguments(overrides)]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=PROJECT_FOLDER, check=False, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"main_train.py ended with status {done.returncode}:\n{done.stdout}{done.stderr}")
    model = torch.load(root / "fer" / "models" / "best_model.pth", weights_only=True)
    return {"seconds in total": f"{seconds:.1f}", "accuracy": f"{model['metrics']['accuracy']:.4f}"}


class Loop:
    """The trainer's loop, some iterations at a time, without its tests and saves."""

    def __init__(self, trainer: Trainer, experiment: Experiment, stop: StopRequest) -> None:
        self._trainer, self._experiment, self._stop = trainer, experiment, stop
        self._batches = trainer.batches()
        self._iteration = 0
        self._saved_iteration = 0

    def run(self, num_iters: int) -> None:
        trainer, model = self._trainer, self._trainer.model
        for current_iter, micro_batches in itertools.islice(self._batches, num_iters):
            model.update_learning_rate(current_iter)
            model.optimize_parameters(micro_batches, current_iter)
            model.update_E(current_iter)
            self._experiment.log.step()
            if trainer.is_due(trainer.opt.train.checkpoint_print, current_iter):
                trainer.log_training(current_iter)
            self._iteration = current_iter
            if self._stop.agreed():
                raise KeyboardInterrupt

    def save(self) -> float:
        """Commit a set; returns the milliseconds that the host stands still, after the device has been waited for."""
        self._trainer.model.losses.collect(self._iteration)
        start = time.perf_counter()
        self._trainer.save(self._iteration, "periodic")
        self._saved_iteration = self._iteration
        return 1e3 * (time.perf_counter() - start)

    def wait_for_save(self) -> None:
        assert not self._experiment.save_failed
        assert self._experiment.last_committed_iter == self._saved_iteration

    def take(self, num_batches: int) -> list[Batch]:
        """Batches that are ready on the device."""
        return [micro_batches[0] for _, micro_batches in itertools.islice(self._batches, num_batches)]


class BareLoop:
    """Forward, backward and update on staged batches: no data, no average, no clipping, no log."""

    def __init__(
        self, opt: Options, device: torch.device, batches: list[Batch], options: dict[str, Any] | None = None
    ) -> None:
        self._net = define_G(opt.netG).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizer = define_optimizer(self._net, opt.train)
        self._lossfn: nn.Module = LOSSES.build(opt.train.G_lossfn_type, opt.train.G_lossfn_args)
        self._call = torch.compile(self._net, dynamic=False, options=options) if opt.train.compile else self._net
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


def measure(overrides: list[str], plan: Plan, root: Path) -> Iterator[Cells]:
    """The figures of one batch size but those of the whole run, in this process; what may fail comes last."""
    option_file = PROJECT_FOLDER / "options" / "fer.json"
    endless = ["train.total_epochs=null", "train.total_iter=1000000", f"path.root={json.dumps(str(root / 'measured'))}"]
    opt = utils_option.parse(option_file, [*overrides, *endless, "log.tensorboard=false"], TABLES)
    with (
        process_group(opt.train.num_threads) as dist,
        StopRequest(dist) as stop,
        Experiment(opt, dist, option_file) as experiment,
    ):
        trainer = Trainer(opt, dist, stop, experiment, define_datasets(opt, dist))
        trainer.resume()
        loop = Loop(trainer, experiment, stop)
        staged = loop.take(8)
        loop.run(plan.warm_up)
        seconds = median([timed(loop, plan.chunk) / plan.chunk for _ in range(plan.rounds)])
        yield {"images/s": f"{trainer.stream.batch_size / seconds:,.0f}"}
        yield saves(loop, plan)
        yield profile(loop, plan, seconds)
        yield {"of a bare loop": beside(loop, BareLoop(opt, dist.device, staged), plan)}
        graphs = "-"
        if opt.train.compile and dist.device.type == "cuda":
            graphs = beside(loop, BareLoop(opt, dist.device, staged, CUDA_GRAPHS), plan)
        yield {"of a bare loop with CUDA graphs": graphs}


def beside(loop: Loop, bare: BareLoop, plan: Plan) -> str:
    """The trainer's speed as a fraction of the bare loop's; the two take turns."""
    bare.run(plan.warm_up)
    calls = {"ours": lambda: timed(loop, plan.chunk), "bare": lambda: timed(bare, plan.chunk)}
    samples = interleave(calls, plan.rounds)
    return shown([theirs / ours for ours, theirs in zip(samples["ours"], samples["bare"], strict=True)])


def timed(loop: Loop | BareLoop, num_iters: int) -> float:
    """Seconds until the device has done so many iterations."""
    synchronize()
    start = time.perf_counter()
    loop.run(num_iters)
    synchronize()
    return time.perf_counter() - start


def shown(values: Sequence[float]) -> str:
    """The median and the spread."""
    return f"{median(values):.2f} ± {spread(values):.2f}"


def saves(loop: Loop, plan: Plan) -> Cells:
    """What a save costs: the host stands still; iterations with one in their middle take longer than without."""
    loop.save()  # allocates the pinned buffers
    loop.wait_for_save()
    stalls: list[float] = []

    def with_a_save() -> float:
        synchronize()
        start = time.perf_counter()
        loop.run(plan.chunk // 2)
        stalls.append(loop.save())  # what is queued on the device runs dry before
        loop.run(plan.chunk - plan.chunk // 2)
        synchronize()
        seconds = time.perf_counter() - start
        loop.wait_for_save()
        return seconds

    samples = interleave({"saving": with_a_save, "not": lambda: timed(loop, plan.chunk)}, plan.rounds)
    longer = [1e3 * (saving - alone) for saving, alone in zip(samples["saving"], samples["not"], strict=True)]
    return {"a save: host stands still": f"{shown(stalls)} ms", "a save: run takes longer by": f"{shown(longer)} ms"}


def profile(loop: Loop, plan: Plan, seconds: float) -> Cells:
    """Kernels and copies on the GPU: their number, and their share of the `seconds` of an iteration."""
    if not torch.cuda.is_available():
        return dict.fromkeys(("GPU busy", "kernels / iteration", "bound by"), "-")
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        loop.run(plan.warm_up)
        synchronize()
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    on_gpu = [each["dur"] for each in events if each.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    if not on_gpu:
        raise RuntimeError("torch's profiler saw nothing on the GPU")
    busy = sum(on_gpu) / 1e6 / plan.warm_up / seconds
    return {
        "GPU busy": f"{busy:.0%}",
        "kernels / iteration": f"{len(on_gpu) / plan.warm_up:.0f}",
        "bound by": "the host, which launches them" if busy < 0.9 else "the GPU",
    }


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The trainer's log lines would stand between those of the table."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def line(batch_size: int, plan: Plan) -> tuple[list[str], bool]:
    """The cells of a batch size, and whether all could be measured."""
    cells, is_whole = {"batch size": str(batch_size), "epochs": str(plan.epochs)}, True
    with tempfile.TemporaryDirectory() as folder:
        overrides = option_overrides(plan, batch_size, Path(folder))
        try:
            with quiet():
                for figures in measure(overrides, plan, Path(folder)):
                    cells |= figures
        except Exception:
            traceback.print_exc()
            is_whole = False
        torch.compiler.reset()  # the next batch size is compiled for itself
        try:
            cells |= whole_run(overrides, Path(folder))
        except Exception:
            traceback.print_exc()
            is_whole = False
    return [cells.get(name, "failed") for name in HEADING], is_whole


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--eager", action="store_true", help="train.compile=false")
    parser.add_argument("--cpu_rehearsal", action="store_true", help="a few iterations on the CPU; no figures to quote")
    args = parser.parse_args()
    if args.cpu_rehearsal:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # nobody has asked CUDA for its devices yet
    elif not torch.cuda.is_available():
        print("gpu_fer2013: there is no GPU, and nothing was measured", file=sys.stderr)
        return 2
    plan = REHEARSAL if args.cpu_rehearsal else Plan(compile=not args.eager)
    start_console(is_main=True)
    device = "CPU, a rehearsal" if args.cpu_rehearsal else torch.cuda.get_device_name()
    data = "fer2013.csv" if os.environ.get("LONGHAUL_FER2013_CSV") else "generated faces"
    print(f"{device}; torch {torch.__version__}, Python {platform.python_version()}; {data}")
    print(f"n = {plan.rounds} chunks of {plan.chunk} iterations, medians ± half the interquartile range;", end=" ")
    print(f"total: 1 launch, {'kernels compiled before' if plan.compile else 'not compiled'}\n")
    print("| " + " | ".join(HEADING) + " |")
    print("|" + " --- |" * len(HEADING), flush=True)
    status = 0
    for batch_size in args.batch_size:
        cells, is_whole = line(batch_size, plan)
        print("| " + " | ".join(cells) + " |", flush=True)
        status = status if is_whole else 1
    return status


if __name__ == "__main__":
    sys.exit(main())
