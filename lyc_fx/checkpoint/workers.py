"""Running the jobs of one file in several threads, each with a buffer of its own, reading and writing by position."""

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

from lyc_fx.checkpoint.ahead import WINDOW, read_ahead
from lyc_fx.checkpoint.jobs import Compute, Copy
from lyc_fx.checkpoint.sink import Sink
from lyc_fx.errors import BadFile
from lyc_fx.storage.system import PositionFile, drop_from_cache, prefetch

Merge = Callable[[Compute, Tensor, Tensor], None]
"""Computes the rows of the output (third argument) from the rows as the base stores them (second)"""
Progress = Callable[[str, int], None]
"""Called after each job with the tensor's name and the bytes written"""
TEMPORARIES = 6
"""The most float64 temporaries of a block's size that a merge needs at once: the block, its product, its sum, …"""

_REUSED = 1 << 24
"""Largest buffer, in bytes, that a thread keeps for its next job"""


@contextmanager
def single_threaded_torch() -> Any:
    """Let torch use one thread: its own would compete with ours, and their number would change the order of sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_jobs(
    source: Path,
    sink: Sink,
    jobs: Iterable[Copy | Compute],
    merge: Merge,
    *,
    memory: int,
    progress: Progress,
) -> None:
    """Run jobs that read from `source` and write to `sink`, in the order of their output.

    The result does not depend on which thread runs which job. `memory` bounds, in bytes, what the jobs that run at the
    same time need together; a single job may exceed it. `progress` is called after each job.

    Raises what a job raises, and BadFile if the source has become shorter.
    """
    read_ahead(source, 2 * WINDOW)  # the jobs prefetch only what is WINDOW bytes ahead of them
    with PositionFile(source, "rb") as old, single_threaded_torch(), ThreadPoolExecutor(thread_count()) as pool:
        shared = _Workers(old, sink, merge, iter(jobs), memory, progress)
        try:
            workers = [pool.submit(shared.work) for _ in range(thread_count())]
            for worker in workers:
                worker.result()
        except BaseException as error:
            sink.fail(error)
            raise


def thread_count() -> int:
    """Return the number of cores that this process may use."""
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _memory_needed(job: Copy | Compute) -> int:
    """Return the bytes of memory that a job needs, apart from those of the sink."""
    if isinstance(job, Copy):
        return 0
    elements = job.size // max(1, job.target.dtype.itemsize)
    stored = job.source.dtype.itemsize + job.target.dtype.itemsize
    return min(elements, job.at_once) * 8 * TEMPORARIES + elements * stored


@final
@dataclass
class _Workers:
    """The state that the worker threads share. Each takes the next job itself, which saves switches of threads."""

    source: PositionFile
    sink: Sink
    merge: Merge
    jobs: Iterator[Copy | Compute]
    memory: int
    progress: Progress
    needed: int = 0
    """Bytes needed by the jobs that are running"""
    taking: Lock = field(default_factory=Lock)
    changed: Condition = field(default_factory=Condition)

    def work(self) -> None:
        """Take and do jobs until none is left; every worker thread runs this."""
        buffer = bytearray()
        try:
            while (taken := self._take()) is not None:
                job, parts = taken
                try:
                    if isinstance(job, Copy):
                        self._copy(job, parts)
                    else:
                        buffer = self._compute(job, parts, buffer)
                finally:
                    with self.changed:
                        self.needed -= _memory_needed(job)
                        self.changed.notify_all()
                self.sink.commit(*job.target_bytes)
                with self.taking:
                    self.progress(job.name, job.size)
        except BaseException as error:
            self.sink.fail(error)
            raise

    def _take(self) -> tuple[Copy | Compute, list[memoryview]] | None:
        """Return the next job and the memory for its output, once `memory` allows it; None if no job is left."""
        with self.taking:
            job = next(self.jobs, None)
            if job is None:
                return None
            need = _memory_needed(job)
            with self.changed:
                self.changed.wait_for(lambda: not self.needed or self.needed + need <= self.memory)
                self.needed += need
            return job, self.sink.allocate(*job.target_bytes)

    def _copy(self, job: Copy, parts: list[memoryview]) -> None:
        position = job.source_start
        for part in parts:
            self._read(position, part)
            position += len(part)

    def _compute(self, job: Compute, parts: list[memoryview], buffer: bytearray) -> bytearray:
        """Do a job. Returns the buffer for the next one: `buffer`, or a larger one."""
        first, last = job.rows
        shape = (last - first, *job.source.shape[1:]) if job.source.shape else ()
        size = (last - first) * job.source.row_bytes
        buffer = buffer if len(buffer) >= size else bytearray(size)
        data = memoryview(buffer)[:size]
        self._read(job.source_start, data)
        rows = torch.frombuffer(data, dtype=job.source.dtype).reshape(shape) if len(data) else torch.empty(shape)
        whole = len(parts) == 1 and job.target_bytes[0] % job.target.dtype.itemsize == 0
        dtype = job.target.dtype
        out = torch.frombuffer(parts[0], dtype=dtype).reshape(shape) if whole else torch.empty(shape, dtype=dtype)
        self.merge(job, rows, out)
        if not whole:
            raw = out.reshape(-1).view(torch.uint8)
            for part in parts:
                torch.frombuffer(part, dtype=torch.uint8).copy_(raw[: len(part)])
                raw = raw[len(part) :]
        return buffer if len(buffer) <= _REUSED else bytearray()

    def _read(self, position: int, into: memoryview) -> None:
        prefetch(self.source.fileno(), position + WINDOW, len(into))
        done = 0
        while done < len(into):
            count = self.source.read_at(position + done, into[done:])
            if count == 0:
                raise BadFile(f"{self.source.name!s}: became shorter while it was being read")
            done += count


def read_back(path: Path, checksums: Mapping[int, tuple[int, int]]) -> None:
    """Compare a file on the disk with the checksums of its `Sink`. Raises BadFile if it differs."""
    with path.open("rb") as file:
        drop_from_cache(file.fileno())
        for position, (size, checksum) in sorted(checksums.items()):
            file.seek(position)
            if zlib.crc32(file.read(size)) != checksum:
                raise BadFile(
                    f"{path}: what was read back at byte {position} is not what was written: check the disk, and fold "
                    "again"
                )
