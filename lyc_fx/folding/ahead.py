"""Asking the system to read a file before it is needed, while something else is done.

A checkpoint that is not in the page cache is read at the speed of the disk. By itself the system reads little ahead,
and less where several threads take turns. It reads into the page cache, which it gives up when memory is short.
"""

import os
from contextlib import suppress
from pathlib import Path
from threading import Thread

from lyc_fx.system import ask

WINDOW = 1 << 26
"""Bytes ahead of what is read"""
_STEP = 1 << 23
"""Bytes that are asked for at once, where nothing is read meanwhile"""


def begin(path: Path, most: int = 1 << 30) -> None:
    """Ask, in the background, for the first so many bytes of a file, or of the weights in a folder.

    What cannot be read is passed over: whoever needs it will say so.
    """
    Thread(target=_begin, args=(path, most), daemon=True).start()


def _begin(path: Path, most: int) -> None:
    with suppress(OSError):
        for file in sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]:
            with file.open("rb") as opened:
                size = min(os.fstat(opened.fileno()).st_size, most)
                for position in range(0, size, _STEP):
                    ask(opened.fileno(), position, _STEP)
            most -= size
