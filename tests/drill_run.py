"""The runs of a drill: one undisturbed, others that are killed as planned and launched again until their end."""

import collections
import dataclasses
import itertools
import os
import random
import secrets
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from tables import TABLES
from tests.drill_launch import Launch, marked_processes, send
from tests.drill_report import Compared, Kill, Row, compare, print_row
from utils import utils_option
from utils.utils_error import UserError

T = TypeVar("T")

SIGNALS = (signal.SIGKILL, signal.SIGTERM)
MOMENTS = ("training", "training", "starting", "saving", "testing")
SILENCE_SECONDS = 120.0


class DrillError(Exception):
    """The run did not survive; the message says how, with the end of its output."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is drilled, and how; `script` is what each rank runs, with its arguments before `-opt`."""

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
        """Iterations of each run: by default, some for each kill."""
        return self.num_iters or max(40, 3 * self.num_kills)


def plan_kills(num_kills: int, victims: Sequence[str], moments: Sequence[str], num_ranks: int, seed: int) -> list[Kill]:
    """The kills in their order, without targets: every victim gets each signal before one gets the same again."""
    chance = random.Random(seed)
    pairs = dealt(chance, list(itertools.product(victims, SIGNALS)), num_kills)
    return [
        Kill(
            f"rank {chance.randrange(1, num_ranks)}" if victim == "another rank" else victim,
            number, moment, chance.random(),
        )
        for (victim, number), moment in zip(pairs, dealt(chance, list(moments), num_kills), strict=True)
    ]  # fmt: skip


def dealt(chance: random.Random, cards: Sequence[T], count: int) -> list[T]:
    """So many cards from shuffled decks, one deck after the other."""
    decks = (chance.sample(cards, len(cards)) for _ in itertools.count())
    return list(itertools.islice(itertools.chain.from_iterable(decks), count))


def with_targets(kills: Sequence[Kill], total_iter: int) -> list[Kill]:
    """The kills spread over a run; its last tenth is left free, so that they happen before its end."""
    each = 0.9 * total_iter / max(1, len(kills))
    return [dataclasses.replace(kill, target=1 + int(each * (i + kill.delay))) for i, kill in enumerate(kills)]


