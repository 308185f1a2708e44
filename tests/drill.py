"""Prove on your own options and data that a run survives: kill it at random, relaunch it, compare the last files.

    python -m tests.drill -opt options/fer.json --kills 20 --nproc 2

One run goes through undisturbed. Another gets SIGKILL and SIGTERM, at random moments, to its launcher, its ranks and
its loader workers, and is launched again each time. It survives if it always resumes exactly, loses no more than is
promised, and ends in the same bytes. Nothing is written into your experiments. Linux only.
"""

import argparse
import collections
import contextlib
import dataclasses
import itertools
import os
import platform
import random
import secrets
import shlex
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

import torch

from main_train import TABLES
from tests import drill_report as report
from tests.drill_launch import Launch, marked_processes, send
from tests.drill_report import Row
from utils import utils_option
from utils.utils_error import UserError
from utils.utils_file import PROJECT_FOLDER

T = TypeVar("T")

SIGNALS = (signal.SIGKILL, signal.SIGTERM)
MOMENTS = ("training", "training", "starting", "saving", "testing")
POLL_SECONDS = 0.002
SILENCE_SECONDS = 120.0


class DrillError(Exception):
    """The run did not survive; the message says how, with the end of its output."""


@dataclasses.dataclass(frozen=True)
class Kill:
    """What is to be done to which process when; the place and the delay are fractions of what they are measured in."""

    victim: str
    signal: signal.Signals
    moment: str
    place: float
    delay: float


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is drilled; `script` is what the ranks run, with what stands before `-opt`."""

    option_file: Path
    overrides: Sequence[str] = ()
    num_kills: int = 20
    num_ranks: int = 1
    num_iters: int | None = None
    save_every: int = 5
    test_every: int = 10
    seed: int = 0
    script: Sequence[str] = ("main_train.py",)

    @property
    def total_iter(self) -> int:
        """Iterations of each run: enough for every kill to have some of its own."""
        return self.num_iters or max(40, 3 * self.num_kills)


def plan_kills(num_kills: int, victims: Sequence[str], moments: Sequence[str], seed: int) -> list[Kill]:
    """The kills in their order: every victim gets both signals before one gets the same again; the seed decides all."""
    chance = random.Random(seed)
    pairs = dealt(chance, list(itertools.product(victims, SIGNALS)), num_kills)
    when = dealt(chance, list(moments), num_kills)
    return [
        Kill(victim, number, moment, chance.random(), chance.random())
        for (victim, number), moment in zip(pairs, when, strict=True)
    ]


def dealt(chance: random.Random, cards: Sequence[T], count: int) -> list[T]:
    """So many cards from shuffled decks, one deck after the other."""
    decks = (chance.sample(cards, len(cards)) for _ in itertools.count())
    return list(itertools.islice(itertools.chain.from_iterable(decks), count))


class Drill:
    """Launches, kills and watches. On leaving it, nothing that it started lives."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings, self._folder = settings, folder
        self._token = secrets.token_hex(8)
        self._launches: list[Launch] = []
        self._overrides = overrides_of(settings)
        self._silence_seconds = SILENCE_SECONDS
        self._start_seconds = self._iter_seconds = self._save_seconds = 0.0
        self.victims: list[str] = []
        self.moments: list[str] = []
        self.rows: list[Row] = []

    def __enter__(self) -> "Drill":
        return self

    def __exit__(self, *_: object) -> None:
        marks = [launch.mark for launch in self._launches]
        for _ in range(100):  # one that is just being forked is found the next time
            left = list(marked_processes(marks))
            for process, mark in itertools.product(left, marks):
                send(signal.SIGKILL, process.pid, mark)
            for launch in self._launches:
                launch.status  # noqa: B018 - reaps it
            if not left:
                return
            time.sleep(0.05)

    def models(self, name: str) -> Path:
        """The models/ of the run of that name."""
        return self._folder / name / "drill" / "models"

    def reference(self) -> float:
        """The undisturbed run, which also tells what there is to kill; returns its seconds."""
        launch = self._launch("reference")
        has_worker = has_test = False
        while launch.status is None:
            self._look(launch)
            has_worker = has_worker or bool(launch.victims("worker", max_age=0.2))
            time.sleep(10 * POLL_SECONDS)
        self._look(launch)
        if launch.status or launch.reached != self._settings.total_iter:
            self._fail(launch, f"the undisturbed run ended with exit status {launch.status}")
        has_test = launch.num_tests > 0
        ranks = [f"rank {rank}" for rank in range(self._settings.num_ranks)]
        self.victims = ranks + ["launcher"] * (len(ranks) > 1) + ["worker"] * has_worker
        self.moments = [moment for moment in MOMENTS if moment != "testing" or has_test]
        self._start_seconds = launch.seconds_to_first_iter or 0.0
        self._iter_seconds = (launch.seconds - self._start_seconds) / self._settings.total_iter
        self._save_seconds = statistics.median(launch.save_seconds or [0.0])
        self._silence_seconds += 2 * launch.seconds
        return launch.seconds

    def kill_one_run(self, name: str, kills: Sequence[Kill]) -> list[Kill]:
        """Launch a run until it has reached its end, with kills on the way; returns those that it left over."""
        waiting = collections.deque(kills)
        targets = {id(kill): 1 + int(0.9 * self._settings.total_iter * (i + kill.place) / len(kills))
                   for i, kill in enumerate(kills)}  # fmt: skip
        unsettled: list[Row] = []
        status: int | None = None
        while status != 0:
            launch = self._launch(name)
            while True:
                kill = waiting[0] if waiting else None
                if not self._wait_for(launch, kill, targets[id(kill)] if kill else 0, unsettled):
                    break
                assert kill is not None
                row = self._strike(launch, kill)
                if row is None:  # the victim has just ended
                    continue
                waiting.popleft()
                self.rows.append(row)
                unsettled.append(row)
                if self._goes_on(launch, row):
                    unsettled.remove(row)
                    report.print_row(row)
                    continue
                break
            status = self._end_of(launch, unsettled)
        self._wait_for_nobody()
        return list(waiting)

    def _launch(self, name: str) -> Launch:
        settings = self._settings
        runner = [sys.executable]
        if settings.num_ranks > 1:
            runner += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={settings.num_ranks}"]
        options = [*self._overrides, f"path.root={self._folder / name}", "task=drill"]
        command = [*runner, *settings.script, "-opt", str(settings.option_file)]
        command += [word for each in options for word in ("--set", each)]
        number = len(self._launches)
        logs = self._folder / "logs"
        logs.mkdir(exist_ok=True)
        log = logs / f"{number:03d}_{name}.log"
        launch = Launch(command, self.models(name), log, f"{self._token}-{number}", settings.num_ranks > 1)
        self._launches.append(launch)
        return launch

    def _wait_for(self, launch: Launch, kill: Kill | None, target: int, unsettled: list[Row]) -> bool:
        """Whether the moment of `kill` has come; False if the launch has ended before."""
        while launch.status is None:
            self._look(launch)
            if launch.seconds_to_first_iter is not None:
                self._settle(launch, unsettled)
            if kill and self._has_come(launch, kill, target):
                return True
            time.sleep(POLL_SECONDS)
        self._look(launch)
        return False

    def _has_come(self, launch: Launch, kill: Kill, target: int) -> bool:
        if kill.moment == "starting":
            has_come = launch.seconds >= kill.delay * self._start_seconds
        elif launch.reached is None or launch.reached < target:
            has_come = False
        elif kill.moment == "saving":
            has_come = bool(launch.unfinished_files())
        elif kill.moment == "testing":
            every, last = self._settings.test_every, self._settings.total_iter
            has_come = launch.is_testing_due and (launch.reached % every == 0 or launch.reached == last)
        else:
            has_come = True
        return has_come and bool(launch.victims(kill.victim, max_age=0.2))

    def _strike(self, launch: Launch, kill: Kill) -> Row | None:
        """Send the signal; None if nobody is left to get it."""
        seconds = {"training": self._iter_seconds, "saving": self._save_seconds}.get(kill.moment, 0.0)
        found = launch.victims(kill.victim, max_age=0.2)
        time.sleep(kill.delay * seconds)
        launch.read()
        files = launch.unfinished_files()
        if not found or not send(kill.signal, found[int(kill.place * len(found))].pid, launch.mark):
            return None
        when = f"after {launch.seconds:.1f} s of starting" if launch.reached is None else f"iteration {launch.reached}"
        if launch.reached is not None and files:
            when += ", saving"
        elif launch.reached is not None and kill.moment == "testing" and launch.is_testing_due:
            when += ", testing"
        return Row(len(self.rows) + 1, kill.victim, kill.signal, when, launch)

    def _goes_on(self, launch: Launch, row: Row) -> bool:
        """Wait until the run has ended, or is seen to go on: a loader worker is shielded from SIGTERM."""
        before = launch.reached
        if row.victim == "launcher" and row.signal == signal.SIGKILL:
            launch.wait()
            return False
        while launch.trainers():
            self._look(launch)
            if row.victim == "worker" and row.signal == signal.SIGTERM and launch.reached != before:
                row.how = "went on"
                return True
            time.sleep(0.01)
        self._look(launch)
        if row.victim == "worker" and launch.status == 0:
            row.how = "went on"
            return True
        return False

    def _end_of(self, launch: Launch, unsettled: list[Row]) -> int:
        """What the end of a launch means: 0 if the run is at its end; DrillError if nobody has killed it."""
        status = launch.wait()
        if status == 0:
            self._settle(launch, unsettled)
        elif launch.was_refused and any(row.leaves_orphans for row in unsettled):
            unsettled[-1].num_refused += 1
            time.sleep(0.2)
        elif not unsettled or unsettled[-1].launch is not launch:
            self._fail(launch, f"a launch that nobody killed ended with exit status {status}")
        return status

    def _settle(self, launch: Launch, unsettled: list[Row]) -> None:
        """This launch has resumed what the kills before it have interrupted."""
        for row in unsettled:
            if row.launch is launch:
                continue
            row.launch.read()
            row.resumed_from, row.seconds = launch.resumed_from, launch.seconds_to_first_iter
            row.how = launch.guarantee or "fresh"
            report.print_row(row)
        unsettled[:] = [row for row in unsettled if row.launch is launch]

    def _look(self, launch: Launch) -> None:
        """Read what the launch says; DrillError if it has been silent for too long."""
        launch.read()
        if launch.seconds_of_silence > self._silence_seconds:
            self._fail(launch, f"nothing has happened for {launch.seconds_of_silence:.0f} s")

    def _wait_for_nobody(self) -> None:
        """Orphans notice that they are alone, and end."""
        marks = [launch.mark for launch in self._launches]
        deadline = time.monotonic() + self._silence_seconds
        while left := list(marked_processes(marks)):
            if time.monotonic() > deadline:
                self._fail(self._launches[-1], f"processes {[each.pid for each in left]} have outlived their run")
            time.sleep(0.05)

    def _fail(self, launch: Launch, reason: str) -> NoReturn:
        raise DrillError(f"{reason}. The end of {launch.log}:\n\n{launch.tail()}")


