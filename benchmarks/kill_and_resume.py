"""Hashes of the final files of an uninterrupted run and of one that is killed twice: SIGKILL, then SIGTERM.

    python -m benchmarks.kill_and_resume [--opt options/fer.json] [--iters 40] [--ranks 1 2] [--set KEY.PATH=VALUE]

Each run saves every 5 iterations, in folders of its own under a temporary one. Exit status 1 if any hash differs.
"""

import argparse
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.measure import hardware, launcher, set_arguments
from utils.utils_checkpoint_names import PARTS, list_manifests, set_file_name
from utils.utils_file import PROJECT_FOLDER, sha256_of

SAVE_EVERY = 5


def launch(ranks: int, options: list[str]) -> subprocess.Popen[bytes]:
    """Start main_train.py alone (1 rank) or under torchrun."""
    return subprocess.Popen(
        [*launcher(ranks), "main_train.py", *options], cwd=PROJECT_FOLDER, stdout=subprocess.DEVNULL
    )


def last_committed(models: Path) -> int:
    """The newest iteration with a manifest; 0 without any."""
    return max(list_manifests(models), default=0)


def stop_after(process: subprocess.Popen[bytes], models: Path, iteration: int, number: int) -> int:
    """Signal the trainer (with SIGKILL its ranks too) once `iteration` is committed; returns the newest set then.

    SystemExit if the launch ended by itself: nothing would be shown by a run that was not stopped.
    """
    while last_committed(models) < iteration and process.poll() is None:
        time.sleep(0.02)
    ended_itself = process.poll() is not None
    if number == signal.SIGKILL:
        for child in children_of(process.pid):
            os.kill(child, number)
    process.send_signal(number)
    if process.wait() == 0 or ended_itself:
        raise SystemExit(f"{models.parent}: ended with status {process.returncode} before it could be stopped")
    return last_committed(models)


def children_of(pid: int) -> list[int]:
    """The direct children of a process."""
    text = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(each) for each in text.split()]


def hashes(models: Path, iteration: int) -> dict[str, str]:
    """SHA-256 of the three files of one set."""
    names = [set_file_name(iteration, part) for part in PARTS]
    return {name: sha256_of(models / name) for name in names}


def compare(ranks: int, args: argparse.Namespace, folder: Path) -> bool:
    """Train both ways with so many ranks, print the hashes, and return whether they are equal."""
    common = [
        f"train.total_iter={args.iters}", "train.total_epochs=null", f"train.checkpoint_save={SAVE_EVERY}",
        "log.tensorboard=false", "val.save_img=false", *args.set, "task=run",
    ]  # fmt: skip
    found = []
    for name, kills in (("uninterrupted", []), ("killed twice", [signal.SIGKILL, signal.SIGTERM])):
        root = folder / f"{ranks}_{name.replace(' ', '_')}"
        options = ["-opt", args.opt, *set_arguments([*common, f"path.root={root}"])]
        models = root / "run" / "models"
        stops = []
        for number in kills:
            after = last_committed(models) + SAVE_EVERY
            stops.append(f"{number.name} at {stop_after(launch(ranks, options), models, after, number)}")
        if launch(ranks, options).wait() != 0:
            raise SystemExit(f"the last launch of the run {name} failed; see {root}")
        found.append(hashes(models, args.iters))
        print(f"{ranks} rank{'s' if ranks > 1 else ''}, {name}" + (f" ({', '.join(stops)})" if stops else ""))
        for file, digest in found[-1].items():
            print(f"  {file:24} {digest}")
    equal = found[0] == found[1]
    print(f"  {'EQUAL' if equal else 'DIFFERENT'}", flush=True)
    return equal


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--opt", default="options/fer.json")
    parser.add_argument("--iters", type=int, default=40)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {hardware()}")
    with tempfile.TemporaryDirectory() as folder:
        equal = [compare(ranks, args, Path(folder)) for ranks in args.ranks]
    return 0 if all(equal) else 1


if __name__ == "__main__":
    sys.exit(main())
