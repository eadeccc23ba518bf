"""Running the jobs of one file: several threads, each with its own reused buffer, reading and writing by position."""

import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Condition, Lock
from typing import Any, final

import torch
from torch import Tensor

from lyc_fx.errors import BadFile
from lyc_fx.folding.ahead import WINDOW, begin
from lyc_fx.folding.jobs import Compute, Copy
from lyc_fx.folding.sink import Sink
from lyc_fx.system import PositionFile, ask, forget

Merge = Callable[[Compute, Tensor, Tensor], None]
"""Makes of the rows of a tensor as they are stored the rows as they are written"""
Progress = Callable[[str, int], None]
"""Called after each job with the tensor's name and the bytes written"""
TEMPORARIES = 6
"""As large as a block, in float64: the block, its product, its sum and so on"""

_KEPT = 1 << 24
"""Bytes of a buffer that is used again"""


@contextmanager
def one_thread_each() -> Any:
    """Torch's own threads would compete with ours, and sum in another order where they are more or fewer."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(
    source: Path,
    sink: Sink,
    jobs: Iterable[Copy | Compute],
    merge: Merge,
    *,
    memory: int,
    progress: Progress,
) -> None:
    """Do the jobs, which come in the order of their output. What they write does not depend on who does which when.

    `memory` bounds what the jobs that run at once may need together; one alone may always run.
    """
    begin(source, 2 * WINDOW)  # the header is not among what the jobs read
    with PositionFile(source, "rb") as old, one_thread_each(), ThreadPoolExecutor(threads()) as pool:
        crew = _Crew(old, sink, merge, iter(jobs), memory, progress)
        try:
            workers = [pool.submit(crew.work) for _ in range(threads())]
            for worker in workers:
                worker.result()
        except BaseException as error:
            sink.fail(error)
            raise


def threads() -> int:
    """As many as there are cores for this process."""
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _need(job: Copy | Compute) -> int:
    """Bytes of working memory, besides those of the sink."""
    if isinstance(job, Copy):
        return 0
    elements = job.size // max(1, job.target.dtype.itemsize)
    stored = job.source.dtype.itemsize + job.target.dtype.itemsize
    return min(elements, job.at_once) * 8 * TEMPORARIES + elements * stored


@final
@dataclass
class _Crew:
    """Threads that each take the next job: nobody hands them out, for each switch of threads costs time."""

    source: PositionFile
    sink: Sink
    merge: Merge
    jobs: Iterator[Copy | Compute]
    memory: int
    progress: Progress
    needed: int = 0
    """By the jobs in work"""
    taking: Lock = field(default_factory=Lock)
    changed: Condition = field(default_factory=Condition)

    def work(self) -> None:
        """What every thread does."""
        buffer = bytearray()
        try:
            while (taken := self._take()) is not None:
                job, room = taken
                try:
                    if isinstance(job, Copy):
                        self._copy(job, room)
                    else:
                        buffer = self._compute(job, room, buffer)
                finally:
                    with self.changed:
                        self.needed -= _need(job)
                        self.changed.notify_all()
                self.sink.filled(*job.target_bytes)
                with self.taking:
                    self.progress(job.name, job.size)
        except BaseException as error:
            self.sink.fail(error)
            raise

    def _take(self) -> tuple[Copy | Compute, list[memoryview]] | None:
        """The next job, and the room for its bytes; waits until there is memory for it."""
        with self.taking:
            job = next(self.jobs, None)
            if job is None:
                return None
            need = _need(job)
            with self.changed:
                self.changed.wait_for(lambda: not self.needed or self.needed + need <= self.memory)
                self.needed += need
            return job, self.sink.room(*job.target_bytes)

    def _copy(self, job: Copy, room: list[memoryview]) -> None:
        position = job.source_start
        for part in room:
            self._read(position, part)
            position += len(part)

    def _compute(self, job: Compute, room: list[memoryview], buffer: bytearray) -> bytearray:
        """Reads into the buffer, or into a new one where it is too small."""
        first, last = job.rows
        shape = (last - first, *job.source.shape[1:]) if job.source.shape else ()
        size = (last - first) * job.source.row_bytes
        buffer = buffer if len(buffer) >= size else bytearray(size)
        data = memoryview(buffer)[:size]
        self._read(job.source_start, data)
        rows = torch.frombuffer(data, dtype=job.source.dtype).reshape(shape) if len(data) else torch.empty(shape)
        whole = len(room) == 1 and job.target_bytes[0] % job.target.dtype.itemsize == 0
        dtype = job.target.dtype
        out = torch.frombuffer(room[0], dtype=dtype).reshape(shape) if whole else torch.empty(shape, dtype=dtype)
        self.merge(job, rows, out)
        if not whole:
            raw = out.reshape(-1).view(torch.uint8)
            for part in room:
                torch.frombuffer(part, dtype=torch.uint8).copy_(raw[: len(part)])
                raw = raw[len(part) :]
        return buffer if len(buffer) <= _KEPT else bytearray()

    def _read(self, position: int, into: memoryview) -> None:
        ask(self.source.fileno(), position + WINDOW, len(into))
        done = 0
        while done < len(into):
            count = self.source.read_at(position + done, into[done:])
            if count == 0:
                raise BadFile("the checkpoint became shorter while it was read")
            done += count


def read_back(path: Path, checksums: Mapping[int, tuple[int, int]]) -> None:
    """Compare a file with the sizes and CRC-32 of what was written to it. Raises BadFile where it differs."""
    with path.open("rb") as file:
        forget(file.fileno())
        for position, (size, checksum) in sorted(checksums.items()):
            file.seek(position)
            if zlib.crc32(file.read(size)) != checksum:
                raise BadFile(f"{path}: what was read back at byte {position} is not what was written: the disk errs")
