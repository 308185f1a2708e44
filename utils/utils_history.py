"""What an experiment folder tells of its run: metrics.csv, the launches of status.json, the manifests."""

import contextlib
import dataclasses
import datetime
import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.utils_checkpoint import DamagedError, Manifest, read_manifest
from utils.utils_checkpoint_names import list_manifests
from utils.utils_error import UserError
from utils.utils_metrics_csv import numbers, read_metrics

Series = list[tuple[int, float]]
"""(iteration, value), in the order of the iterations."""

_STATUS = {"state": str, "began_at_iter": int, "last_committed_iter": int, "launches": list}
_LAUNCH = {"state": str, "from_iter": int, "to_iter": int, "launched": str, "ended": str, "machine": dict,
           "options": str}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class History:
    """series: by split and column of metrics.csv. launches: as status.json has them, oldest first.

    manifests: those of the sets that are still there, by iteration.
    """

    folder: Path
    state: str | None
    series: Mapping[str, Mapping[str, Series]]
    launches: list[dict[str, Any]]
    manifests: Mapping[int, Manifest]

    @property
    def interruptions(self) -> list[tuple[int, str]]:
        """(iteration that the next launch went on from, how the launch before it had ended), for each resume.

        A launch that failed before it wrote its options was refused, and trained nothing.
        """
        ends = {"RUNNING": "killed", "PREEMPTED": "stopped", "FAILED": "failed", "DONE": "extended"}
        begun = [each for each in self.launches if each["state"] != "FAILED" or "options" in each]
        return [
            (after["from_iter"], ends.get(before["state"], "stopped"))
            for before, after in itertools.pairwise(begun)
            if before["state"] != "DONE" or after["from_iter"] < after["to_iter"]  # else nothing was left to do
        ]


def read_history(folder: Path) -> History:
    """Everything that is readable; what is missing or torn is left out."""
    status = read_status(folder)
    rows = read_metrics(folder / "metrics.csv", len(status["launches"]))
    series: dict[str, dict[str, Series]] = {}
    for (iteration, split), row in sorted(rows.items()):
        for name, value in numbers(row).items():
            series.setdefault(split, {}).setdefault(name, []).append((iteration, value))
    manifests = {}
    for iteration, path in sorted(list_manifests(folder / "models").items()):
        with contextlib.suppress(DamagedError, UserError, OSError):  # a run that goes on removes old ones
            manifests[iteration] = read_manifest(path)
    return History(folder, status.get("state"), series, status["launches"], manifests)


def read_status(folder: Path) -> dict[str, Any]:
    """What is ours in status.json, which people edit: values of the right types, launches that have what is needed."""
    try:
        content = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = {}
    status = _ours(content, _STATUS)
    launches = [_ours(each, _LAUNCH) for each in status.get("launches", [])]
    return {**status, "launches": [each for each in launches if {"state", "from_iter", "to_iter"} <= each.keys()]}


def _ours(content: Any, types: Mapping[str, type]) -> dict[str, Any]:
    """`content` without values of another type than `types` has for them; {} if it is no dict."""
    pairs = content.items() if isinstance(content, dict) else ()
    return {key: value for key, value in pairs if isinstance(value, types.get(key, object))}


def saved_options(folder: Path) -> list[Path]:
    """The option files of an experiment's launches, oldest first."""
    files = [path for path in (folder / "options").glob("[!.]*.json") if path.is_file()]  # editors put links there
    return sorted(files, key=_launched)


def stamp_of_launch(folder: Path) -> str:
    """The time of this launch, for the name of its options, which come after all that are there.

    Two launches may come within a second, or a clock may have been set back, as each autumn.
    """
    now = f"{datetime.datetime.now():%y%m%d_%H%M%S}"
    newest, number = max(map(_launched, saved_options(folder)), default=("", 0))
    return now if now > newest else f"{newest}_{number + 1}"


def _launched(path: Path) -> tuple[str, int]:
    """The time in the name, and the number within that second: those of the files themselves do not survive a copy."""
    if stamp := re.fullmatch(r".*_(\d{6}_\d{6})(?:_(\d+))?", path.stem):  # the last: the file may be of another launch
        return stamp[1], int(stamp[2] or 1)
    return f"{datetime.datetime.fromtimestamp(path.stat().st_mtime):%y%m%d_%H%M%S}", 1
