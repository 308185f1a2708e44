"""What an iteration costs, in time and memory, as a run grows: batch size, parameters, data, ranks, iterations.

    python -m benchmarks.growth [--quick] [--folder FOLDER] [--output docs]

Every figure is of main_train.py's own loop. Where there is a bare loop (forward, backward and step of the same network
on one staged batch) the two take turns in one process, and ratios are taken turn by turn. Prints Markdown and writes
growth.md and growth.png. A run whose notes are in FOLDER already is not repeated, so a measurement that was cut off
goes on. --quick rehearses. Exit status 1 if memory or time grows with the iterations.
"""

import argparse
import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.growth_picture import draw
from benchmarks.growth_run import Job, Notes, options
from benchmarks.growth_table import Point, Section, flatness, table
from benchmarks.measure import hardware, launcher, num_cores
from utils.utils_file import PROJECT_FOLDER
from utils.utils_seed import permutation

TINY = (6, 8)  # 1,905 parameters
SMALL = (8, 16, 32)  # 20 thousand
NUM_TURNS = 9


def run(job: Job, folder: Path) -> list[Notes]:
    """The notes of each rank of a job, which is launched unless FOLDER holds them."""
    done = folder / "job.json"
    text = json.dumps(dataclasses.asdict(job))
    if not (done.exists() and done.read_text() == text):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder / "run", ignore_errors=True)  # what was cut off would be resumed, and its start not noted
        (folder / "options.json").write_text(json.dumps(options(job, folder)))
        with open(folder / "output", "w") as output:
            subprocess.run(
                [*launcher(job.num_ranks), "-m", "benchmarks.growth_run", text, str(folder)],
                cwd=PROJECT_FOLDER, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=output, stderr=output,
                check=True,
            )  # fmt: skip
        done.write_text(text)
    return [Notes(**json.loads((folder / f"notes_{rank}.json").read_text())) for rank in range(job.num_ranks)]


def num_turns(quick: bool) -> int:
    """How often ours and the bare loop take turns."""
    return 2 if quick else NUM_TURNS


def turns(job: Job, every: int, number: int) -> Job:
    """As many turns without the bare loop, in which everything warms up, as with it."""
    first = every * (number + 1)
    return dataclasses.replace(job, every=every, total_iter=2 * first, bare_from=first, bare_iters=every)


def point(x: float, job: Job, notes: Sequence[Notes]) -> Point:
    """Microseconds an iteration in the turns between the first and the last, and the memory before the bare loop.

    The first builds the bare loop, the last saves the run.
    """
    first = notes[0].iters.index(job.bare_from)
    kept = slice(first + 1, -1)
    cpu = np.sum([each.cpu_seconds[kept] for each in notes], axis=0) / job.every
    wall = np.max([each.wall_seconds[kept] for each in notes], axis=0) / job.every
    bare = np.array(notes[0].bare_seconds[1:-1]) / max(job.bare_iters, 1)
    memory = float(np.mean([each.allocated_bytes[first] for each in notes]))
    return Point(x, list(1e6 * cpu), list(1e6 * bare), list(1e6 * wall), memory)


