"""Read-ahead: ask the operating system to load a file into the page cache while other work is done.

A checkpoint that is not in the page cache is read at the speed of the disk. On its own, the system reads only a
little ahead, and less when several threads take turns. The page cache is released when memory runs short.
"""

import os
from contextlib import suppress
from pathlib import Path
from threading import Thread

from lyc_fx.storage.system import prefetch

WINDOW = 1 << 26
"""How many bytes to stay ahead of the current read position"""
_STEP = 1 << 23
"""Bytes requested per call by `read_ahead`"""


def read_ahead(path: Path, most: int = 1 << 30) -> None:
    """Start loading the first `most` bytes of a file, or of a folder's safetensors files, in a background thread.

    Files that cannot be opened are skipped without an error; the code that needs them reports it.
    """
    Thread(target=_read_ahead, args=(path, most), daemon=True).start()


def _read_ahead(path: Path, most: int) -> None:
    with suppress(OSError):
        for file in sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]:
            with file.open("rb") as opened:
                size = min(os.fstat(opened.fileno()).st_size, most)
                for position in range(0, size, _STEP):
                    prefetch(opened.fileno(), position, _STEP)
            most -= size
