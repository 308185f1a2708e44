"""The experiment folder: one trainer in it at a time, its options, its status, and what it saves. Rank 0 writes."""

import contextlib
import datetime
import errno
import json
import logging
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch

from utils import utils_option
from utils.utils_checkpoint import CheckpointFolder, Manifest, ResumePoint
from utils.utils_checkpoint_names import find_last_checkpoint
from utils.utils_device import chosen_amp, compiler_name, device_name, nccl_name
from utils.utils_dist import Dist
from utils.utils_error import UserError
from utils.utils_failpoint import reached
from utils.utils_file import TEMPORARY_NAME, atomic_write, code_record, make_folder, project_path
from utils.utils_history import read_status, saved_options, stamp_of_launch
from utils.utils_lock import FolderLock
from utils.utils_logger import RunLog
from utils.utils_option import Options
from utils.utils_snapshot import BackgroundWriter
from utils.utils_state_file import load_state, write_model

logger = logging.getLogger("longhaul")

T = TypeVar("T")

_SUBFOLDERS = ("models", "options", "images", "tb")

# path.root and task may name any folder: nothing but what an experiment writes is ever removed from it.
_OWN_NAME = re.compile(
    r"status\.json|metrics\.csv|(best|final)_model\.pth|\d+_(G|E|optimizerG)\.pth|\d+_manifest\.json"
    r"|.+_\d{6}_\d{6}(_\d+)?\.json"
)


