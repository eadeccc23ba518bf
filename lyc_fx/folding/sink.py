"""The output file, filled by many threads in stretches of memory, each of which is written when it is full."""

import mmap
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Condition
from types import TracebackType
from typing import Self, final

from lyc_fx.folding.direct import DirectFile

STRETCH = 1 << 23
"""Bytes that are written at once"""
_WRITERS = 2


@final
@dataclass
class _Stretch:
    memory: mmap.mmap
    """Of STRETCH bytes, aligned to a page"""
    size: int
    missing: int
    """Bytes that are not filled yet"""


@final
class Sink:
    """A file of a known size. One thread asks for `room`, in ascending order; any may say `filled`.

    The context ends when everything is written, though not yet synced; where it ends by an error, nothing more is.
    """

    def __init__(self, path: Path | None, size: int, memory: int, *, checksums: bool) -> None:
        """`memory` bounds what waits to be written, but for the few stretches that are needed to go on. Without a path
        nothing is written."""
        self.checksums: dict[int, tuple[int, int]] | None = {} if checksums else None
        """First byte → size and CRC-32, of all that was written"""
        self._file = None if path is None else DirectFile(path)
        self._size, self._limit = size, max(3, memory // STRETCH)
        self._stretches: dict[int, _Stretch] = {}
        self._free: list[mmap.mmap] = []
        self._failure: BaseException | None = None
        self._changed = Condition()
        self._writers = ThreadPoolExecutor(_WRITERS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                assert self._failure or not any(stretch.missing for stretch in list(self._stretches.values()))
                self._wait(lambda: not self._stretches)
        finally:
            self._writers.shutdown(cancel_futures=True)
            if self._file is not None:
                self._file.close()

    def room(self, start: int, stop: int) -> list[memoryview]:
        """Memory for these bytes, in order, in one or several parts: fill them, then say `filled`.

        Waits while much is still to be written. Raises what some writing raised, or what `fail` was told.
        """
        touched = _touched(start, stop)
        new = [number for number in touched if number not in self._stretches]
        begun = len(touched) > len(new)  # a stretch that cannot become full before these bytes are there
        self._wait(lambda: len(self._stretches) + len(new) <= self._limit or len(self._stretches) <= begun)
        for number in new:
            size = min(STRETCH, self._size - number * STRETCH)
            memory = self._free.pop() if self._free else mmap.mmap(-1, STRETCH)
            self._stretches[number] = _Stretch(memory, size, size)
        return [memoryview(self._stretches[n].memory)[slice(*_within(n, start, stop))] for n in touched]

    def filled(self, start: int, stop: int) -> None:
        """These bytes are in the memory that `room` gave."""
        for number in _touched(start, stop):
            first, last = _within(number, start, stop)
            stretch = self._stretches[number]
            with self._changed:
                stretch.missing -= last - first
                full = not stretch.missing
            if full:
                self._writers.submit(self._write, number, stretch)

    def put(self, start: int, data: bytes) -> None:
        """`room`, filled with this."""
        done = 0
        for part in self.room(start, start + len(data)):
            part[:] = data[done : done + len(part)]
            done += len(part)
        self.filled(start, start + len(data))

    def fail(self, error: BaseException) -> None:
        """Some bytes will never be filled."""
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    def _write(self, number: int, stretch: _Stretch) -> None:
        data, position = memoryview(stretch.memory)[: stretch.size], number * STRETCH
        try:
            if self._file is not None:
                self._file.write(position, data)
            if self.checksums is not None:
                self.checksums[position] = (stretch.size, zlib.crc32(data))
        except Exception as error:
            self.fail(error)
            return
        with self._changed:
            del self._stretches[number]
            self._free.append(stretch.memory)
            self._changed.notify_all()

    def _wait(self, until: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None or until())
        if self._failure is not None:
            raise self._failure


def _touched(start: int, stop: int) -> range:
    """The stretches in which these bytes lie."""
    return range(start // STRETCH, -(-stop // STRETCH)) if stop > start else range(0)


def _within(number: int, start: int, stop: int) -> tuple[int, int]:
    """The part of these bytes that lies in a stretch."""
    first = number * STRETCH
    return max(start - first, 0), min(stop - first, STRETCH)