def overrides_of(settings: Settings) -> list[str]:
    """The user's and the drill's own --set; UserError if the option file is wrong."""
    opt = utils_option.parse(settings.option_file, settings.overrides, TABLES)
    own = {
        "train.total_iter": settings.total_iter,
        "train.total_epochs": "null",
        "train.checkpoint_print": 1,
        "train.checkpoint_save": settings.save_every,
        "train.checkpoint_test": settings.test_every,
        "train.early_stop_patience": "null",
        "log.tensorboard": "false",
        "log.progress_bar": "false",
    }
    if opt.train.manual_seed is None:
        own["train.manual_seed"] = 0
    if opt.train.num_threads is None:
        own["train.num_threads"] = max(1, len(os.sched_getaffinity(0)) // settings.num_ranks)
    return [*settings.overrides, *(f"{key}={value}" for key, value in own.items())]


def run_drill(settings: Settings, folder: Path) -> bool:
    """Print the whole drill; returns whether the run survived."""
    with Drill(settings, folder) as drill:
        print("The undisturbed run ... ", end="", flush=True)
        seconds = drill.reference()
        print(f"{settings.total_iter} iterations in {seconds:.1f} s. There are: {', '.join(drill.victims)}.\n")
        report.print_header()
        kills = plan_kills(settings.num_kills, drill.victims, drill.moments, settings.seed)
        equal, num_runs = True, 0
        while kills:
            num_runs += 1
            kills = drill.kill_one_run(f"killed_{num_runs}", kills)
            files = report.compare(drill.models("reference"), drill.models(f"killed_{num_runs}"), settings.total_iter)
            equal = equal and all(file.is_equal for file in files)
            if kills:
                print(f"     this run is at its end: {'EQUAL' if equal else 'DIFFERENT'}. On with another one.")
        report.print_summary(drill.rows, files, num_runs, settings.save_every)
        return report.print_verdict(drill.rows, equal, settings.save_every)


@contextlib.contextmanager
def drill_folder(folder: Path | None) -> Iterator[Path]:
    """The folder to work in; without one, a temporary one that is removed after a success."""
    if folder is not None:
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"--folder {folder}: is not empty; give a new one")
        folder.mkdir(parents=True, exist_ok=True)
        yield folder.absolute()
        return
    with contextlib.ExitStack() as stack:
        temporary = tempfile.TemporaryDirectory(prefix="longhaul_drill_")
        yield Path(stack.enter_context(temporary))


