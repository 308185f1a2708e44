"""What can happen to a run's disk, done from inside the run: full, read-only, renamed, deleted. Linux only."""

import atexit
import contextlib
import ctypes
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CAPABILITIES_VERSION_3 = 0x20080522
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2


def fill(accident: dict[str, Any]) -> None:
    """Let no file grow beyond "room" bytes (0), counted from the present end of the file "beyond" if one is named.

    Python ignores SIGXFSZ, so that a write beyond the limit raises EFBIG where it would raise ENOSPC on a full disk.
    """
    end = Path(accident["beyond"]).stat().st_size if "beyond" in accident else 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (end + accident.get("room", 0), resource.RLIM_INFINITY))


def make_room(_accident: dict[str, Any]) -> None:
    """Undo `fill`."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def add_ballast(accident: dict[str, Any]) -> None:
    """Fill the file system of "path" with that file, but for "room" bytes."""
    with open(accident["path"], "wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while file.write(bytes(1 << 12)):
                pass
        file.truncate(file.tell() - accident["room"])


def drop_ballast(accident: dict[str, Any]) -> None:
    """Undo `add_ballast`."""
    Path(accident["path"]).unlink()


def move(accident: dict[str, Any]) -> None:
    """Rename "path" to "target"."""
    Path(accident["path"]).rename(accident["target"])


def delete(accident: dict[str, Any]) -> None:
    """Delete the folder "path"; what the run makes meanwhile may stay."""
    shutil.rmtree(accident["path"], ignore_errors=True)


def forbid(accident: dict[str, Any]) -> None:
    """Make the folder "path" read-only."""
    Path(accident["path"]).chmod(0o555)


DEEDS: dict[str, Callable[[dict[str, Any]], None]] = {
    "fill": fill,
    "make_room": make_room,
    "add_ballast": add_ballast,
    "drop_ballast": drop_ballast,
    "move": move,
    "delete": delete,
    "forbid": forbid,
}


def drop_privileges() -> None:
    """Give up what lets root write where permissions forbid it. Per thread: call it before there are others."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable of 0 .. 31, then of 32 .. 63
    if libc.capget(header, sets) == 0:
        for place in range(3):
            sets[place] &= ~(1 << _CAP_DAC_OVERRIDE | 1 << _CAP_DAC_READ_SEARCH)
        if libc.capset(header, sets) == 0:
            return
    raise OSError(ctypes.get_errno(), "capabilities cannot be dropped")


def keep_console_writable() -> None:
    """Let another process, which no limit of this one binds, write the console to its file."""
    kept = [os.dup(1), os.dup(2)]
    writer = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    assert writer.stdin is not None
    for descriptor in (1, 2):
        os.dup2(writer.stdin.fileno(), descriptor)
    writer.stdin.close()

    def finish() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, before in zip((1, 2), kept, strict=True):
            os.dup2(before, descriptor)
        writer.wait()

    atexit.register(finish)