class Experiment:
    """`<path.root>/<task>/`; a relative root is relative to the project, whatever the working directory.

    Entering takes the folder's lock, so a second launch is refused before anything is written. With `dry_run` nothing
    is written at all. A save that fails calls `on_save_failure` if `train.save_failure` is "stop".
    """

    def __init__(
        self, opt: Options, dist: Dist, option_file: Path, dry_run: bool = False,
        on_save_failure: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.opt = opt
        self.folder = project_path(opt.path.root) / opt.task
        self.models = self.folder / "models"
        self.log = RunLog(None, False, False)
        self._dist = dist
        self._option_file = option_file
        self.is_dry_run = dry_run
        self._checkpoints = CheckpointFolder(self.models)
        stops = opt.train.save_failure == "stop"
        self._writer = BackgroundWriter(on_save_failure if stops else lambda: None)
        self._open = contextlib.ExitStack()
        self._lock = FolderLock(self.folder)
        self.last_committed_iter = 0
        self._began_at: int | None = None
        self._earlier_launches: list[dict[str, Any]] = []
        self._launch: dict[str, Any] | None = None
        self._has_finished = False

    def __enter__(self) -> "Experiment":
        self._dist.on_main(self._check_folder if self.is_dry_run else self._start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        if error is not None:
            self.log.failure(error)
            if self.last_committed_iter and not isinstance(error, UserError):
                logger.error("The newest good set is that of iteration %s.", f"{self.last_committed_iter:,}")
        if not self._has_finished:
            self._end_status("FAILED")
        self.log.close()
        self._open.close()

    @property
    def save_failed(self) -> bool:
        """Whether the last save failed; waits for it."""
        self._writer.wait()
        return self._writer.failed

    def find_resume_point(self, parts: tuple[str, ...]) -> ResumePoint | None:
        """The newest verified set, the same on every rank. Collective. A dry run only looks, and verifies nothing."""
        if self.is_dry_run:
            iteration, path = find_last_checkpoint(self.models)
            if path is not None:
                logger.info("A launch would resume from %s if the set of iteration %d verifies.", path, iteration)
            return None

        return self._on_main_disk(lambda: self._find_resume_point(parts))

    def changes(self) -> list[str]:
        """What differs from the launch that saved the set resumed from, as "key: old -> new": options, and the code.

        Launches since, which were refused or killed before they saved one, do not count. Where status.json does not
        know that launch, it is the one before.
        """
        saved = {path.name: path for path in saved_options(self.folder)}
        here = self.last_committed_iter
        origins = [each for each in self._earlier_launches if each["from_iter"] < here <= each["to_iter"]]
        origin = [{}, *self._earlier_launches, *origins][-1]
        name = origin.get("options", next(reversed(saved), ""))
        try:
            old = json.loads(saved[name].read_text(encoding="utf-8"))
        except (KeyError, OSError, ValueError):
            options = [f"options/{name} is missing, empty or not readable, so changes of options are not known"]
        else:
            options = utils_option.changes(old, utils_option.to_dict(self.opt))
        return [*options, *_code_changes(origin.get("machine", {}))]

    def save_options(self) -> None:
        """Write options/<stem>_<time>.json, which reproduces this launch."""
        if not self._dist.is_main or self.is_dry_run:
            return
        try:
            name = f"{self._option_file.stem}_{stamp_of_launch(self.folder)}.json"
            utils_option.save(self.opt, self.folder / "options" / name)
            if self._launch is not None:
                self._launch["options"] = name
        except OSError as error:  # a full disk must not end a run that could still finish
            logger.error("The options of this launch could not be written: %s", error)

    def rehearse_save(self, states: Mapping[str, Any], manifest: Manifest) -> None:
        """UserError if no set of such states could be saved, which would be known hours later. Collective."""
        self._dist.on_main(lambda: self._checkpoints.rehearse(states, manifest))

    def save_set(self, states: Mapping[str, Any], manifest: Manifest) -> None:
        """Commit a checkpoint set in the background; returns once the state is copied."""
        if not self._dist.is_main:
            return
        start = time.perf_counter()

        def write(states: Any) -> None:
            self._lock.check()
            self._checkpoints.commit(states, manifest, self.opt.train.max_to_keep)
            self.last_committed_iter = manifest.iteration
            self._write_status("RUNNING")
            logger.info(
                "Saved iteration %s (%s), %.2f s in the background.",
                f"{manifest.iteration:,}", manifest.reason, time.perf_counter() - start,
            )  # fmt: skip

        self._writer.save("checkpoint set", states, write)

    def save_model(self, name: str, content: Mapping[str, Any], what: str = "") -> None:
        """Write models/<name> in the background, and then say `what` it is; returns once the content is copied."""
        if not self._dist.is_main:
            return

        def write(content: Any) -> None:
            self._lock.check()
            write_model(self.models / name, content)
            if what:
                logger.info("  Saved %s to %s", what, self.models / name)

        self._writer.save(name, content, write)

    def model(self, name: str) -> Mapping[str, Any]:
        """What models/<name> holds, its tensors unread; only "iter", 0, if there is no such model, or none of ours."""
        try:
            content = load_state(self.models / name, is_glance=True)
        except UserError:
            content = None
        is_ours = isinstance(content, Mapping) and isinstance(content.get("iter"), int)
        return content if is_ours else {"iter": 0}

    def model_iter(self, name: str) -> int:
        """The iteration of models/<name>, the same on every rank; 0 if there is none of ours. Collective."""
        return self._dist.on_main(lambda: int(self.model(name)["iter"]))

    def set_aside_model(self, name: str, reason: str) -> None:
        """Move models/<name> to quarantine/, if it is there. Collective."""
        if not self.is_dry_run:
            self._on_main_disk(lambda: self._checkpoints.set_aside(name, reason))

    def finish(self, state: str) -> None:
        """Wait for the saves, and have status.json say how the launch ended: DONE, PREEMPTED or FAILED.

        A launch whose end is not on disk is FAILED, whatever it was to be: the next one makes up for it.
        """
        self._writer.retry()
        self._end_status("FAILED" if self._writer.failed else state)
        self._has_finished = True

    def _on_main_disk(self, function: Callable[[], T]) -> T:
        """Call `function` on rank 0; what its disk refuses is a UserError everywhere. Collective."""

        def call() -> T:
            try:
                return function()
            except OSError as error:
                raise UserError(
                    f"{self.models}: cannot be resumed from ({error}); mend that, and launch again"
                ) from error

        return self._dist.on_main(call)

    def _find_resume_point(self, parts: tuple[str, ...]) -> ResumePoint | None:
        resume = self._checkpoints.find_resume_point(parts, self._began_at)
        if resume is None:
            if self.last_committed_iter:
                logger.warning(
                    "status.json says that iteration %s was saved, but %s holds no set: the run starts from iteration "
                    "0.", f"{self.last_committed_iter:,}", self.models,
                )  # fmt: skip
            if self.last_committed_iter or self._began_at is None:  # else killed before its first set: it comes again
                for name in ("best_model.pth", "final_model.pth"):
                    self._checkpoints.set_aside(name, "is of a run that starts again from iteration 0")
        self._begin_launch(resume.iteration if resume else 0)
        reached("resume point chosen", self.folder)
        return resume

    def _begin_launch(self, from_iter: int) -> None:
        """From here on status.json tells of this launch."""
        self.last_committed_iter = from_iter
        if self._began_at is None:
            self._began_at = from_iter
        software = {"python": platform.python_version(), "system": platform.platform(), **code_record()}
        self._launch = {
            "launched": f"{datetime.datetime.now():%F %T}",
            "from_iter": from_iter,
            "machine": {**machine_record(self.opt, self._dist), **software},
        }
        self._write_status("RUNNING")

    def _check_folder(self) -> None:
        """UserError where a launch could not make its folders; nothing is written."""
        try:
            _check_writable(next(each for each in (self.folder, *self.folder.parents) if each.exists()))
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"path.root: {self.folder} cannot be written ({error}); make room or mend its permissions, or choose "
            "another folder"
        )

    def _start(self) -> None:
        try:
            self._take_folder()
        except OSError as error:
            raise self._unwritable(error) from error
        status = read_status(self.folder)
        self._began_at = status.get("began_at_iter")
        self.last_committed_iter = status.get("last_committed_iter", 0)
        self._earlier_launches = status["launches"]

    def _take_folder(self) -> None:
        """Make the folders, lock them, remove what a killed writer left, and open the logs."""
        for folder in (self.folder, *(self.folder / name for name in _SUBFOLDERS)):
            make_folder(folder)
            _check_writable(folder)
        self._open.enter_context(self._lock)
        for folder in (self.folder, self.models, self.folder / "options"):
            for entry in folder.iterdir():
                temporary = TEMPORARY_NAME.fullmatch(entry.name)
                if temporary and _OWN_NAME.fullmatch(temporary["name"]) and entry.is_file():  # a killed writer left it
                    entry.unlink()
                    reached("stale temporary file removed", entry)
        bar = self.opt.log.progress_bar
        self.log = RunLog(self.folder, self.opt.log.tensorboard, sys.stderr.isatty() if bar == "auto" else bar)

    def _end_status(self, state: str) -> None:
        if self._dist.is_main and not self.is_dry_run:
            self._write_status(state)

    def _write_status(self, state: str) -> None:
        """What a scheduler needs to know, then the history of the run: a launch that stayed RUNNING was killed."""
        now = f"{datetime.datetime.now():%F %T}"
        launches = self._earlier_launches
        if self._launch is not None:
            launches = [*launches, {**self._launch, "to_iter": self.last_committed_iter, "ended": now, "state": state}]
        content = {
            "state": state,
            "last_committed_iter": self.last_committed_iter,
            "began_at_iter": self._began_at,
            "updated": now,
            "launches": launches,
        }
        try:
            self._lock.check()
            with atomic_write(self.folder / "status.json", "w") as file:
                file.write(json.dumps(content, indent=2) + "\n")
        except OSError as error:  # a full disk must not end a run that could still finish
            logger.error("status.json could not be written: %s", error)


def _check_writable(folder: Path) -> None:
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def _code_changes(old: Mapping[str, Any]) -> list[str]:
    new = code_record()
    if old.get("code") in (None, new["code"]):
        return []
    before, now = (str(each["commit"])[:12] if each.get("commit") else None for each in (old, new))
    return [f"code: commit {before} -> {now}" if before and now and before != now else "code: edited since then"]


def machine_record(opt: Options, dist: Dist) -> dict[str, Any]:
    """What decides the order of float operations; an exact resume needs all of it equal."""
    return {
        "ranks": dist.world_size,
        "threads per rank": dist.num_threads,
        "device": device_name(dist.device),
        **(_gpu_record(dist) if dist.device.type == "cuda" else {}),
        "torch": str(torch.__version__),
        "numpy": np.__version__,  # its generator shuffles, and promises no stream for ever
        "amp": chosen_amp(opt.train.amp, dist.device),
        "compile": compiler_name(opt.train.compile, dist.device),
        "channels_last": opt.train.channels_last,
        "G_accumulation_steps": opt.train.G_accumulation_steps,
    }


def _gpu_record(dist: Dist) -> dict[str, Any]:
    """What else decides it on GPUs; NCCL sums along the links between them, which depend on who shares a machine."""
    processor = device_name(torch.device("cpu"))  # NumPy computes there what transforms draw
    record = {"processor": processor, "cuDNN": torch.backends.cudnn.version()}  # type: ignore[no-untyped-call]
    return record | ({"ranks per machine": dist.local_world_size, "NCCL": nccl_name()} if dist.world_size > 1 else {})
