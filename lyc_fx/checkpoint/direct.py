"""Direct I/O: write to the disk without going through the page cache, where the system and file system support it.

For a write through the page cache the kernel copies every byte and writes it later, which costs more processor time
than most merges. With O_DIRECT the disk reads the bytes from our own memory.
"""

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import final

from lyc_fx.storage.system import PositionFile, sync

ALIGNED = 1 << 12
"""O_DIRECT requires positions, sizes and addresses that are multiples of this; no common disk requires more"""


@final
class DirectFile:
    """An existing file, opened for writing by position from any thread. The caller must close it."""

    def __init__(self, path: Path) -> None:
        self._cached = PositionFile(path, "r+b")
        self._direct = None
        if hasattr(os, "O_DIRECT"):
            with suppress(OSError):  # tmpfs before Linux 6.6, some network file systems
                self._direct = PositionFile(path, "r+b", os.O_DIRECT)

    def write(self, position: int, data: memoryview) -> None:
        """Write all of `data` at a byte position. Raises OSError."""
        if self._direct is not None and position % ALIGNED == len(data) % ALIGNED == 0:
            try:
                _write(self._direct, position, data)
                return
            except OSError as error:
                # EINVAL: the file system opens files with O_DIRECT but does not write them, or a write ended in the
                # middle of a sector, so that the rest is not aligned.
                if error.errno != errno.EINVAL:
                    raise
        _write(self._cached, position, data)
        sync(self._cached.fileno())  # else all data would be flushed to the disk at the end, at once

    def close(self) -> None:
        """Close the file. This does not flush it to the disk: call `sync_path` for that."""
        for file in (self._cached, self._direct):
            if file is not None:
                file.close()


def _write(file: PositionFile, position: int, data: memoryview) -> None:
    done = 0
    while done < len(data):
        done += file.write_at(position + done, data[done:])
