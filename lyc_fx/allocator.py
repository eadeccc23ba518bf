"""Telling the C library's allocator to keep what it has: fresh pages for each block cost more than the sums."""

import ctypes
import sys
from contextlib import suppress

_TRIM, _MMAP = -1, -3
"""`M_TRIM_THRESHOLD` and `M_MMAP_THRESHOLD` of glibc's malloc.h"""
_KEPT = 32 * 2**20


def keep_freed_memory() -> None:
    """From now on freed memory stays with the process. Other systems than Linux with glibc: nothing.

    This is for a process of our own, such as the command line's. In a user's it would be for good: glibc adapts these
    thresholds to what a program allocates until somebody sets them, and there is no way back.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # musl has no mallopt
            library = ctypes.CDLL(None)
            library.mallopt(_MMAP, _KEPT)
            library.mallopt(_TRIM, 16 * _KEPT)
