"""Training speed of two ranks of one thread beside that of one rank of two threads: `python -m benchmarks.ranks`.

Each measurement is a launch of main_train.py with options/fer.json on generated faces; wall time counts, so both cores
must be free.
"""

import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Mark, Row, interleave, launcher, main, median, num_cores, set_arguments
from utils.utils_file import PROJECT_FOLDER

NUM_ITERS, PRINT_EVERY = 120, 10


def images_per_s(num_ranks: int, num_threads: int, num_iters: int = NUM_ITERS) -> float:
    """The median of a launch's log lines but the first, in which everything warms up."""
    with tempfile.TemporaryDirectory() as root:
        changes = {
            "path.root": root,
            "task": "run",
            "datasets.train.dataroot": "null",
            "datasets.test.dataroot": "null",
            "train.total_epochs": "null",
            "train.total_iter": num_iters,
            "train.checkpoint_print": PRINT_EVERY,
            "train.checkpoint_save": num_iters,
            "train.checkpoint_test": num_iters,
            "train.num_threads": num_threads,
            "val.save_img": "false",
            "log.tensorboard": "false",
        }
        options = set_arguments(f"{key}={value}" for key, value in changes.items())
        done = subprocess.run(
            [*launcher(num_ranks), "main_train.py", "-opt", "options/fer.json", *options],
            cwd=PROJECT_FOLDER, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"},
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{num_ranks} x {num_threads} threads ended with status {done.returncode}:\n{done.stdout}")
        with open(Path(root) / "run" / "metrics.csv", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    return median([float(row["images_per_s"]) for row in rows[1:]])


def measure(rounds: int, num_iters: int = NUM_ITERS) -> list[Row]:
    """One row: images/s."""
    one, two = "1 rank x 2 threads", "2 ranks x 1 thread"
    contenders = {one: lambda: images_per_s(1, 2, num_iters), two: lambda: images_per_s(2, 1, num_iters)}
    samples = interleave(contenders, rounds)
    note = (
        ""
        if num_cores() >= 2
        else "Measured on one core, where two threads wait for each other: this says nothing about two."
    )
    marks = () if note else (Mark(0.95, one, at_least=True),)
    return [Row("training on two ranks", "images/s", two, samples, marks, note)]


if __name__ == "__main__":
    sys.exit(main(measure, __doc__, rounds=5))
