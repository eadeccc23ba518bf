"""Making the C allocator retain freed memory: getting fresh pages for each block costs more than merging it."""

import ctypes
import sys
from contextlib import suppress

_TRIM, _MMAP = -1, -3
"""`M_TRIM_THRESHOLD` and `M_MMAP_THRESHOLD` of glibc's malloc.h"""
_RETAINED = 32 * 2**20


def retain_freed_memory() -> None:
    """Make this process retain freed memory from now on. Does nothing except on Linux with glibc.

    Call this only in a process of our own, such as the command line's, as it cannot be undone: glibc adapts these
    thresholds to what a program allocates only until they are set.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # musl has no mallopt
            library = ctypes.CDLL(None)
            library.mallopt(_MMAP, _RETAINED)
            library.mallopt(_TRIM, 16 * _RETAINED)
