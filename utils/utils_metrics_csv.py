"""metrics.csv: a row for each line of the log and each test."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.utils_file import atomic_write

KEYS = ("iter", "epoch", "split")
FIXED_COLUMNS = (*KEYS, "lr", "G_loss", "images_per_s")


class MetricsFile:
    """metrics.csv: one row an event, appended over relaunches; a new metric adds a column to all rows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns: list[str] = list(FIXED_COLUMNS)
        self._pending: list[Mapping[str, Any]] = []
        if path.exists():
            self._columns = self._read()[0] or self._columns
            self._rewrite(self._columns)  # a kill may have torn the last line

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row; it is in the file when this returns. A row that raises OSError comes with the next one."""
        self._pending.append(row)
        columns = list(dict.fromkeys([*self._columns, *(name for row in self._pending for name in row)]))
        if columns != self._columns or not self._path.exists():
            self._rewrite(columns)
            self._columns = columns
        size = self._path.stat().st_size
        try:
            with open(self._path, "a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns, lineterminator="\n").writerows(self._pending)
        except OSError:
            os.truncate(self._path, size)  # the next row must not continue a torn line
            raise
        self._pending = []

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        reader = _whole_lines(self._path)
        return list(reader.fieldnames or []), list(reader)

    def _rewrite(self, columns: Sequence[str]) -> None:
        rows = self._read()[1]
        with atomic_write(self._path, "w") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)


def read_metrics(path: Path) -> dict[tuple[int, str], dict[str, str]]:
    """The rows of metrics.csv by iteration and split; a later row wins. Rows without an iteration are left out."""
    rows = _whole_lines(path)
    return {(int(row["iter"]), row["split"]): row for row in rows if (row.get("iter") or "").isdecimal()}


def logged_test(path: Path, iteration: int) -> dict[str, float]:
    """The numbers that the file has of a test of this iteration, under the names of the metrics."""
    row = read_metrics(path).get((iteration, "test"), {})
    values = {name: float(value) for name, value in row.items() if value and name not in FIXED_COLUMNS}
    return {"loss": float(row["G_loss"]), **values} if row.get("G_loss") else values


def _whole_lines(path: Path) -> "csv.DictReader[str]":
    """All but a last line that a kill has torn; nothing where there is no file.

    Spreadsheets save the file with a byte order mark, or in another encoding: that must not cost a run its history.
    """
    text = path.read_text(encoding="utf-8-sig", errors="replace") if path.is_file() else ""
    return csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
