"""What the benchmarks share: contenders measured in turn, ratios round by round, and the marks these are held to.

A benchmark is a module with `measure(rounds) -> list[Row]`, run as `python -m benchmarks.NAME`. Contenders take turns
(A B C, C B A, ...), so that what the machine does meanwhile hits them alike, and the ratio of two of them is taken
within each round. A mark is missed if the median of the ratios is beyond it by more than their spread, which is half
their interquartile range; absolute values are shown as medians.
"""

import argparse
import dataclasses
import enum
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Samples = dict[str, list[float]]

PEERS = ("Accelerate", "Lightning", "MindSpore")
"""Contenders that are measured where they are installed."""


class Outcome(enum.StrEnum):
    """Where a value stands to its mark."""

    MET = "MET"
    CLOSE = "missed within the spread"
    MISSED = "MISSED"
    UNMEASURED = "not measured"


@dataclasses.dataclass(frozen=True)
class Mark:
    """Longhaul's value over that of contender `of` must be at most `ratio`; with at_least, at least."""

    ratio: float
    of: str
    at_least: bool = False

    def __str__(self) -> str:
        return f"{'at least' if self.at_least else 'at most'} {self.ratio:g}x {self.of}"


@dataclasses.dataclass(frozen=True)
class Limit:
    """Longhaul's value must be at most this, in the row's unit."""

    value: float

    def __str__(self) -> str:
        return f"at most {self.value:g}"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A mark, the median of what it judges (a ratio; a value under a Limit) with its spread, and the outcome."""

    mark: Mark | Limit
    median: float
    spread: float
    outcome: Outcome

    @property
    def measured(self) -> str:
        """The median and its spread, as 1.05x ± 0.01; empty if it was not measured."""
        if self.outcome is Outcome.UNMEASURED:
            return ""
        return f"{self.median:.3g}{'x' if isinstance(self.mark, Mark) else ''} ± {self.spread:.2g}"

    def __str__(self) -> str:
        return f"{self.mark}: {', '.join(filter(None, (self.measured, str(self.outcome))))}"


@dataclasses.dataclass(frozen=True)
class Row:
    """One thing measured. samples: contender -> a value a round, the rounds in the same order for all.

    `ours` names Longhaul's contender. A mark beside one of PEERS that is not installed is not measured; any other mark
    names a contender.
    """

    what: str
    unit: str
    ours: str
    samples: Samples
    marks: tuple[Mark | Limit, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        unknown = {mark.of for mark in self.marks if isinstance(mark, Mark)} - {*self.samples, *PEERS}
        assert not unknown, f"{self.what}: marks name {sorted(unknown)}, contenders are {list(self.samples)}"

    @property
    def rounds(self) -> int:
        """How often each contender was measured."""
        return len(self.samples[self.ours])

    @property
    def reference(self) -> str | None:
        """The contender that the first mark compares with, None where all marks are absolute or it is missing."""
        named = (mark.of for mark in self.marks if isinstance(mark, Mark))
        return next((name for name in named if name in self.samples), None)

    def ratios(self, contender: str, of: str) -> list[float]:
        """The ratio of two contenders in each round."""
        return [a / b for a, b in zip(self.samples[contender], self.samples[of], strict=True)]

    def verdicts(self) -> list[Verdict]:
        """Longhaul against each mark."""
        return [self._judge(mark) for mark in self.marks]

    def _judge(self, mark: Mark | Limit) -> Verdict:
        if isinstance(mark, Limit):
            return _verdict(mark, self.samples[self.ours], mark.value)
        if mark.of not in self.samples:
            return Verdict(mark, float("nan"), float("nan"), Outcome.UNMEASURED)
        return _verdict(mark, self.ratios(self.ours, mark.of), mark.ratio, mark.at_least)


def median(values: Sequence[float]) -> float:
    """The median."""
    return float(np.median(values))


def spread(values: Sequence[float]) -> float:
    """Half the interquartile range."""
    low, high = np.percentile(values, [25, 75])
    return float(high - low) / 2


def interleave(contenders: dict[str, Callable[[], float]], rounds: int) -> Samples:
    """Call all contenders in each round, in reversed order in every other one; their values in the order of rounds."""
    samples: Samples = {name: [] for name in contenders}
    for number in range(rounds):
        for name in list(contenders)[:: -1 if number % 2 else 1]:
            samples[name].append(contenders[name]())
    return samples


def launcher(num_ranks: int) -> list[str]:
    """What stands before a script, or before -m and a module: this Python, or torchrun for several ranks."""
    ranks = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_ranks}"]
    return [sys.executable, *(ranks if num_ranks > 1 else [])]


def is_installed(package: str) -> bool:
    """Whether a peer can take part; says on stderr that it is missing."""
    if importlib.util.find_spec(package) is not None:
        return True
    print(f"{package}: not installed; pip install -r benchmarks/requirements.txt", file=sys.stderr)
    return False


def set_arguments(changes: Iterable[str]) -> list[str]:
    """Changes of options, KEY.PATH=VALUE each, as command lines take them: --set before each."""
    return [word for change in changes for word in ("--set", change)]


def num_cores() -> int:
    """How many cores this process may use; on systems that do not say, all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware() -> str:
    """The processor and how many of its cores this process may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {num_cores()} core{'' if num_cores() == 1 else 's'}"


def report(row: Row) -> str:
    """The medians of a row, the ratios to its reference, and its verdicts, a line each."""
    width = max(map(len, row.samples))
    lines = [f"{row.what} ({row.unit}, n = {row.rounds})"]
    for name, values in row.samples.items():
        ratio = f"{median(row.ratios(name, row.reference)):8.3f}x" if row.reference else ""
        lines.append(f"  {name:<{width}} {median(values):12,.4g}{ratio}{'  <- ours' if name == row.ours else ''}")
    lines += [f"  {verdict}" for verdict in row.verdicts()]
    return "\n".join([*lines, f"  {row.note}"] if row.note else lines)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown whose columns are aligned in a terminal too; the first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines)


def is_missed(rows: Sequence[Row]) -> bool:
    """Whether any mark is missed by more than the spread."""
    return any(verdict.outcome is Outcome.MISSED for row in rows for verdict in row.verdicts())


def main(measure: Callable[[int], list[Row]], doc: str | None, rounds: int = 9) -> int:
    """Run one benchmark from the command line, `rounds` times by default; exit status 1 if a mark is missed."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="measurements of each contender")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples to this file")
    args = parser.parse_args()
    rows = measure(args.rounds)
    for row in rows:
        print(report(row), flush=True)
    if args.json:
        args.json.write_text(json.dumps([dataclasses.asdict(row) for row in rows]))
    return int(is_missed(rows))


def read_rows(path: Path) -> list[Row]:
    """The rows that `--json` wrote."""
    return [_row(fields) for fields in json.loads(path.read_text())]


def _row(fields: dict[str, Any]) -> Row:
    marks = tuple(Mark(**each) if "ratio" in each else Limit(**each) for each in fields.pop("marks"))
    return Row(**fields, marks=marks)


def _verdict(mark: Mark | Limit, values: Sequence[float], bound: float, at_least: bool = False) -> Verdict:
    middle, width = median(values), spread(values)
    excess = bound - middle if at_least else middle - bound
    if excess <= 0:
        outcome = Outcome.MET
    else:
        outcome = Outcome.CLOSE if excess <= width else Outcome.MISSED
    return Verdict(mark, middle, width, outcome)
