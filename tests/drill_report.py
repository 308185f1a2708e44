"""What a drill reports: a row a kill, the files at the end, the verdict."""

import collections
import csv
import dataclasses
import hashlib
import io
import signal
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

from utils.utils_checkpoint_names import PARTS, set_file_name
from utils.utils_file import sha256_of
from utils.utils_state_file import load_state

_COLUMNS = "{:>3}  {:<8}  {:<7}  {:<24}  {:>7}  {:>7}  {:>4}  {:>7}  {:>7}  {}"


class Trained(Protocol):
    """What a row needs to know of the launch that was hit."""

    reached: int | None
    began_from: int

    def read(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class Kill:
    """Who gets which signal when: from iteration `target` on, after `delay`, a fraction of the moment's length."""

    victim: str
    signal: signal.Signals
    moment: str
    delay: float
    target: int = 0


@dataclasses.dataclass
class Row:
    """One kill and what came of it; `seconds` since the launch, `cut_off` are the files that it left unfinished."""

    number: int
    kill: Kill
    moment: str
    launch: Trained
    seconds: float
    seconds_to_end: float | None = None
    cut_off: Sequence[str] = ()
    num_refused: int = 0
    resumed_from: int | None = None
    seconds_to_resume: float | None = None
    how: str = ""

    def __post_init__(self) -> None:
        self._at = self.launch.reached

    @property
    def leaves_orphans(self) -> bool:
        """Whether ranks live on without a launcher, until they notice."""
        return self.kill.victim == "launcher" and self.kill.signal == signal.SIGKILL

    @property
    def spares_the_run(self) -> bool:
        """Whether nothing should come of it: loader workers are shielded from the signals that stop a trainer."""
        return self.kill.victim == "worker" and self.kill.signal == signal.SIGTERM

    @property
    def when(self) -> str:
        """The moment in words."""
        return f"starting, {self.seconds:.1f} s" if self._at is None else f"{self.moment}, iteration {self._at}"

    @property
    def reached(self) -> int:
        """The last iteration that was trained; where there was none, the one that was there before."""
        return self.launch.began_from if self.launch.reached is None else self.launch.reached

    @property
    def lost(self) -> int | None:
        """The iterations that had to be trained again; None if the run went on."""
        return None if self.resumed_from is None else max(0, self.reached - self.resumed_from)

    def may_lose(self, save_every: int) -> int:
        """Nothing where ranks can save and stop; else two intervals, as one set may still be being written."""
        can_save = self.kill.victim == "launcher" or (
            self.kill.victim != "worker" and self.kill.signal == signal.SIGTERM
        )
        return 0 if can_save else 2 * save_every

    def is_good(self, save_every: int) -> bool:
        """Whether the run went on, or was resumed exactly without losing too much."""
        if self.lost is None:
            return self.how == "went on"
        return self.lost <= self.may_lose(save_every) and self.how == ("EXACT" if self.resumed_from else "fresh")


@dataclasses.dataclass(frozen=True)
class Compared:
    """SHA-256 of one file in the undisturbed and in the killed run; "missing" where there is none."""

    name: str
    expected: str
    found: str

    @property
    def is_equal(self) -> bool:
        return self.expected == self.found


def compare(expected: Path, found: Path, iteration: int) -> list[Compared]:
    """Compare the last set of two experiments, their self-contained models and what they measured."""
    functions = {f"models/{set_file_name(iteration, part)}": sha256_of for part in PARTS}
    functions |= {f"models/{name}": _hash_of_model for name in ("best_model.pth", "final_model.pth")}
    functions["metrics.csv"] = _hash_of_metrics
    return [
        Compared(
            Path(name).name,
            *(function(each / name) if (each / name).exists() else "missing" for each in (expected, found)),
        )
        for name, function in functions.items()
        if (expected / name).exists() or (found / name).exists()
    ]


def _hash_of_model(path: Path) -> str:
    """SHA-256 of a self-contained model without its options, which name the folder."""
    content = {key: value for key, value in load_state(path).items() if key != "options"}
    saved = io.BytesIO()
    torch.save(content, saved)
    return hashlib.sha256(saved.getvalue()).hexdigest()


def _hash_of_metrics(path: Path) -> str:
    """SHA-256 of the last row of each iteration and split, without the speed."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = {(int(row["iter"]), row["split"]): row for row in csv.DictReader(file)}
    kept = [sorted((key, value) for key, value in rows[key].items() if key != "images_per_s") for key in sorted(rows)]
    return hashlib.sha256(repr(kept).encode()).hexdigest()


def print_header() -> None:
    print(_COLUMNS.format("#", "victim", "signal", "while", "reached", "resumed", "lost", "ended", "back", "how"))


def print_row(row: Row) -> None:
    """One line of the table; times are from the signal to the end of all ranks, and from relaunch to new iteration."""
    refused = f", {row.num_refused} refused" if row.num_refused else ""
    print(
        _COLUMNS.format(
            row.number, row.kill.victim, row.kill.signal.name, row.when, row.reached,
            *("-" if value is None else value for value in (row.resumed_from, row.lost)),
            *("-" if value is None else f"{value:.1f} s" for value in (row.seconds_to_end, row.seconds_to_resume)),
            row.how + refused,
        )
    )  # fmt: skip


def print_summary(rows: Sequence[Row], files: Sequence[Compared], num_runs: int, save_every: int) -> None:
    """The kills counted, the losses and times, and the hashes of the last run."""
    counts = collections.Counter((row.kill.victim, row.kill.signal.name) for row in rows)
    print(f"\n{'':12}SIGKILL  SIGTERM")
    for victim in sorted({row.kill.victim for row in rows}, key=lambda victim: (not victim.startswith("rank"), victim)):
        print(f"  {victim:9} {counts[victim, 'SIGKILL']:7d}  {counts[victim, 'SIGTERM']:7d}")
    moments = collections.Counter(row.moment for row in rows)
    shown = ", ".join(f"{count} while {moment}" for moment, count in moments.most_common())
    print(f"\n  kills         {shown}; {sum(bool(row.cut_off) for row in rows)} cut a save off")
    print(
        f"  largest loss  {_most([row.lost for row in rows], '{:.0f}')} iterations; a set is saved every {save_every}"
    )
    print(f"  ended after   {_spread([row.seconds_to_end for row in rows])}: from the signal until all ranks are gone")
    print(
        f"  back after    {_spread([row.seconds_to_resume for row in rows])}: from relaunch to the first new iteration"
    )
    print(f"  killed runs   {num_runs}\n")
    for file in files:
        print(f"  {file.name:19} {'EQUAL' if file.is_equal else 'DIFFERENT':9}  {file.expected}")
        if not file.is_equal:
            print(f"  {'':29}  {file.found}")


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):.1f} s (median), {max(known):.1f} s (longest)" if known else "-"


def _most(values: Sequence[float | None], form: str) -> str:
    return form.format(max([value for value in values if value is not None], default=0))


def survived(rows: Sequence[Row], equal: bool, save_every: int) -> bool:
    """Print the verdict and return it."""
    bad = [row for row in rows if not row.is_good(save_every)]
    for row in bad:
        print(f"\nBAD: kill {row.number} lost {row.lost} iterations of {row.may_lose(save_every)} allowed, {row.how}")
    if not equal:
        print("\nDIFFERENT: a killed run did not end in the same bytes")
    if not bad and equal:
        print(f"\nSURVIVED {len(rows)} kills, and EQUAL in every byte")
    return not bad and equal
