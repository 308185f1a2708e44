"""How this process gets its memory from the system."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from glibc's malloc.h


def keep_freed_memory() -> None:
    """Have glibc reuse freed blocks instead of returning them to the system; nothing elsewhere.

    By default every activation above 32 MB is mapped and unmapped in each iteration, and the kernel clears its pages
    each time: that costs more than any trainer's loop. Call it before the first large allocation.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