def parse_arguments() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-opt", "--opt", type=Path, required=True, metavar="FILE", help="JSON or YAML option file")
    parser.add_argument("--kills", type=int, default=20, help="how many (20)")
    parser.add_argument("--nproc", type=int, default=1, help="ranks; torchrun launches two or more (1)")
    parser.add_argument("--iters", type=int, help="iterations of each run (three for each kill, at least 40)")
    parser.add_argument("--save_every", type=int, default=5, metavar="ITERS", help="train.checkpoint_save (5)")
    parser.add_argument("--test_every", type=int, default=10, metavar="ITERS", help="train.checkpoint_test (10)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of victims, signals and moments (0)")
    parser.add_argument("--folder", type=Path, help="keep everything in this new folder")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="change one option")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    settings = Settings(
        args.opt.absolute(), args.set, args.kills, args.nproc, args.iters, args.save_every, args.test_every, args.seed
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    ranks = f"{args.nproc} rank{'s' if args.nproc > 1 else ''}"
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {ranks}, {args.kills} kills")
    print(f"Again: {shlex.join(['python', '-m', 'tests.drill', *sys.argv[1:]])}")
    try:
        with drill_folder(args.folder) as folder:
            return 0 if run_drill(settings, folder) else 1
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except DrillError as error:
        print(f"\nFAILED: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