def batch_sizes(folder: Path, quick: bool) -> Section:
    """Batches of 8 to 512 images of 48x48."""
    points = []
    for size in (8, 16) if quick else (8, 16, 32, 64, 128, 256, 512):
        job = turns(Job(SMALL, size, 4096, 48, 0, 0), 32 // size if quick else max(1, 128 // size), num_turns(quick))
        points.append(point(size, job, run(job, folder / f"batch_{size}")))
    return Section("batch size", "images", points)


def parameters(folder: Path, quick: bool) -> Section:
    """Networks of a thousand to a hundred million parameters, on batches of 8 images of 16x16."""
    points = []
    for width, every in ((2, 20), (6, 20), (18, 20), (58, 5), (183, 1), (579, 1))[: 2 if quick else None]:
        job = turns(Job((width, 2 * width, 4 * width), 8, 2000, 16, 0, 0), 4 if quick else every, num_turns(quick))
        notes = run(job, folder / f"width_{width}")
        points.append(point(notes[0].num_parameters, job, notes))
    return Section(
        "parameters", "parameters", points, per_unit=("byte", "parameter"),
        note="Expected are 20 bytes a parameter: weight, gradient, average and Adam's two moments, in float32.",
    )  # fmt: skip


def data_sizes(folder: Path, quick: bool) -> Section:
    """A thousand to a million resident images of 48x48, in batches of 8."""
    points, shuffles = [], []
    for size in (1000, 2000) if quick else (1000, 10_000, 100_000, 1_000_000):
        job = turns(Job(TINY, 8, size, 48, 0, 0), 4 if quick else 20, num_turns(quick))
        points.append(point(size, job, run(job, folder / f"samples_{size}")))
        shuffles.append(f"{size:,} in {milliseconds_to_shuffle(size):.2f} ms")
    return Section(
        "data set size", "samples", points, per_unit=("byte", "sample"),
        note="Expected are 2,312 bytes a sample: 48 x 48 and a class id of 8. An epoch's order is drawn in one go, in "
        f"its first iteration: {', '.join(shuffles)}.",
    )  # fmt: skip


def milliseconds_to_shuffle(num_samples: int) -> float:
    """CPU time of one epoch's order, the median of five."""
    times = []
    for epoch in range(5):
        start = time.process_time()
        permutation(0, "shuffle", epoch, num_samples)
        times.append(1e3 * (time.process_time() - start))
    return float(np.median(times))


def ranks(folder: Path, quick: bool) -> Section:
    """One to four ranks of one thread, which share batches of 64 images of 48x48."""
    points = []
    for number in (1, 2) if quick else (1, 2, 4):
        job = Job(SMALL, 64, 4096, 48, 8 if quick else 80, 2 if quick else 5, bare_from=4 if quick else 30)
        job = dataclasses.replace(job, num_ranks=number)
        points.append(point(number, job, run(job, folder / f"ranks_{number}")))
    cores = num_cores()
    return Section(
        "ranks", "ranks", points,
        note=f"CPU time is the sum over the ranks, memory the mean; there {'is' if cores == 1 else 'are'} {cores} "
        f"core{'s' if cores > 1 else ''}.",
    )  # fmt: skip


def iterations(folder: Path, quick: bool) -> Section:
    """A long run of the tiny network with log lines, tests, sets and pictures; each point is a stretch of it."""
    every = 20 if quick else 2000
    job = Job(
        TINY, batch_size=8, num_samples=2000, pixels=16, total_iter=20 * every if quick else 50 * every, every=every,
        save_every=every, test_every=every, bare_from=every, bare_iters=every // 10,
    )  # fmt: skip
    notes = run(job, folder / "iterations")[0]
    points = [
        Point(iteration, [1e6 * cpu / every], [1e6 * bare / job.bare_iters], [1e6 * wall / every], memory)
        for iteration, cpu, bare, wall, memory in zip(
            notes.iters, notes.cpu_seconds, notes.bare_seconds, notes.wall_seconds, notes.allocated_bytes, strict=True
        )
    ]
    return Section(
        "iterations", "iterations", points,
        note=f"A log line every 100 iterations; a test, a set and what is due of pictures every {every:,}.",
    )  # fmt: skip


SECTIONS = (batch_sizes, parameters, data_sizes, ranks, iterations)


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a rehearsal: few sizes, few iterations, no verdict")
    parser.add_argument("--folder", type=Path, help="where the runs are kept; by default a temporary folder")
    parser.add_argument(
        "--output", type=Path, default=PROJECT_FOLDER / "docs", help="where growth.md and growth.png go"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)).absolute()
        sections = [measure(folder, args.quick) for measure in SECTIONS]
    verdict, is_flat = flatness(sections[-1])
    facts = f"{hardware()}; torch {torch.__version__}, Python {platform.python_version()}; {NUM_TURNS} turns a point."
    command = "`python -m benchmarks.growth`, times are medians of CPU time."
    text = "\n\n".join(["# Growth", f"{command} {facts}", "![growth](growth.png)", *map(table, sections), verdict])
    print(text)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "growth.md").write_text(text + "\n", encoding="utf-8")
    draw(sections, args.output / "growth.png")
    return 0 if is_flat or args.quick else 1


if __name__ == "__main__":
    sys.exit(main())
