"""The same accidents for Longhaul, for a loop in the style of KAIR and for Lightning, and what each makes of them.

    python -m benchmarks.resume [--seed 0] [--plain] [--folder FOLDER]

Each trains the same network on the same generated faces, each in its own script: longhaul_style, kair_style,
lightning_style. After an accident the same command is launched again, three times at most, until it ends. What the
weights went through is read from a log with the samples of every update, and the final weights are compared with
those of the script's OWN run without an accident. --plain: no dropout and no flips, so that nothing is random but the
initial weights and the order of the samples. --folder keeps the runs. Lightning takes part where it is installed:
pip install -r benchmarks/requirements.txt. Takes minutes. Exit status 1 if Longhaul did not keep what it promises.
"""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.measure import hardware, table
from benchmarks.resume_task import Task, checkpoint_files
from data.synthetic_faces import write_synthetic_faces
from utils.utils_file import PROJECT_FOLDER

QUESTIONS = (
    "resumed by itself",
    "iterations lost / done again",
    "samples twice / never, that epoch",
    "learning rate jumped",
    "final G and E equal",
)
TRAINERS = {"Longhaul": "longhaul_style", "KAIR-style": "kair_style", "Lightning": "lightning_style"}
MAX_RELAUNCHES = 3
LAUNCH_SECONDS = 300


@dataclasses.dataclass(frozen=True)
class Update:
    """One line of the log: an iteration that was done, its learning rate and its samples."""

    iteration: int
    rate: float
    samples: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Launch:
    """What one launch loaded (part -> iteration of its file) and did; `digests` of the networks if it ended the run."""

    loaded: Mapping[str, int]
    updates: Sequence[Update] = ()
    digests: Mapping[str, str] | None = None


@dataclasses.dataclass(frozen=True)
class Scenario:
    """Accidents (iteration, kind), one a launch, and what then happens to the newest file.

    `max_lost`: the iterations that Longhaul may have to do again.
    """

    name: str
    accidents: Sequence[tuple[int, str]]
    damage: str | None
    max_lost: int


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The launches of one run that got as far as training, and why the last one did not end, if so."""

    launches: Sequence[Launch]
    error: str | None


def scenarios(task: Task, seed: int) -> list[Scenario]:
    """What happens, at iterations drawn with `seed`: in the middle of an epoch, and well between two saves."""
    rng = random.Random(seed)
    per_epoch, every = task.num_samples // task.batch_size, task.save_every
    middle = [i for i in range(2 * every, task.total_iter - every) if 2 < i % per_epoch < per_epoch - 2]
    between = [i for i in middle if every // 2 <= i % every]
    saves = [i for i in middle if i % every == 0]
    thirds = [[i for i in between if i // (task.total_iter // 3) == third] for third in range(3)]
    kill, term, damage, save = rng.choice(between), rng.choice(between), rng.choice(between), rng.choice(saves)
    # Longhaul writes one set while it trains on: a kill may find the newest unfinished and lose nearly two intervals.
    lost = 2 * every
    return [
        Scenario("nothing (control)", [], None, 0),
        Scenario(f"SIGKILL at {kill}", [(kill, "SIGKILL")], None, lost),
        Scenario(f"SIGTERM at {term}", [(term, "SIGTERM")], None, 0),
        Scenario("3 x SIGKILL", [(rng.choice(third), "SIGKILL") for third in thirds], None, 3 * lost),
        Scenario(f"SIGKILL between the files of {save}", [(save, "between files")], None, lost),
        Scenario(f"killed while writing a file of {save}", [(save, "in a file")], None, lost),
        Scenario(f"SIGKILL at {damage}, newest file cut in half", [(damage, "SIGKILL")], "half", lost + every),
        Scenario(f"SIGKILL at {damage}, a bit of newest file flipped", [(damage, "SIGKILL")], "bit", lost + every),
    ]


def read_launches(lines: Iterable[str]) -> list[Launch]:
    """The launches that a log tells of."""
    launches: list[Launch] = []
    for line in map(json.loads, lines):
        if "started" in line:
            launches.append(Launch(line["started"]))
        elif "ended" in line:
            launches[-1] = dataclasses.replace(launches[-1], digests=line["ended"])
        else:
            update = Update(line["iter"], line["rate"], tuple(line["samples"]))
            launches[-1] = dataclasses.replace(launches[-1], updates=[*launches[-1].updates, update])
    return launches


def effective_history(launches: Sequence[Launch]) -> list[Update]:
    """The updates that the last launch's weights consist of: what a launch did not load is gone."""
    history: list[Update] = []
    for launch in launches:
        history = [*history[: launch.loaded["G"]], *launch.updates]
    return history


