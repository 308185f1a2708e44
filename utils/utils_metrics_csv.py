"""metrics.csv: a row for each line of the log and each test."""

import codecs
import contextlib
import csv
import io
import itertools
import logging
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.utils_file import atomic_write, fsync_directory

KEYS = ("iter", "epoch", "split")
FIXED_COLUMNS = (*KEYS, "lr", "G_loss", "images_per_s")

_POINT = re.compile(r"[+-]?\d+\.\d+(e[+-]?\d+)?", re.IGNORECASE)
_COMMA = re.compile(r"[+-]?\d+,\d+(e[+-]?\d+)?", re.IGNORECASE)

Cells = list[list[str]]
"""Text by row and column, all rows of one length; the first names the columns."""

logger = logging.getLogger("longhaul")


class MetricsFile:
    """metrics.csv: one row an event, appended over relaunches; a new metric adds a column to all rows.

    What people and spreadsheets make of the file is brought back into our own form, or set aside, never lost.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pending: list[Mapping[str, Any]] = []
        self._columns: list[str] = []
        self._left_as: tuple[int, int] | None = None
        self._adopt()

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row; it is in the file when this returns. A row that raises OSError comes with the next one."""
        self._pending.append(row)
        if self._stamp() != self._left_as:  # somebody has saved it since, and its form or its columns may be others
            self._adopt()
        columns = list(self._columns or FIXED_COLUMNS)
        columns += dict.fromkeys(name for row in self._pending for name in row if name not in columns)
        if columns != self._columns:
            rows = _table(_content(self._path)) or [[]]
            self._write(_padded([columns, *rows[1:]]))
        size = self._path.stat().st_size
        try:
            with open(self._path, "a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns, lineterminator="\n").writerows(self._pending)
        except OSError:
            os.truncate(self._path, size)  # the next row must not continue a torn line
            raise
        self._pending = []
        self._left_as = self._stamp()

    def _adopt(self) -> None:
        """Go on with what is there; it is written anew only where it is not in our own form, or its end is torn."""
        content = _content(self._path)
        table = _table(content)
        if table and _text(table).encode() != content:
            self._write(table)
        elif not table and content.strip():
            self._set_aside()
        self._columns = table[0] if table else []
        self._left_as = self._stamp()

    def _set_aside(self) -> None:
        names = (self._path.with_name(f"metrics.unread_{number}.csv") for number in itertools.count(1))
        aside = next(path for path in names if not path.exists())
        self._path.rename(aside)
        fsync_directory(aside.parent)
        logger.warning(
            "%s cannot be read as a table of %s, ...: it is kept as %s, and a new one begins.",
            self._path, ", ".join(KEYS), aside.name,
        )  # fmt: skip

    def _write(self, table: Cells) -> None:
        with atomic_write(self._path, "w") as file:
            file.write(_text(table))
        self._columns = table[0]

    def _stamp(self) -> tuple[int, int] | None:
        """What changes when somebody else saves the file."""
        if not self._path.exists():
            return None
        status = self._path.stat()
        return status.st_mtime_ns, status.st_size


def read_metrics(path: Path, num_launches: int = 0) -> dict[tuple[int, str], dict[str, str]]:
    """The rows of metrics.csv by iteration and split; a later row wins. Rows without an iteration are left out.

    num_launches: of the run. Where one of them went back, the rows of later iterations are of weights that are gone,
    and left out too; unless a split goes back more often than that, because somebody has sorted the rows.
    """
    columns, *rows = _table(_content(path)) or [[]]
    named = [row for each in rows if (row := dict(zip(columns, each, strict=True)))["iter"].isdecimal()]
    keys = [(int(row["iter"]), row["split"]) for row in named]
    latest: dict[str, int] = {}  # of each split: all rows of one may stand before those of another
    goes_back = []
    for iteration, split in keys:
        goes_back.append(iteration < latest.get(split, 0))
        latest[split] = iteration
    times = Counter(split for (_, split), is_back in zip(keys, goes_back, strict=True) if is_back)
    is_sorted = max(times.values(), default=0) >= num_launches
    found: dict[tuple[int, str], dict[str, str]] = {}
    for key, is_back, row in zip(keys, goes_back, named, strict=True):
        if is_back and not is_sorted:
            found = {kept: value for kept, value in found.items() if kept[0] <= key[0]}
        found[key] = row
    return found


def numbers(row: Mapping[str, str]) -> dict[str, float]:
    """The cells of a row that are numbers, without its keys; people add notes, also under no heading."""
    found = {}
    for name, text in row.items():
        if name and name not in KEYS:
            with contextlib.suppress(ValueError):
                found[name] = float(text)
    return found


def logged_test(path: Path, iteration: int) -> dict[str, float]:
    """The numbers that the file has of a test of this iteration, under the names of the metrics."""
    found = numbers(read_metrics(path).get((iteration, "test"), {}))
    values = {name: value for name, value in found.items() if name not in FIXED_COLUMNS}
    return {"loss": found["G_loss"], **values} if "G_loss" in found else values


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _table(content: bytes) -> Cells:
    """What the file says, in whichever form; empty where its first row does not name the keys.

    Spreadsheets save with a byte order mark or in another encoding, with semicolons or tabs, with decimal commas.
    """
    if b"\r" not in content.partition(b"\n")[0]:  # else a spreadsheet wrote the last line, and some do not end it
        content = content[: content.rfind(b"\n") + 1]  # a kill may have torn it
    content = content.removeprefix(codecs.BOM_UTF8)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")  # has a letter for every byte, so none is lost
    for separator in ",;\t":
        with contextlib.suppress(csv.Error):  # not written with this one
            lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
            table = [line for line in lines if line]
            if table and set(KEYS) <= set(table[0]):
                return _padded(_with_points(table))
    return []


def _with_points(table: Cells) -> Cells:
    """Decimal commas become points, but not where a number of ours has a point: there they group thousands."""
    ours = [position for position, name in enumerate(table[0]) if name in FIXED_COLUMNS]
    if any(_POINT.fullmatch(row[position]) for row in table for position in ours if position < len(row)):
        return table
    return [[cell.replace(",", ".") if _COMMA.fullmatch(cell) else cell for cell in row] for row in table]


def _padded(table: Cells) -> Cells:
    """A cell beyond the columns gets one without a name, so that no later column takes it in."""
    width = max(map(len, table))
    return [row + [""] * (width - len(row)) for row in table]


def _text(table: Cells) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(table)
    return text.getvalue()
