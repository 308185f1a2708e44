"""One trainer per experiment folder."""

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

    def __enter__(self) -> "FolderLock":
        if not HAS_LOCKS:
            logger.warning(
                "This system has no POSIX locks and few signals: nothing prevents a second launch in the same folder, "
                "and only Ctrl-C and SIGTERM save and stop."
            )
            return self
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                os.close(descriptor)
                logger.warning(
                    "%s: its file system has no locks (%s): nothing prevents a second launch in the same folder.",
                    self._path.parent, error.strerror,
                )  # fmt: skip
                return self
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
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
