"""Named instants of saving and resuming, at which tests let the process die. Nothing but tests/ arms them."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

Failpoint = Literal[
    # one file (utils_file, utils_state_file)
    "temporary file opened",
    "temporary file partly written",
    "temporary file written",
    "temporary file synced",
    "file renamed",
    "file durable",
    # one set (utils_checkpoint)
    "commit begun",
    "old manifest removed",
    "old manifest's removal durable",
    "old part removed",
    # a launch (utils_checkpoint, utils_experiment)
    "folder made",
    "stale temporary file removed",
    "moved to quarantine",
    "resume point chosen",
]
FAILPOINTS: tuple[Failpoint, ...] = get_args(Failpoint)

armed: Callable[[Failpoint, Path], None] | None = None
"""What `reached` calls; None in every real run."""


def reached(name: Failpoint, path: Path) -> None:
    """Mark that instant of what is being done to `path`."""
    if armed is not None:
        armed(name, path)
