"""Files that exist whole or not at all, and the folder where derived data may be kept."""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from utils.utils_failpoint import reached

PROJECT_FOLDER = Path(__file__).resolve().parent.parent
TEMPORARY_NAME = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)(-(?P<launch>[0-9a-f]+))?\.tmp")

LAUNCH = secrets.token_hex(4)  # in containers and on other machines, others have this process's number

# What some network file systems answer; they keep directories in their own order.
_NO_DIRECTORY_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)


def temporary_path(path: Path) -> Path:
    """The temporary name of `path`: in the same directory, because a rename across file systems is a copy."""
    return path.with_name(f".{path.name}.{os.getpid()}-{LAUNCH}.tmp")


def project_path(path: str | Path) -> Path:
    """An option file's path: absolute, or relative to the project, whatever the working directory."""
    return PROJECT_FOLDER / os.path.expanduser(path)  # noqa: PTH111  # ~nobody stays as it is, as in a shell


def make_folder(path: Path) -> None:
    """Create a folder and its missing parents so that they outlive a power loss.

    Each is durable before the next is made in it. So of those that exist only the deepest can be one that a killed
    process made and did not make durable.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
    deepest = missing[-1].parent if missing else path
    with contextlib.suppress(PermissionError):  # whoever may not read the folder that it is in has not made it
        fsync_directory(deepest.parent)
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        reached("folder made", folder)
        fsync_directory(folder.parent)


def fsync_tree(folder: Path) -> None:
    """Make everything in `folder` durable, and its own name not yet."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with open(Path(parent, name), "rb") as file:
                os.fsync(file.fileno())
        fsync_directory(Path(parent))


def fsync_directory(folder: Path) -> None:
    """Make the renames and unlinks done in `folder` durable, on systems and file systems that can sync a directory."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open `path` for writing so that it appears complete and durable, or not at all.

    The body writes to a temporary file beside it; on success that file is flushed, fsynced and renamed over
    `path`, and the directory is fsynced. On an exception the temporary file is removed and `path` is untouched.
    """
    with temporary_file(path, mode) as file:
        yield file
    publish([path])


@contextlib.contextmanager
def temporary_file(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open the temporary file of `path` for writing; on return it is durable, on an exception it is removed."""
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}  # the same bytes on every system
    try:
        with open(temporary_path(path), mode, **text) as file:  # type: ignore[call-overload]
            reached("temporary file opened", path)
            yield file
            reached("temporary file written", path)
            file.flush()
            os.fsync(file.fileno())
            reached("temporary file synced", path)
    except BaseException as error:
        discard([path])
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error  # a failed write does not know its file
        raise


def publish(paths: Sequence[Path]) -> None:
    """Give the temporary files of `paths`, all of one folder, their names, and make these durable."""
    try:
        for path in paths:
            os.replace(temporary_path(path), path)
            reached("file renamed", path)
    except BaseException:
        discard(paths)
        raise
    fsync_directory(paths[0].parent)
    for path in paths:
        reached("file durable", path)


def discard(paths: Sequence[Path]) -> None:
    """Remove the temporary files of `paths` that there are."""
    for path in paths:
        with contextlib.suppress(OSError):  # what went wrong first is what people must hear
            temporary_path(path).unlink()


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """Where derived data is kept: $LONGHAUL_CACHE, else $XDG_CACHE_HOME/longhaul, else ~/.cache/longhaul."""
    if folder := os.environ.get("LONGHAUL_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "longhaul"


def cache_paths(source: Path, name: str) -> list[Path]:
    """Beside the source; then, for sources in folders that cannot be written, the user's cache folder.

    No part of `name` comes from the source's content, so that a changed source replaces its old cache.
    """
    beside = source.with_name(f"{source.name}.{name}")
    place = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:16]
    paths = [beside]
    with contextlib.suppress(RuntimeError):  # a user without a home folder
        paths.append(cache_folder() / f"{place}.{beside.name}")
    return paths


def write_cache(source: Path, name: str, write: Callable[[IO[bytes]], object]) -> list[str]:
    """Let `write` fill the first of `cache_paths` that takes it; returns why none did."""
    failures = []
    for path in cache_paths(source, name):
        try:
            make_room_for(path)
            with atomic_write(path) as file:
                write(file)
            return []
        except OSError as error:
            failures.append(str(error))
    return failures


def make_room_for(path: Path) -> None:
    """Make the folder of a file or folder of derived data, and remove what killed writers of it have left there.

    It has no lock, but nobody writes for a day.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for entry in path.parent.iterdir():
        temporary = TEMPORARY_NAME.fullmatch(entry.name)
        if temporary and temporary["name"] == path.name:
            with contextlib.suppress(OSError):  # another launch was faster
                if time.time() - entry.stat().st_mtime > 86_400:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def code_record() -> dict[str, str | None]:
    """commit: that is checked out; code: a hash of the .py files that a training may import, committed or not."""
    # No deeper than a package in these folders: people put millions of images into data/.
    folders = [f"{name}/{rest}" for name in ("data", "models", "utils") for rest in ("", "*/")]
    digest = hashlib.sha256()
    for path in sorted(path for folder in ("", *folders) for path in PROJECT_FOLDER.glob(f"{folder}[!.]*.py")):
        with contextlib.suppress(OSError):  # nor could it be imported
            digest.update(f"{path.relative_to(PROJECT_FOLDER)}\0{sha256_of(path)}\n".encode())
    return {"commit": _commit(), "code": digest.hexdigest()[:16]}


def _commit() -> str | None:
    """The commit that is checked out, if the project is a git repository; read from its files, git is not called."""
    git = project_path(".git")
    try:
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        if (git / name).is_file():
            return (git / name).read_text(encoding="utf-8").strip()
        packed = (git / "packed-refs").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    return next((line.split()[0] for line in packed if line.endswith(f" {name}")), None)
