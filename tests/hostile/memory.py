"""How much memory a step needs, on Linux.

What is measured: the growth of the process's resident memory (VmHWM, reset before the step, less VmRSS). Memory that
is asked for but never touched does not count there: for that the address space is limited, so that asking fails.
"""

import ctypes
import resource
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
FIXED = 24 * 2**20
"""Bytes that any step may take: code that is run for the first time, threads, the allocator's reserve"""
FACTOR = 40
"""Bytes for each byte of the input: Python's objects are up to thirty times as large as their JSON"""
_ADDRESSES = 512 * 2**20


def limit_addresses() -> None:
    """From now on, asking for half a gigabyte fails."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + _ADDRESSES, hard))


def start() -> int:
    """Bytes in use now; the peak starts from here. Memory that was freed is given back first."""
    ctypes.CDLL(None).malloc_trim(0)
    _RESET.write_text("5")
    return _status("VmRSS")


def extra(before: int) -> int:
    """The peak since `start`, above what was in use then."""
    return max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
