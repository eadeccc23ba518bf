"""Writing to the disk itself, past the page cache, where the system and the file system can.

Through the page cache, the kernel copies every byte once more and writes it later: that costs the processors more than
most merges do. With O_DIRECT the disk takes the bytes from where they are.
"""

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import final

from lyc_fx.system import PositionFile, sync

ALIGNED = 1 << 12
"""O_DIRECT asks for positions, sizes and addresses that are multiples of this; no common disk asks for more"""


@final
class DirectFile:
    """A file that is there already, for writing by position from any thread. Close it."""

    def __init__(self, path: Path) -> None:
        self._cached = PositionFile(path, "r+b")
        self._direct = None
        if hasattr(os, "O_DIRECT"):
            with suppress(OSError):  # tmpfs before Linux 6.6, some network file systems
                self._direct = PositionFile(path, "r+b", os.O_DIRECT)

    def write(self, position: int, data: memoryview) -> None:
        """All of the data. Raises OSError."""
        if self._direct is not None and position % ALIGNED == len(data) % ALIGNED == 0:
            try:
                _write(self._direct, position, data)
                return
            except OSError as error:
                if error.errno != errno.EINVAL:  # else opened, yet not written so; or cut short within a sector
                    raise
        _write(self._cached, position, data)
        sync(self._cached.fileno())  # lest all be left for the end

    def close(self) -> None:
        """Close the file; what is not on the disk by then is for `sync_path`."""
        for file in (self._cached, self._direct):
            if file is not None:
                file.close()


def _write(file: PositionFile, position: int, data: memoryview) -> None:
    done = 0
    while done < len(data):
        done += file.write_at(position + done, data[done:])
