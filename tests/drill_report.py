"""What the drill prints: a row a kill, the files at the end, the verdict."""

import collections
import dataclasses
import signal
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from utils.utils_checkpoint_names import PARTS, set_file_name
from utils.utils_file import sha256_of


class Trained(Protocol):
    """What a row needs to know of the launch that was killed."""

    reached: int | None
    began_from: int

    def read(self) -> None: ...


@dataclasses.dataclass
class Row:
    """One kill and what came of it."""

    number: int
    victim: str
    signal: signal.Signals
    when: str
    launch: Trained
    resumed_from: int | None = None
    seconds: float | None = None
    how: str = ""
    num_refused: int = 0

    @property
    def leaves_orphans(self) -> bool:
        """Whether ranks live on without a launcher, until they notice."""
        return self.victim == "launcher" and self.signal == signal.SIGKILL

    @property
    def reached(self) -> int:
        """The last iteration before the end; without any, the one that was to be resumed."""
        return self.launch.began_from if self.launch.reached is None else self.launch.reached

    @property
    def lost(self) -> int | None:
        """The iterations that were done again; None if the run went on."""
        return None if self.resumed_from is None else max(0, self.reached - self.resumed_from)

    def allowed(self, save_every: int) -> int:
        """The iterations that may be lost."""
        return 0 if self.signal == signal.SIGTERM and self.victim != "worker" else save_every

    def is_good(self, save_every: int) -> bool:
        """Whether the run went on, or was resumed exactly without losing too much."""
        if self.lost is None:
            return self.how == "went on"
        return self.how in ("EXACT", "fresh" if self.resumed_from == 0 else "EXACT") and self.lost <= self.allowed(
            save_every
        )


@dataclasses.dataclass(frozen=True)
class ComparedFile:
    """SHA-256 of one file of the last set, in the undisturbed and in the killed run."""

    name: str
    hashes: tuple[str, str]

    @property
    def is_equal(self) -> bool:
        return self.hashes[0] == self.hashes[1]


def print_header() -> None:
    print("  #  victim    signal   when                        reached  resumed  lost    back  how", flush=True)


def print_row(row: Row) -> None:
    def text(value: int | None) -> str:
        return "-" if value is None else str(value)

    back = "-" if row.seconds is None else f"{row.seconds:.1f} s"
    refused = f", {row.num_refused} refused" if row.num_refused else ""
    print(
        f"{row.number:3d}  {row.victim:8s}  {row.signal.name}  {row.when:26s}  {row.reached:7d}  "
        f"{text(row.resumed_from):>7s}  {text(row.lost):>4s}  {back:>6s}  {row.how}{refused}", flush=True,
    )  # fmt: skip


def compare(expected: Path, found: Path, iteration: int) -> list[ComparedFile]:
    """The files of the last set of two models/ folders."""
    names = [set_file_name(iteration, part) for part in PARTS]
    names = [name for name in names if (expected / name).exists() or (found / name).exists()]
    return [ComparedFile(name, (_hash(expected / name), _hash(found / name))) for name in names]


def _hash(path: Path) -> str:
    return sha256_of(path) if path.exists() else "missing"


def print_summary(rows: Sequence[Row], files: Sequence[ComparedFile], num_runs: int, save_every: int) -> None:
    counts = collections.Counter((row.victim, row.signal.name) for row in rows)
    print()
    for victim in dict.fromkeys(row.victim for row in rows):
        print(f"  {victim:9s} {counts[victim, 'SIGKILL']:3d} SIGKILL {counts[victim, 'SIGTERM']:3d} SIGTERM")
    print(f"  largest loss {max((row.lost or 0 for row in rows), default=0)} iterations; a set every {save_every}")
    seconds = [row.seconds for row in rows if row.seconds is not None]
    if seconds:
        print(f"  back after {statistics.median(seconds):.1f} s (median), {max(seconds):.1f} s at most")
    print(f"  {num_runs} killed run{'s' if num_runs > 1 else ''}")
    for file in files:
        print(f"  {file.name:20s} {'EQUAL' if file.is_equal else 'DIFFERENT'}  {file.hashes[0]}")
        if not file.is_equal:
            print(f"  {'':30s}  {file.hashes[1]}")


def print_verdict(rows: Sequence[Row], equal: bool, save_every: int) -> bool:
    bad = [row for row in rows if not row.is_good(save_every)]
    if bad:
        print(f"\nFAILED: rows {', '.join(str(row.number) for row in bad)}")
    if not equal:
        print("\nDIFFERENT: the killed run did not end in the same bytes")
    if not bad and equal:
        print(f"\nSURVIVED {len(rows)} kills, EQUAL in every byte")
    return not bad and equal
