"""One contestant, once: a process of its own, its wall time until the output is on disk, its anonymous memory."""

import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
_EVERY = 0.02
"""Seconds between two looks at a process's memory"""


@dataclass(frozen=True)
class Run:
    wall: float
    """From the start of the process until its output is on disk (fsync)"""
    anonymous: int
    """Most bytes of anonymous and shared memory that it and its children held, seen every 20 ms; see `_anonymous`"""
    seconds: float | None
    """What it says of itself, without the start of Python and the imports"""
    note: str
    error: str | None


def run(command: Sequence[str], output: Path, inputs: Sequence[Path]) -> Run:
    """With the inputs in the page cache, and nothing left to write of the runs before."""
    for path in inputs:
        _warm(path)
    os.sync()
    places = os.pathsep.join(map(str, (HERE.parent, HERE)))  # this checkout's code, whatever is installed
    environment = os.environ | {"PYTHONPATH": places, "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    watch = _Watch(process.pid)
    text, trouble = process.communicate()
    if process.returncode == 0:
        _sync(output)
    wall = time.perf_counter() - started
    peak = watch.stop()
    if process.returncode:
        last = trouble.strip().splitlines()[-1:] or [f"exit status {process.returncode}"]
        return Run(wall, peak, None, "", last[0])
    said = json.loads(text) if text.strip() else {}
    return Run(wall, peak, said.get("seconds"), said.get("note", ""), None)


class _Watch:
    """Looks at a process until `stop`, which gives the peak."""

    def __init__(self, pid: int) -> None:
        self._pid, self._peak, self._over = pid, 0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(_EVERY):
            self._peak = max(self._peak, _anonymous(self._pid))

    def stop(self) -> int:
        self._over.set()
        self._thread.join()
        return self._peak


def _anonymous(pid: int) -> int:
    """RssAnon and RssShmem of /proc/PID/status: heap, stacks, and private pages of mapped files once written to.

    Pages that only mirror a file (RssFile) are left out: the kernel drops them when it needs the room.
    """
    held = 0
    with contextlib.suppress(OSError):  # it has ended
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(("RssAnon:", "RssShmem:")):
                held += int(line.split()[1]) * 1024
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            held += _anonymous(int(child))
    return held


def _warm(path: Path) -> None:
    for file in [path] if path.is_file() else filter(Path.is_file, path.iterdir()):
        with file.open("rb", buffering=0) as stream:
            while stream.read(1 << 24):
                pass


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
