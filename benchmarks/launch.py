"""CPU seconds from the start of the interpreter to the end of the first training step, fresh and resumed.

    python -m benchmarks.launch

Every launch is a process of its own, see benchmarks/first_step.py. A bare script reads no options, no data set and no
checkpoint; Longhaul does all of that, verifies the hashes of the set that it resumes from, and writes its logs. The
cache of the data set is there already; benchmarks/read_csv.py measures the launch that makes it.
"""

import functools
import itertools
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import Mark, Row, interleave, is_installed, main, set_arguments
from data.synthetic_faces import write_synthetic_faces
from utils.utils_file import PROJECT_FOLDER

BARE = "bare script"
FRESH, RESUME = "Longhaul, fresh", "Longhaul, resumed"


def launch(environment: dict[str, str], *arguments: str) -> float:
    """CPU seconds of `python -m benchmarks.first_step ARGUMENTS`, which must succeed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.first_step", *arguments],
        cwd=PROJECT_FOLDER, env=os.environ | environment, capture_output=True, text=True,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if run.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{run.stdout}{run.stderr}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(rounds: int) -> list[Row]:
    """Two rows: fresh and resumed launches."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        contenders = prepare(folder)
        samples = interleave(contenders, rounds)
    resumed = {who: samples[who] for who in samples if who == BARE or who.endswith("resumed")}
    fresh = {who: samples[who] for who in samples if not who.endswith("resumed")}
    note = "torch.optim imports torch._dynamo when it is first used; Longhaul's optimizers do not"
    marks = (Mark(1.10, BARE),)
    return [
        Row("launch to the first step", "CPU s", FRESH, fresh, marks, note),
        Row("resume to the first step", "CPU s", RESUME, resumed, marks, "the set's SHA-256 included"),
    ]


def prepare(folder: Path) -> dict[str, Callable[[], float]]:
    """The contenders; the caches, and the sets that they resume from, are made here and not measured."""
    environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "LONGHAUL_CACHE": str(folder / "cache")}
    run = functools.partial(launch, environment)
    csv = write_synthetic_faces(folder, num_training=2_000, num_public_test=700, num_private_test=700)
    settings = {"path.root": folder, "datasets.train.dataroot": csv, "train.num_threads": 1}
    ours = ["-opt", "options/fer.json", *set_arguments(f"{key}={value}" for key, value in settings.items())]
    run("longhaul", "1", *ours, "--set", "task=resumed", "--stop")
    run("kair_style", name := str(folder), "resume")
    numbers = itertools.count()
    contenders = {
        BARE: lambda: run("bare"),
        "bare script, no optimizer": lambda: run("bare_without_optimizer"),
        FRESH: lambda: run("longhaul", "1", *ours, "--set", f"task=fresh_{next(numbers)}"),
        RESUME: lambda: run("longhaul", "4", *ours, "--set", "task=resumed"),
        "KAIR style": lambda: run("kair_style", name),
        "KAIR style, resumed": lambda: run("kair_style", name, "resume"),
    }
    if is_installed("accelerate"):
        contenders["Accelerate"] = lambda: run("accelerate")
    if is_installed("lightning"):
        contenders["Lightning"] = lambda: run("lightning", name)
    return contenders


if __name__ == "__main__":
    sys.exit(main(measure, __doc__))
