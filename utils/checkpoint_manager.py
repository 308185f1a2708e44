"""Checkpoints for anybody's own training loop: one dict a file, written whole or not at all, verified before use."""

import contextlib
import copy
import logging
import math
import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from utils.utils_error import UserError
from utils.utils_file import LAUNCH, TEMPORARY_NAME, atomic_write, fsync_directory, make_folder
from utils.utils_state_file import check_finite, load_state, write_state

logger = logging.getLogger("longhaul")

BEST_MODEL_NAME = "best_model.pth"
EPOCH_CKPT_PREFIX = "checkpoint_epoch_"
INTERRUPT_CKPT_NAME = "interrupt_checkpoint.pth"

_LOADED_CKPT_NAME = "interrupt_checkpoint.loaded.pth"
_EPOCH_NAME = re.compile(rf"{EPOCH_CKPT_PREFIX}(0|[1-9][0-9]*)\.pth")

# Threads would share a temporary file. Reentrant: a signal handler may save in the middle of a save.
_saving = threading.RLock()


class CheckpointManager:
    """Saves and loads the dicts of one training run in `save_dir`, which the first save creates.

    A state is a dict of whatever `torch.load(weights_only=True)` accepts. A save is durable when it returns. It raises
    TypeError for any other object, FloatingPointError for NaN or infinity in a tensor, and OSError when the disk is
    full; the older files then stay as they were. Loads return a dict whose tensors are on `device`, or None; a
    damaged file is logged and passed over, never removed. One process saves, from any thread; any number may load.

    An interrupt checkpoint is used once, and is not lost if the run that has loaded it crashes:
      interrupt_checkpoint.pth         saved. It is the latest, whatever epochs there are. Loading it renames it to
      interrupt_checkpoint.loaded.pth  still the latest. The next epoch save renames it, when all else is done, to
      checkpoint_epoch_N.pth           the name that the same save gives to epoch N a moment later, in its place.
    So one rename publishes epoch N and ends the interrupt checkpoint; at no instant are there both, or neither.
    """

    BEST_MODEL_NAME = BEST_MODEL_NAME
    EPOCH_CKPT_PREFIX = EPOCH_CKPT_PREFIX
    INTERRUPT_CKPT_NAME = INTERRUPT_CKPT_NAME

    def __init__(
        self, save_dir: str | Path = "checkpoint", device: str | torch.device = "cpu", max_to_keep: int = 5
    ) -> None:
        """max_to_keep: number of epochs kept, at least 1; with 1 there is no other to fall back on if it rots."""
        self.save_dir = Path(save_dir).expanduser().absolute()  # the same folder after a chdir
        self.device = torch.device(device)
        self.max_to_keep = _checked_int("max_to_keep", max_to_keep, 1)
        self._has_folder = False

    def save_best_model(self, state: dict[str, Any], metric: float) -> None:
        """Write best_model.pth; the caller has decided that it is the best. FloatingPointError for a metric of NaN.

        The metric is stored as state["metric"], unless there is one or all values are tensors: a bare state dict must
        suit load_state_dict as it is.
        """
        if math.isnan(metric):
            raise FloatingPointError(f"{BEST_MODEL_NAME}: the metric is NaN, and nothing compares with that; not saved")
        values = _checked_state(BEST_MODEL_NAME, state).values()
        if "metric" not in state and not all(isinstance(value, torch.Tensor) for value in values):
            state = {**state, "metric": float(metric)}
        self._write(self.save_dir / BEST_MODEL_NAME, state)

    def load_best_model(self) -> dict[str, Any] | None:
        """What best_model.pth holds, or None."""
        return self._load(self.save_dir / BEST_MODEL_NAME)

    def save_epoch_checkpoint(self, state: dict[str, Any], epoch: int) -> None:
        """Write checkpoint_epoch_<epoch>.pth, then remove all but the `max_to_keep` highest epochs and this one."""
        name = f"{EPOCH_CKPT_PREFIX}{_checked_int('epoch', epoch, 0)}.pth"
        self._write(self.save_dir / name, state, self.save_dir / _LOADED_CKPT_NAME)
        epochs = self._epochs()
        if epoch < max(epochs, default=epoch):
            logger.warning(
                "%s was saved, but load_latest_checkpoint takes the highest epoch, which is %d: "
                "is %s left from another run?", name, max(epochs), self.save_dir,
            )  # fmt: skip
        own = [each for each, path in sorted(epochs.items()) if not path.is_symlink()]
        for old in own[: -self.max_to_keep]:
            if old != epoch:  # the one file that certainly loads
                epochs[old].unlink(missing_ok=True)

    def save_interrupt_checkpoint(self, state: dict[str, Any]) -> None:
        """Write interrupt_checkpoint.pth, the latest checkpoint until it has been loaded."""
        self._write(self.save_dir / INTERRUPT_CKPT_NAME, state)

    def load_latest_checkpoint(self) -> dict[str, Any] | None:
        """The interrupt checkpoint if there is one, else the highest epoch that loads, or None."""
        interrupt, loaded = self.save_dir / INTERRUPT_CKPT_NAME, self.save_dir / _LOADED_CKPT_NAME
        if (state := self._load(interrupt)) is not None:
            self._rename_loaded(interrupt, loaded)
            return state
        # Now, not before: another rank may have renamed it meanwhile, and then both must load the same.
        if (state := self._load(loaded)) is not None:
            return state
        newest_first = (path for _, path in sorted(self._epochs().items(), reverse=True))
        return next((state for path in newest_first if (state := self._load(path)) is not None), None)

    def _rename_loaded(self, interrupt: Path, loaded: Path) -> None:
        try:
            with contextlib.suppress(FileNotFoundError):  # another rank was faster
                os.replace(interrupt, loaded)
                fsync_directory(self.save_dir)
        except OSError as error:
            logger.warning("%s was loaded and cannot be renamed: it will be loaded again (%s)", interrupt, error)

    def _epochs(self) -> dict[int, Path]:
        """Epoch -> file, of the names that this class writes and no others."""
        if not self.save_dir.is_dir():
            return {}
        named = ((_EPOCH_NAME.fullmatch(path.name), path) for path in self.save_dir.iterdir())
        return {int(match[1]): path for match, path in named if match and path.is_file()}

    def _write(self, path: Path, state: dict[str, Any], replaced: Path | None = None) -> None:
        """Write `state` to `path`; the rename that publishes it also ends the file `replaced`, if there is one."""
        # No run can go on from NaN, and rolling clean-up would push out the good epochs for it.
        check_finite(path.name, _checked_state(path.name, state))
        self._make_folder()
        self._remove_stale_temporaries()
        with _saving, atomic_write(path) as file:
            write_state(file, path.name, _moved(state, torch.device("cpu")))
            if replaced and replaced.exists():
                os.fsync(file.fileno())  # before the rename, so that a full disk leaves everything as it is
                os.replace(replaced, path)

    def _make_folder(self) -> None:
        if not self._has_folder or not self.save_dir.is_dir():
            make_folder(self.save_dir)
            self._has_folder = True

    def _remove_stale_temporaries(self) -> None:
        """Remove what a killed writer of this machine has left, and nothing of one that is alive."""
        for path in self.save_dir.iterdir():
            if not (temporary := TEMPORARY_NAME.fullmatch(path.name)):
                continue
            name = temporary["name"]
            own = name in (BEST_MODEL_NAME, INTERRUPT_CKPT_NAME) or _EPOCH_NAME.fullmatch(name)
            pid = int(temporary["pid"])
            is_of_namesake = pid == os.getpid() and temporary["launch"] != LAUNCH  # in containers most are process 1
            if own and path.is_file() and (is_of_namesake or not _is_alive(pid)):
                path.unlink(missing_ok=True)

    def _load(self, path: Path) -> dict[str, Any] | None:
        """The dict in a file, on `device`; None where there is none, or only damage, which is logged."""
        try:
            state = load_state(path)
        except Exception as error:  # readers of damaged files raise errors of any kind, also a UnicodeDecodeError
            damage = str(error).removeprefix(f"{path}: ") or type(error).__name__
        else:
            if isinstance(state, dict):
                return _moved(state, self.device)
            damage = f"it holds a {type(state).__name__} and no dict"
        if path.exists():
            logger.error("%s is passed over: %s", path, damage)
        return None


def _moved(value: Any, device: torch.device) -> Any:
    """A copy of nested dicts, lists and tuples with all tensors on `device`; everything else is as it was."""
    if isinstance(value, torch.Tensor):
        with torch.no_grad():  # a parameter's copy is a leaf again
            return value.to(device)
    if isinstance(value, dict):
        copied = copy.copy(value)  # keeps a state dict's module versions (_metadata), unlike dict(value)
        for key, each in value.items():  # not update(), which counts in a Counter
            copied[key] = _moved(each, device)
        return copied
    if type(value) in (list, tuple):
        return type(value)(_moved(each, device) for each in value)
    return value


def _checked_state(name: str, state: Any) -> Mapping[str, Any]:
    if not isinstance(state, dict):
        raise TypeError(f"{name}: a state is a dict, not a {type(state).__name__}; give {{'model': ...}}")
    return state


def _checked_int(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"CheckpointManager: {name} is {value!r}; allowed: whole numbers from {least}")
    return value


def _is_alive(pid: int) -> bool:
    if os.name != "posix":
        return True  # elsewhere os.kill(pid, 0) is no question
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's process; a number that is no id of ours
        return True
    return True