def own_overrides(settings: Settings) -> list[str]:
    """What the drill sets in the user's options; UserError if they are wrong."""
    if not Path("/proc/self/environ").exists():
        raise UserError("The drill finds its victims in /proc, which only Linux has.")
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
        "val.save_img": "false",
        "task": "drill",
    }
    if opt.train.manual_seed is None:
        own["train.manual_seed"] = 0
    if opt.train.num_threads is None:  # the machine may grant another number of cores later
        own["train.num_threads"] = max(1, len(os.sched_getaffinity(0)) // settings.num_ranks)
    return [f"{key}={value}" for key, value in own.items()]


class Drill:
    """Launches, watches and kills. On leaving it, nothing that it started lives."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings, self._folder = settings, folder
        self._overrides = [*settings.overrides, *own_overrides(settings)]
        self._token = secrets.token_hex(8)
        self._launches: list[Launch] = []
        self._silence_seconds = SILENCE_SECONDS
        self._moment_seconds: dict[str, float] = {}
        self._waiting: collections.deque[Kill] = collections.deque()
        self._unsettled: list[Row] = []
        self.victims: list[str] = []
        self.rows: list[Row] = []

    def __enter__(self) -> "Drill":
        return self

    def __exit__(self, *_: object) -> None:
        deadline = time.monotonic() + 10
        while (left := self._processes()) and time.monotonic() < deadline:  # some may just be starting others
            for pid, mark in left:
                send(signal.SIGKILL, pid, mark)
            time.sleep(0.02)
        for launch in self._launches:
            launch.wait()

    def run_undisturbed(self) -> float:
        """Train without kills, and see what there is to kill; returns the seconds that it took."""
        launch, has_worker = self._launch("undisturbed"), False
        while launch.status is None:
            self._look(launch)
            has_worker = has_worker or bool(launch.find("worker"))
            time.sleep(0.2)
        self._look(launch)
        total_iter, num_ranks = self._settings.total_iter, self._settings.num_ranks
        if launch.status or launch.reached != total_iter or launch.seconds_to_first_iter is None:
            self._fail(launch, f"The undisturbed run ended with exit status {launch.status}")
        self.victims = ["rank 0"] + ["another rank", "launcher"] * (num_ranks > 1) + ["worker"] * has_worker
        self._moment_seconds = {
            "starting": launch.seconds_to_first_iter,
            "training": (launch.seconds - launch.seconds_to_first_iter) / total_iter,
            "saving": 0.5 * statistics.median(launch.save_seconds or [0.0]),  # some went by before it was seen
        }
        if launch.num_tests:
            self._moment_seconds["testing"] = 0.0
        self._silence_seconds += 2 * launch.seconds
        return launch.seconds

    def plan(self) -> list[Kill]:
        """The kills, of whom and when the undisturbed run has shown."""
        moments = [moment for moment in MOMENTS if moment in self._moment_seconds]
        settings = self._settings
        return plan_kills(settings.num_kills, self.victims, moments, settings.num_ranks, settings.seed)

    def run_and_kill(self, name: str, kills: Sequence[Kill]) -> list[Kill]:
        """Launch a run until it is at its end, with kills on the way; returns those that it left over."""
        self._waiting = collections.deque(with_targets(kills, self._settings.total_iter))
        status: int | None = None
        while status != 0:
            launch = self._launch(name)
            while (kill := self._next_kill(launch)) and self._goes_on(launch, self._strike(launch, kill)):
                pass
            status = self._end_of(launch)
        self._wait_for_orphans()
        return list(self._waiting)

    def compare(self, name: str) -> list[Compared]:
        """The last files of a run against those of the undisturbed one."""
        return compare(self._experiment("undisturbed"), self._experiment(name), self._settings.total_iter)

    def _experiment(self, name: str) -> Path:
        return self._folder / name / "drill"

    def _processes(self) -> list[tuple[int, str]]:
        """(id, mark of its launch) of everything that lives."""
        return [(each.pid, each.mark) for each in marked_processes(launch.mark for launch in self._launches)]

    def _launch(self, name: str) -> Launch:
        settings, number = self._settings, len(self._launches)
        runner = [sys.executable]
        if settings.num_ranks > 1:
            runner += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={settings.num_ranks}"]
        options = [*self._overrides, f"path.root={self._folder / name}"]
        command = [*runner, *settings.script, "-opt", str(settings.option_file)]
        command += [word for each in options for word in ("--set", each)]
        log = self._folder / "logs" / f"{number:03d}_{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        mark = f"{self._token}_{number}"
        self._launches.append(Launch(command, self._experiment(name) / "models", log, mark, settings.num_ranks > 1))
        return self._launches[-1]

    def _next_kill(self, launch: Launch) -> Kill | None:
        """The next kill when its moment has come and its victim is there; None if the launch has ended before."""
        while launch.status is None:
            self._look(launch)
            if self._waiting and self._has_come(launch, self._waiting[0]) and launch.find(self._waiting[0].victim):
                return self._waiting[0]
            time.sleep(0.002 if launch.reached else 0.02)
        return None

    def _has_come(self, launch: Launch, kill: Kill) -> bool:
        if kill.moment == "starting":
            return launch.seconds >= kill.delay * self._moment_seconds["starting"]
        if launch.reached is None or launch.reached < kill.target:
            return False
        if kill.moment == "saving":
            return bool(launch.unfinished_files())
        return kill.moment == "training" or self._is_testing(launch)

    def _is_testing(self, launch: Launch) -> bool:
        """Whether an iteration has been trained after which a test is due, and no test has been reported since."""
        reached = launch.reached or 0
        is_due = reached == self._settings.total_iter or reached % self._settings.test_every == 0
        return launch.was_training_last and is_due

    def _strike(self, launch: Launch, kill: Kill) -> Row | None:
        """Send the signal; None if the victim has just ended."""
        victims = launch.find(kill.victim)
        if kill.moment in ("training", "saving"):
            time.sleep(kill.delay * self._moment_seconds[kill.moment])
        launch.read()
        if launch.reached is None:
            moment = "starting"
        else:
            moment = "saving" if launch.unfinished_files() else "testing" if self._is_testing(launch) else "training"
        if not victims or not send(kill.signal, victims[int(kill.delay * len(victims))], launch.mark):
            return None
        self._waiting.popleft()
        self.rows.append(Row(len(self.rows) + 1, kill, moment, launch, launch.seconds))
        self._unsettled.append(self.rows[-1])
        return self.rows[-1]

    def _goes_on(self, launch: Launch, row: Row | None) -> bool:
        """Wait for what a signal does; whether the run goes on, as it must when a loader worker gets SIGTERM."""
        if row is None:
            return True
        if row.leaves_orphans:  # the next launch has to cope with them
            return False
        before, start = launch.reached, time.monotonic()
        while launch.trainers():
            self._look(launch)
            if row.spares_the_run and launch.reached != before:
                self._keep(row)
                return True
            time.sleep(0.05)
        self._look(launch)
        if row.spares_the_run and launch.status == 0:
            self._keep(row)
        row.seconds_to_end, row.cut_off = time.monotonic() - start, launch.unfinished_files()
        return False

    def _keep(self, row: Row) -> None:
        """The run has not been stopped by this kill."""
        row.how = "went on"
        self._unsettled.remove(row)
        print_row(row)

    def _end_of(self, launch: Launch) -> int:
        """The exit status of a launch: 0 if the run is at its end. DrillError if it failed without a kill."""
        status = launch.wait()
        self._look(launch)
        if status == 0:
            self._settle(launch)
            self._take_back()
        elif launch.was_refused and any(row.leaves_orphans for row in self._unsettled):
            self._unsettled[-1].num_refused += 1
            time.sleep(0.2)
        elif not self._unsettled or self._unsettled[-1].launch is not launch:
            self._fail(launch, f"A launch that nobody killed ended with exit status {status}")
        return status

    def _take_back(self) -> None:
        """The signal came so late that the run has reached its end all the same: that was no kill."""
        for row in self._unsettled:
            self._waiting.appendleft(row.kill)
            self.rows.remove(row)
        self._unsettled.clear()

    def _look(self, launch: Launch) -> None:
        """Read what a launch says, and settle the kills before it; DrillError if it has been silent for too long."""
        launch.read()
        if launch.seconds_to_first_iter is not None:
            self._settle(launch)
        if launch.seconds_of_silence > self._silence_seconds:
            self._fail(launch, f"Nothing has happened for {launch.seconds_of_silence:.0f} s")

    def _settle(self, launch: Launch) -> None:
        """This launch has resumed what the kills of earlier launches have interrupted."""
        for row in [row for row in self._unsettled if row.launch is not launch]:
            row.launch.read()  # what orphans said
            row.resumed_from, row.seconds_to_resume = launch.resumed_from, launch.seconds_to_first_iter
            row.how = launch.guarantee or "fresh"
            self._unsettled.remove(row)
            print_row(row)

    def _wait_for_orphans(self) -> None:
        deadline = time.monotonic() + self._silence_seconds
        while left := self._processes():  # also loader workers, which see after some seconds that they are alone
            if time.monotonic() > deadline:
                self._fail(self._launches[-1], f"Processes have outlived their run: {left}")
            time.sleep(0.05)

    def _fail(self, launch: Launch, reason: str) -> NoReturn:
        raise DrillError(f"{reason}. The end of {launch.log}:\n\n{launch.tail()}")
