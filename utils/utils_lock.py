"""One trainer per experiment folder."""

import contextlib
import datetime
import errno
import json
import logging
import os
import socket
from pathlib import Path
from types import TracebackType

from utils.utils_error import UserError

try:
    import fcntl
except ImportError:  # Windows
    HAS_LOCKS = False
else:
    HAS_LOCKS = True

logger = logging.getLogger("longhaul")


class FolderLock:
    """Holds `<folder>/.lock` while the trainer lives; a second launch in the folder is a UserError naming the holder.

    A POSIX record lock rather than flock: forked DataLoader workers do not inherit it, so none outlives the trainer.
    The price is that no other code of this process may open the lock file, since closing it would drop the lock.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".lock"
        self._descriptor: int | None = None
        self._folder: int | None = None  # a descriptor: as long as it is open, no other folder gets its inode
        self._lost = ""

    def __enter__(self) -> "FolderLock":
        if not HAS_LOCKS:
            logger.warning(
                "This system has no POSIX locks and few signals: nothing prevents a second launch in the same folder, "
                "and only Ctrl-C and SIGTERM save and stop."
            )
            return self
        self._take()
        self._folder = os.open(self._path.parent, os.O_RDONLY)
        return self

    def check(self) -> None:
        """OSError if somebody has removed the folder under this trainer, or its lock and another has taken that."""
        if self._descriptor is None or self._folder is None:
            return
        with contextlib.suppress(FileNotFoundError):  # whoever writes there will hear of it
            if not os.path.samestat(self._path.parent.stat(), os.fstat(self._folder)):
                self._lost = f"{self._path.parent} is another folder than the one in which this run was launched"
            elif not self._is_held():
                removed = self._descriptor
                try:
                    self._take()
                except UserError as error:
                    self._lost = f"somebody removed {self._path.name}, and {error}"
                else:
                    os.close(removed)
        if self._lost:
            raise OSError(self._lost)

    def _is_held(self) -> bool:
        assert self._descriptor is not None, "asked only then"
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def _take(self) -> None:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                os.close(descriptor)
                logger.warning(
                    "%s: its file system has no locks (%s): nothing prevents a second launch in the same folder.",
                    self._path.parent, error.strerror,
                )  # fmt: skip
                return
            other = os.read(descriptor, 4096).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise UserError(
                f"{self._path.parent}: another trainer is running in this folder ({other}); "
                "wait for it or stop it, or give this run another task name"
            ) from error
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "start": f"{datetime.datetime.now():%F %T}"}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        self._descriptor = descriptor

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in (self._descriptor, self._folder):
            if descriptor is not None:
                os.close(descriptor)
        self._descriptor = self._folder = None
