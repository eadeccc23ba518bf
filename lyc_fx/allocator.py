"""Telling the C library's allocator to keep what it has: fresh pages for each block cost more than the sums."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_TRIM, _MMAP = -1, -3
"""`M_TRIM_THRESHOLD` and `M_MMAP_THRESHOLD` of glibc's malloc.h"""
_DEFAULT, _KEPT = 128 * 2**10, 32 * 2**20


@contextmanager
def kept() -> Iterator[None]:
    """Within, freed memory stays with the process; afterwards it goes back to the system. Other systems: nothing."""
    library = None
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # musl has no mallopt
            library = ctypes.CDLL(None)
            library.mallopt(_MMAP, _KEPT)
            library.mallopt(_TRIM, 16 * _KEPT)
    try:
        yield
    finally:
        if library is not None:
            with suppress(AttributeError):
                library.mallopt(_MMAP, _DEFAULT)
                library.mallopt(_TRIM, _DEFAULT)
                library.malloc_trim(0)
