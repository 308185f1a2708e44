"""Checkpoint sets: committed whole or not at all, and verified before they are trusted.

A set is `<iter>_G.pth`, `<iter>_E.pth`, `<iter>_optimizerG.pth` and, written last, `<iter>_manifest.json`: the commit
record with every file's size and SHA-256. Only rank 0 calls what writes here.
"""

import concurrent.futures
import dataclasses
import datetime
import errno
import hashlib
import json
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.utils_checkpoint_names import (
    PARTS,
    find_last_checkpoint,
    list_manifests,
    list_parts,
    manifest_name,
    set_file_name,
)
from utils.utils_error import UserError
from utils.utils_failpoint import reached
from utils.utils_file import (
    atomic_write,
    discard,
    fsync_directory,
    make_folder,
    publish,
    sha256_of,
    temporary_file,
)
from utils.utils_progress import Progress
from utils.utils_state_file import (
    DamagedFileError,
    FileRecord,
    check_finite,
    check_savable,
    has_crc,
    load_state,
    tensors_in,
    write_state,
)

logger = logging.getLogger("longhaul")

_FREE_SPACE_FACTOR = 1.2


class DamagedError(Exception):
    """A checkpoint file or set is not what was committed; the message says which file and what is wrong."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """The commit record of one set.

    reason: periodic, interrupt or final. stream: what decides which sample comes when. machine: what decides the order
    of float operations. `CheckpointFolder.commit` fills in files, by part, and saved_at.
    """

    iteration: int
    epoch: int
    reason: str
    files: Mapping[str, FileRecord] = dataclasses.field(default_factory=dict)
    progress: Progress
    stream: Mapping[str, Any]
    machine: Mapping[str, Any]
    saved_at: str = ""


@dataclasses.dataclass(frozen=True)
class ResumePoint:
    """Where a run stands: the iteration done, the file of each part, and the manifest (None in KAIR's own folders)."""

    iteration: int
    files: Mapping[str, Path]
    manifest: Manifest | None


class CheckpointFolder:
    """The checkpoint sets of one experiment, in `folder` (models/)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._published: set[str] = set()  # parts that may be written again, by a second attempt

    def commit(self, states: Mapping[str, Any], manifest: Manifest, max_to_keep: int) -> None:
        """Write the parts in `states` and then the manifest; afterwards prune to `max_to_keep` sets (0: keep all).

        A committed set is never rewritten. Raises OSError when the disk is full, FloatingPointError for what is not
        finite, TypeError for what weights_only=True would not load, and leaves the older sets as they are whatever
        fails.
        """
        if (self.folder / manifest_name(manifest.iteration)).exists():
            return
        for part, state in states.items():
            check_finite(set_file_name(manifest.iteration, part), state)
        self._check_free_space(states)
        wanted = {set_file_name(manifest.iteration, part) for part in states}
        for name in self._published - wanted:  # their manifest found no room
            (self.folder / name).unlink(missing_ok=True)
        for name in wanted - self._published:
            self.set_aside(name, "is of no committed set")
        reached("commit begun", self.folder / manifest_name(manifest.iteration))
        records = self._write_parts(states, manifest.iteration)
        committed = dataclasses.replace(manifest, files=records, saved_at=f"{datetime.datetime.now():%F %T}")
        with atomic_write(self.folder / manifest_name(manifest.iteration), "w") as file:
            file.write(_manifest_text(committed))
        self._published.clear()
        try:
            self.prune(max_to_keep)
        except OSError as error:  # the set is committed all the same
            logger.warning("An old checkpoint set could not be removed: %s", error)

    def rehearse(self, states: Mapping[str, Any], manifest: Manifest) -> None:
        """UserError for what `commit` would refuse whatever the disk; writes nothing."""
        try:
            _manifest_text(manifest)
            for part, state in states.items():
                check_savable(part, state)
        except TypeError as error:
            raise UserError(f"No checkpoint set of this run could be saved: {error}") from error
        except FloatingPointError as error:
            raise UserError(
                f"No checkpoint set of this run could be saved: {error}; a mask of infinities is a buffer with "
                "persistent=False"
            ) from error

    def find_resume_point(self, parts: Sequence[str], began_at: int | None = None) -> ResumePoint | None:
        """The newest set that verifies, or None; `parts` are the enabled ones among PARTS.

        Damaged sets and uncommitted files are reported and moved to quarantine/, never deleted. Files that came
        without a manifest are KAIR's: there the newest iteration that has all parts and whose files are whole is
        taken. began_at: the iteration at which our first launch in this folder began, if there was one; a newer file of
        ours without a manifest was cut off before its commit, or while its set was being removed.
        """
        if not self.folder.is_dir():
            return None
        manifests = list_manifests(self.folder)
        self._report_mismatch(parts, manifests)
        if not manifests:
            self._quarantine_uncommitted(math.inf, began_at)
            return self._find_without_manifest(parts)
        for iteration in sorted(manifests, reverse=True):
            try:
                manifest = self.verify(manifests[iteration])
            except DamagedError as error:
                logger.error("The set of iteration %d is damaged and is passed over: %s", iteration, error)
                self._quarantine(iteration)
                continue
            self._quarantine_uncommitted(iteration, began_at)
            files = {part: self.folder / record.name for part, record in manifest.files.items() if part in parts}
            return ResumePoint(manifest.iteration, files, manifest)
        raise UserError(
            f"{self.folder}: none of the {len(manifests)} checkpoint sets verifies; they were moved to "
            f"{self.folder / 'quarantine'}. Restore them from a backup, or launch again to start from iteration 0."
        )

    def verify(self, path: Path) -> Manifest:
        """Read a manifest and compare every file's size and SHA-256 with it; DamagedError says what differs.

        A disk that cannot give the bytes back has damaged them. Any other refusal may pass, and is a UserError.
        """
        try:
            return self._verified(path)
        except OSError as error:
            where = Path(error.filename).name if error.filename else f"a file of {path.name}"
            if error.errno == errno.EIO:
                raise DamagedError(f"{where} cannot be read: {error.strerror}") from error
            raise UserError(
                f"{self.folder}: {where} cannot be read: {error.strerror}; it was left where it is: mend that, and "
                "launch again"
            ) from error

    def _verified(self, path: Path) -> Manifest:
        manifest = read_manifest(path)
        for record in manifest.files.values():
            file = self.folder / record.name
            if not file.is_file():
                raise DamagedError(f"{record.name} is missing")
            if file.stat().st_size != record.bytes:
                raise DamagedError(f"{record.name} has {file.stat().st_size} bytes instead of {record.bytes}")
            if sha256_of(file) != record.sha256:
                raise DamagedError(f"{record.name} does not have the hash that was committed")
        return manifest

    def _write_parts(self, states: Mapping[str, Any], iteration: int) -> dict[str, FileRecord]:
        """Write the part files, two at a time: one is hashed while the disk takes another."""
        paths = {part: self.folder / set_file_name(iteration, part) for part in states}

        def write(part: str) -> FileRecord:
            with temporary_file(paths[part]) as file:
                return write_state(file, paths[part].name, states[part], with_crc=False)  # the manifest has the SHA-256

        largest_first = list(states)[::-1]  # the optimizer's
        try:
            with concurrent.futures.ThreadPoolExecutor(2, "checkpoint-part") as threads:
                records = dict(zip(largest_first, threads.map(write, largest_first), strict=True))
        except BaseException:
            discard(list(paths.values()))
            raise
        self._published |= {path.name for path in paths.values()}
        publish(list(paths.values()))  # every part is complete before the first one gets its name
        return {part: records[part] for part in states}

    def _check_free_space(self, states: Mapping[str, Any]) -> None:
        needed = int(_FREE_SPACE_FACTOR * sum(tensor.nbytes for _, tensor in tensors_in(states)))
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise OSError(
                f"{self.folder}: {free / 1e6:.0f} MB free, and a checkpoint set needs {needed / 1e6:.0f} MB; "
                "the older sets are untouched; free some space or lower train.max_to_keep"
            )

    def prune(self, max_to_keep: int) -> None:
        """Drop all but the newest sets (0: none); manifests first, so that no manifest ever lists a missing file."""
        manifests = list_manifests(self.folder)
        for iteration in sorted(manifests)[:-max_to_keep]:
            manifests[iteration].unlink()
            reached("old manifest removed", manifests[iteration])
            fsync_directory(self.folder)
            reached("old manifest's removal durable", manifests[iteration])
            for part in PARTS:
                (self.folder / set_file_name(iteration, part)).unlink(missing_ok=True)
                reached("old part removed", self.folder / set_file_name(iteration, part))

    def _report_mismatch(self, parts: Sequence[str], manifests: Mapping[int, Path]) -> None:
        steps = {part: find_last_checkpoint(self.folder, part)[0] for part in parts}
        # A committed set may lack a part that is enabled now: an average that was switched on since.
        if len(set(steps.values())) > 1 and max(steps.values()) not in manifests:
            named = ", ".join(f"{part} at {step or 'none'}" for part, step in steps.items())
            logger.warning("The newest files do not belong together (%s); the newest complete set is taken.", named)

    def _find_without_manifest(self, parts: Sequence[str]) -> ResumePoint | None:
        found = {part: list_parts(self.folder, part) for part in parts}
        complete = set.intersection(*(set(files) for files in found.values()))
        for iteration in sorted(found["G"], key=lambda each: (each in complete, each), reverse=True):
            files = {part: found[part][iteration] for part in parts if iteration in found[part]}
            try:
                for path in files.values():
                    load_state(path)
            except DamagedFileError as error:
                logger.error("Iteration %d is passed over: %s", iteration, error)
                continue
            logger.warning("%s has no manifests (KAIR's own?): resuming from iteration %d by file names.",
                           self.folder, iteration)  # fmt: skip
            return ResumePoint(iteration, files, None)
        if found["G"]:
            raise UserError(
                f"{self.folder}: of {len(found['G'])} iterations none can be read; restore them from a backup, or move "
                "them away to start from iteration 0"
            )
        return None

    def _quarantine(self, iteration: int) -> None:
        # The manifest goes first: from then on nothing claims that the set is whole.
        self._move_to_quarantine(self.folder / manifest_name(iteration))
        for part in PARTS:
            self._move_to_quarantine(self.folder / set_file_name(iteration, part))

    def _quarantine_uncommitted(self, newest: float, began_at: int | None) -> None:
        """Set aside parts beyond the newest set, and parts of ours without a manifest.

        A kill came between their renames and the commit, or while their set was being removed.
        """
        committed = list_manifests(self.folder)
        for part in PARTS:
            for iteration, path in list_parts(self.folder, part).items():
                is_stray = iteration not in committed and began_at is not None and iteration > began_at
                if iteration > newest or (is_stray and not has_crc(path)):
                    self.set_aside(path.name, "is of no committed set")

    def set_aside(self, name: str, reason: str) -> None:
        """Move a file to quarantine/, if it is there, and say why."""
        if (self.folder / name).exists():
            logger.warning("%s %s; moved to quarantine/.", name, reason)
            self._move_to_quarantine(self.folder / name)

    def _move_to_quarantine(self, path: Path) -> None:
        if not path.exists():
            return
        quarantine = self.folder / "quarantine"
        make_folder(quarantine)
        target, number = quarantine / path.name, 0
        while target.exists():
            number += 1
            target = quarantine / f"{path.name}.{number}"
        path.rename(target)
        reached("moved to quarantine", path)
        fsync_directory(quarantine)
        fsync_directory(self.folder)


def _manifest_text(manifest: Manifest) -> str:
    content = dataclasses.asdict(manifest)
    return json.dumps({**content, "sha256": _digest(content)}, indent=2) + "\n"


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(path: Path) -> Manifest:
    """The commit record in a file; DamagedError if it is none, or not as it was written.

    UserError if it is as another version of Longhaul wrote it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("sha256") != _digest(content):
            raise DamagedError(f"{path.name} does not have its own hash")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path.name} is not a manifest ({error})") from error
    try:
        files = {part: FileRecord(**record) for part, record in content.pop("files").items()}
        return Manifest(files=files, progress=Progress(**content.pop("progress")), **content)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: written by another version of Longhaul ({error}); it was left where it is: launch with that "
            "version, or give this run another task name"
        ) from error