def lost_iterations(launches: Sequence[Launch]) -> int:
    """The updates that were done and are not in the weights that the next launch loaded."""
    ends = [len(effective_history(launches[:number])) for number in range(1, len(launches))]
    return sum(max(end - launch.loaded["G"], 0) for end, launch in zip(ends, launches[1:], strict=True))


def repeated_iterations(launches: Sequence[Launch]) -> int:
    """The updates with the number of one that was done before."""
    done = [update.iteration for launch in launches for update in launch.updates]
    return len(done) - len(set(done))


def twice_and_never(history: Sequence[Update], resumed_at: Iterable[int], num_samples: int) -> tuple[int, int]:
    """The samples seen more than once, and those never seen, summed over the epochs in which a launch resumed.

    Only over these: whoever starts an epoch at a resume has all later ones whole, though shifted.
    """
    stream = [sample for update in history for sample in update.samples]
    places = [sum(len(update.samples) for update in history[:iteration]) for iteration in resumed_at]
    twice = never = 0
    for epoch in {place // num_samples for place in places}:
        seen = Counter(stream[epoch * num_samples : (epoch + 1) * num_samples])
        twice += sum(count > 1 for count in seen.values())
        never += num_samples - len(seen)
    return twice, never


def first_jump(history: Sequence[Update], expected: Sequence[Update]) -> int | None:
    """The first iteration with another learning rate than in the expected history, or with another number."""
    for update, right in zip(history, expected, strict=False):
        if update.iteration != right.iteration or not math.isclose(update.rate, right.rate):
            return right.iteration
    return None if len(history) == len(expected) else min(len(history), len(expected)) + 1


def run(script: str, task: Task, scenario: Scenario) -> Outcome:
    """Launch, let the accidents happen, and launch again until it ends or was launched again three times."""
    task.write()
    folder, error = Path(task.folder), None
    log = folder / "log.jsonl"
    for number in range(1 + MAX_RELAUNCHES):
        accident = scenario.accidents[number] if number < len(scenario.accidents) else (0, "")
        error = launch(script, folder, accident)
        launches = read_launches(log.read_text().splitlines()) if log.exists() else []
        if launches and launches[-1].digests:
            return Outcome(launches, None)
        if number == 0 and scenario.damage:
            damage_file(checkpoint_files(folder)[-1], scenario.damage)
    return Outcome(launches, error)


def launch(script: str, folder: Path, accident: tuple[int, str]) -> str:
    """Run the script once; returns the exception that ended it, or its exit status."""
    (folder / "tmp").mkdir(exist_ok=True)  # what a killed process leaves goes with the run
    # The peers train on the CPU; where there is a GPU, so must Longhaul.
    hidden = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "tmp")}
    process = subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.{script}", str(folder)],
        cwd=PROJECT_FOLDER, env={**os.environ, **hidden, "ACCIDENT": json.dumps(accident)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=LAUNCH_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return f"hangs for {LAUNCH_SECONDS} s"
    with open(folder / "output.txt", "a") as file:
        file.write(f"--- {accident} exit status {process.returncode}\n{output}")
    raised = re.findall(r"^[\w.]*(?:Error|Exception)\b.*", output, re.MULTILINE)
    return [f"exit status {process.returncode}", *raised][-1]


def damage_file(path: Path, damage: str) -> None:
    """Cut a file in half, or flip the highest mantissa bit of a number in the middle of its largest tensor."""
    content = bytearray(path.read_bytes())
    if damage == "half":
        del content[len(content) // 2 :]
    else:
        with zipfile.ZipFile(path) as archive:
            tensors = [entry for entry in archive.infolist() if "/data/" in entry.filename]
            largest = max(tensors, key=lambda entry: entry.file_size)
            start = bytes(content).index(archive.read(largest))
        content[start + largest.file_size // 8 * 4 + 2] ^= 0x40
    path.write_bytes(content)


def answers(outcome: Outcome, expected: Outcome, task: Task) -> list[str]:
    """The answer to each of QUESTIONS, from the logs of a run and of the same script's run without an accident."""
    launches, history = outcome.launches, effective_history(outcome.launches)
    if outcome.error is not None:
        return [f"NO: {outcome.error[:40]}", f"all {len(history)} / -", "-", "-", "-"]
    twice, never = twice_and_never(history, [launch.loaded["G"] for launch in launches[1:]], task.num_samples)
    jump = first_jump(history, effective_history(expected.launches))
    return [
        f"yes, from {', '.join(map(loaded_text, launches[1:]))}" if launches[1:] else "-",
        f"{lost_iterations(launches)} / {repeated_iterations(launches)}",
        f"{twice} / {never}",
        "no" if jump is None else f"YES, at {jump}",
        "yes" if launches[-1].digests == expected.launches[-1].digests else "NO",
    ]


def loaded_text(launch: Launch) -> str:
    """Iteration 24 as "24", a mixture of files as "G 24 + E 16"."""
    if len(set(launch.loaded.values())) == 1:
        return str(launch.loaded["G"])
    return " + ".join(f"{part} {iteration}" for part, iteration in launch.loaded.items())


def broken_promises(scenario: Scenario, outcome: Outcome, found: Sequence[str]) -> list[str]:
    """What README promises of a resume and this run of Longhaul did not keep."""
    kept = zip(QUESTIONS[2:], ("0 / 0", "no", "yes"), found[2:], strict=True)
    broken = [f"{question}: {answer}" for question, right, answer in kept if answer != right]
    if outcome.error is not None:
        broken.append(f"did not resume: {outcome.error}")
    elif len(outcome.launches) <= len(scenario.accidents):
        broken.append("shows nothing: an accident did not happen")
    if (lost := lost_iterations(outcome.launches)) > scenario.max_lost:
        broken.append(f"lost {lost} iterations, {scenario.max_lost} at most were promised")
    return [f"{scenario.name}: {each}" for each in broken]


def versions() -> dict[str, str | None]:
    """Trainer -> its version; None where it cannot run."""
    packages = ("lightning", "torchdata")
    lightning = None
    if all(importlib.util.find_spec(package) for package in packages):
        lightning = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)
    return {"Longhaul": "this tree", "KAIR-style": "benchmarks/kair_style.py", "Lightning": lightning}


@contextlib.contextmanager
def folder_for(path: Path | None) -> Iterator[Path]:
    """The folder that was asked for, which stays, or a temporary one."""
    if path is not None:
        path.mkdir(parents=True)
        yield path.resolve()
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="draws the iterations of the accidents")
    parser.add_argument("--plain", action="store_true", help="no dropout, no flips")
    parser.add_argument("--folder", type=Path, help="a new folder, which is kept")
    args = parser.parse_args()
    found_versions = versions()
    cells: dict[tuple[str, str], list[str]] = {}
    broken: list[str] = []
    with folder_for(args.folder) as folder:
        csv = write_synthetic_faces(folder, Task.num_samples, 1, 1)
        todo = scenarios(Task("", ""), args.seed)
        for trainer, script in TRAINERS.items():
            if found_versions[trainer] is None:
                continue
            expected = None
            for number, scenario in enumerate([Scenario("the run to compare with", [], None, 0), *todo]):
                print(f"{trainer}: {scenario.name}", file=sys.stderr, flush=True)
                task = Task(str(csv), str(folder / f"{script}_{number}"), args.plain)
                outcome = run(script, task, scenario)
                if expected is None:
                    expected = outcome
                    if outcome.error is not None:
                        raise SystemExit(f"{trainer} does not train without an accident: {outcome.error}")
                    continue
                cells[scenario.name, trainer] = answers(outcome, expected, task)
                if trainer == "Longhaul":
                    broken += broken_promises(scenario, outcome, cells[scenario.name, trainer])
    print_report(todo, found_versions, cells, args)
    for each in broken:
        print(f"BROKEN: Longhaul, {each}")
    return 1 if broken else 0


def print_report(
    todo: Sequence[Scenario],
    found_versions: Mapping[str, str | None],
    cells: Mapping[tuple[str, str], Sequence[str]],
    args: argparse.Namespace,
) -> None:
    """What ran on what, and the table."""
    task = Task("", "", args.plain)
    command = f"python -m benchmarks.resume --seed {args.seed}" + (" --plain" if args.plain else "")
    print(f"{command}\n{hardware()}; one process, one thread, CPU; n = 1 run a cell")
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.system()}")
    absent = "not installed: pip install -r benchmarks/requirements.txt"
    print("; ".join(f"{trainer}: {version or absent}" for trainer, version in found_versions.items()))
    print(
        f"{task.num_samples} generated faces, batch {task.batch_size}, {task.total_iter} iterations, "
        f"{task.num_samples // task.batch_size} an epoch, saved every {task.save_every}; dropout {task.dropout:g}, "
        f"flips {task.flip:g}\n"
    )
    rows = [["accident", "question", *TRAINERS]]
    for scenario in todo:
        columns = [cells.get((scenario.name, trainer), ["not installed"] * len(QUESTIONS)) for trainer in TRAINERS]
        names = [scenario.name, *[""] * (len(QUESTIONS) - 1)]
        rows += [list(row) for row in zip(names, QUESTIONS, *columns, strict=True)]
    print(table(rows), flush=True)


if __name__ == "__main__":
    sys.exit(main())
