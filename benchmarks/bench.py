"""`make bench`: every benchmark in a process of its own, as a table and a picture; exit status 1 if a mark is missed.

    python -m benchmarks.bench [--only NAME ...] [--rounds N] [--output docs]

Writes benchmarks.md and benchmarks.png; with --only, which would replace all by some, where --output is given alone.
Peers take part where they are installed (`make peers`).
"""

import argparse
import datetime
import importlib.metadata
import itertools
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.measure import Limit, Row, hardware, is_missed, median, read_rows, table
from utils.utils_file import PROJECT_FOLDER
from utils.utils_visualise import save_figure

BENCHMARKS = {
    "loop_overhead": "what the loop costs beside forward, backward and update",
    "moving_average": "the moving average of the weights, each step",
    "training_speed": "training images per second, end to end with augmentation",
    "launch": "from the command to the first step",
    "read_csv": "fer2013.csv as arrays",
    "saving": "a checkpoint set of 409 MB",
    "ranks": "two ranks against one of as many threads",
}
PACKAGES = ("torch", "numpy", "lightning", "accelerate", "mindspore")


def run(name: str, rounds: int | None) -> list[Row]:
    """The rows of one benchmark, run in a process of its own; none if it did not end. Its output is seen at once."""
    print(f"--- python -m benchmarks.{name}: {BENCHMARKS[name]}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(file)]
        subprocess.run([*command, *(["--rounds", str(rounds)] if rounds else [])], cwd=PROJECT_FOLDER, check=False)
        return read_rows(file) if file.exists() else []


def markdown(ran: Mapping[str, Sequence[Row]]) -> str:
    """The document: what ran where, the verdicts, and the medians of every contender. ran: the rows by benchmark."""
    verdicts = [["what", "mark", "measured", "outcome"]]
    for row in itertools.chain.from_iterable(ran.values()):
        for verdict in row.verdicts():
            mark = f"{verdict.mark}{f' {row.unit}' if isinstance(verdict.mark, Limit) else ''}"
            verdicts.append([row.what, mark, verdict.measured, str(verdict.outcome)])
    parts = [
        "# Benchmarks",
        "`make bench` writes this file; do not edit it. " + _circumstances(),
        "Contenders take turns within each round. Ratios are taken round by round and shown as median ± half their "
        "interquartile range; a mark is missed if the median is beyond it by more. Absolute values hold for this "
        "machine alone.",
        "![ours, the limits and the peers](benchmarks.png)",
        "## The marks",
        table(verdicts),
        *(_section(name, rows) for name, rows in ran.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _circumstances() -> str:
    versions = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} is not installed")
    return f"Measured on {datetime.date.today()}: {hardware()}; {', '.join(versions)}."


def _section(name: str, rows: Sequence[Row]) -> str:
    head = f"## {name}\n\n`python -m benchmarks.{name}`: {BENCHMARKS[name]}."
    return "\n\n".join([head, *map(_table, rows)] if rows else [head, "It did not end: see its output."])


def _table(row: Row) -> str:
    cells = [["", row.unit, *([f"beside {row.reference}"] if row.reference else [])]]
    for name, values in row.samples.items():
        ratio = [f"{median(row.ratios(name, row.reference)):.3f}x"] if row.reference else []
        cells.append([f"**{name}**" if name == row.ours else name, f"{median(values):,.4g}", *ratio])
    note = f"\n\n{row.note}" if row.note else ""
    return f"{row.what}, n = {row.rounds}:\n\n{table(cells)}{note}"


def write(folder: Path, text: str, rows: Sequence[Row]) -> None:
    """The document and, of any rows, their picture."""
    (folder / "benchmarks.md").write_text(text)
    if rows:
        from benchmarks.picture import figure_of  # matplotlib takes a second to import

        save_figure(figure_of(rows), folder / "benchmarks.png")


def main() -> int:
    """Run, write, print; the exit status is 1 if a mark is missed or a benchmark did not end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, metavar="NAME")
    parser.add_argument("--rounds", type=int, help="measurements of each contender (default: each benchmark's own)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="(default: docs; with --only, none)")
    args = parser.parse_args()
    output = args.output or (None if args.only else PROJECT_FOLDER / "docs")
    if output:
        output.mkdir(parents=True, exist_ok=True)
    ran = {name: run(name, args.rounds) for name in args.only or BENCHMARKS}
    rows = list(itertools.chain.from_iterable(ran.values()))
    text = markdown(ran)
    if output:
        write(output, text, rows)
    print(text)
    return int(is_missed(rows) or not all(ran.values()))


if __name__ == "__main__":
    sys.exit(main())
