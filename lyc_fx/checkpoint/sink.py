"""The output file: many threads fill chunks of memory, and each chunk is written to the file when it is full."""

import mmap
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Condition
from types import TracebackType
from typing import Self, final

from lyc_fx.checkpoint.direct import DirectFile

CHUNK = 1 << 23
"""Bytes per chunk, which is what one write takes"""
_WRITERS = 2
"""Threads that write"""


@final
@dataclass
class _Chunk:
    memory: mmap.mmap
    """CHUNK bytes, aligned to a page"""
    size: int
    """Bytes of the file that it holds: fewer than CHUNK at the end of the file"""
    unfilled: int
    """Bytes that are not committed yet"""


@final
class Sink:
    """A file of a known size, filled from memory by several threads.

    `allocate` must be called in ascending order of positions, by one thread at a time; `commit` by any thread, in any
    order. Leaving the context waits until everything is written (not synced); after an error nothing more is written.
    """

    def __init__(self, path: Path | None, size: int, memory: int, *, checksums: bool) -> None:
        """Open the file at `path`, which must exist; with None, nothing is written.

        `memory` bounds the bytes that wait to be written, except for the few chunks needed to make progress.
        """
        self.checksums: dict[int, tuple[int, int]] | None = {} if checksums else None
        """From the position of each write to its size and CRC-32"""
        self._file = None if path is None else DirectFile(path)
        self._size, self._limit = size, max(3, memory // CHUNK)
        self._chunks: dict[int, _Chunk] = {}
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
                assert self._failure or not any(chunk.unfilled for chunk in list(self._chunks.values()))
                self._wait(lambda: not self._chunks)
        finally:
            self._writers.shutdown(cancel_futures=True)
            if self._file is not None:
                self._file.close()

    def allocate(self, start: int, stop: int) -> list[memoryview]:
        """Return memory for the bytes `start:stop` of the file, in one or more parts; fill it, then call `commit`.

        Waits while too much is still to be written. Raises the error of a failed write, or the one given to `fail`.
        """
        touched = _touched(start, stop)
        new = [number for number in touched if number not in self._chunks]
        begun = len(touched) > len(new)  # 1 if the first chunk exists: it cannot be full before these bytes are there
        self._wait(lambda: len(self._chunks) + len(new) <= self._limit or len(self._chunks) <= begun)
        for number in new:
            size = min(CHUNK, self._size - number * CHUNK)
            memory = self._free.pop() if self._free else mmap.mmap(-1, CHUNK)
            self._chunks[number] = _Chunk(memory, size, size)
        return [memoryview(self._chunks[n].memory)[slice(*_within(n, start, stop))] for n in touched]

    def commit(self, start: int, stop: int) -> None:
        """Declare that the memory from `allocate` for these bytes is filled, which writes every full chunk."""
        for number in _touched(start, stop):
            first, last = _within(number, start, stop)
            chunk = self._chunks[number]
            with self._changed:
                chunk.unfilled -= last - first
                full = not chunk.unfilled
            if full:
                self._writers.submit(self._write, number, chunk)

    def write(self, start: int, data: bytes) -> None:
        """Allocate, fill with `data`, and commit."""
        done = 0
        for part in self.allocate(start, start + len(data)):
            part[:] = data[done : done + len(part)]
            done += len(part)
        self.commit(start, start + len(data))

    def fail(self, error: BaseException) -> None:
        """Stop everything with this error: some bytes will never be committed."""
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    def _write(self, number: int, chunk: _Chunk) -> None:
        data, position = memoryview(chunk.memory)[: chunk.size], number * CHUNK
        try:
            if self._file is not None:
                self._file.write(position, data)
            if self.checksums is not None:
                self.checksums[position] = (chunk.size, zlib.crc32(data))
        except Exception as error:
            self.fail(error)
            return
        with self._changed:
            del self._chunks[number]
            self._free.append(chunk.memory)
            self._changed.notify_all()

    def _wait(self, until: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None or until())
        if self._failure is not None:
            raise self._failure


def _touched(start: int, stop: int) -> range:
    """Return the numbers of the chunks that contain these bytes."""
    return range(start // CHUNK, -(-stop // CHUNK)) if stop > start else range(0)


def _within(number: int, start: int, stop: int) -> tuple[int, int]:
    """Return the part of these bytes that is in a chunk, as (start, stop) relative to the chunk."""
    first = number * CHUNK
    return max(start - first, 0), min(stop - first, CHUNK)
