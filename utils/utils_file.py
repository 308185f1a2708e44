"""Files that exist whole or not at all, and the folder where derived data may be kept."""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

PROJECT_FOLDER = Path(__file__).resolve().parent.parent
TEMPORARY_NAME = re.compile(r"\..+\.\d+\.tmp")


def temporary_path(path: Path) -> Path:
    """The temporary name of `path`: in the same directory, because a rename across file systems is a copy."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def project_path(path: str | Path) -> Path:
    """An option file's path: absolute, or relative to the project, whatever the working directory."""
    return PROJECT_FOLDER / Path(path).expanduser()


def fsync_directory(folder: Path) -> None:
    """Make the renames and unlinks done in `folder` durable; a no-op where directories cannot be opened (Windows)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open `path` for writing so that it appears complete and durable, or not at all.

    The body writes to a temporary file beside it; on success that file is flushed, fsynced and renamed over
    `path`, and the directory is fsynced. On an exception the temporary file is removed and `path` is untouched.
    """
    temporary = temporary_path(path)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}  # the same bytes on every system
    try:
        with open(temporary, mode, **text) as file:  # type: ignore[call-overload]
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """Where derived data is kept: $LONGHAUL_CACHE, else $XDG_CACHE_HOME/longhaul, else ~/.cache/longhaul."""
    if folder := os.environ.get("LONGHAUL_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "longhaul"
