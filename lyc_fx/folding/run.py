"""Running the jobs of one file: several threads, each with its own reused buffer, reading and writing by position."""

import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread, local
from typing import Any, final

import torch
from torch import Tensor

from lyc_fx.allocator import kept
from lyc_fx.errors import BadFile
from lyc_fx.folding.jobs import Compute, Copy

Merge = Callable[[Compute, Tensor], Tensor]
"""The rows of a tensor as they are stored → as they are written"""
Progress = Callable[[str, int], None]
"""Called after each job with the tensor's name and the bytes written"""
_PAUSE = 0.5
"""Seconds between two writings to the disk"""
_MARGIN = 12
"""Bytes of working memory for each byte of a block in float64: the block, its product, its sum and so on"""


@final
@dataclass
class Written:
    """Checksums of what was written, by position, for reading back."""

    checksums: dict[int, tuple[int, int]] = field(default_factory=dict)
    """First byte → size and CRC-32"""


@contextmanager
def flushing(file: int) -> Iterator[None]:
    """Meanwhile, let the disk write what it has: at the end little is left to wait for."""
    done = Event()

    def flush() -> None:
        while not done.wait(_PAUSE):
            with suppress(OSError):  # the last fsync says what is wrong
                getattr(os, "fdatasync", os.fsync)(file)  # macOS has no fdatasync

    thread = Thread(target=flush, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


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
    target: Path,
    jobs: Iterable[Copy | Compute],
    merge: Merge,
    *,
    memory: int,
    progress: Progress,
    checksums: bool,
) -> Written:
    """Do the jobs. Their results do not depend on the number of threads, nor on their order.

    `memory` bounds what the jobs that run at once may need together; one alone may always run.
    """
    written = Written()
    with open(source, "rb") as old, open(target, "r+b") as new, one_thread_each(), kept(), flushing(new.fileno()):
        hand = _Hand(old.fileno(), new.fileno(), merge, written if checksums else None)
        threads = max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        with ThreadPoolExecutor(threads) as pool:
            running: dict[Future[None], Copy | Compute] = {}
            try:
                for job in jobs:
                    while running and (
                        len(running) > threads or sum(map(_need, running.values())) + _need(job) > memory
                    ):
                        _settle(running, progress)
                    running[pool.submit(hand.do, job)] = job
                while running:
                    _settle(running, progress)
            finally:
                for each in running:
                    each.cancel()
    return written


def _settle(running: dict[Future[None], Copy | Compute], progress: Progress) -> None:
    """Wait for some job to end; raise what it raised."""
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for each in done:
        job = running.pop(each)
        each.result()
        progress(job.name, job.size)


def _need(job: Copy | Compute) -> int:
    """Bytes of working memory."""
    if isinstance(job, Copy):
        return job.size
    elements = job.size // max(1, job.target.dtype.itemsize)
    return elements * (8 * _MARGIN // 2 + job.source.dtype.itemsize)


@final
@dataclass
class _Hand:
    """What every thread does."""

    source: int
    target: int
    merge: Merge
    written: Written | None
    buffers: local = field(default_factory=local)

    def do(self, job: Copy | Compute) -> None:
        if isinstance(job, Copy):
            data = self._read(job.source, job.size)
            self._write(job.target, data)
            return
        first = job.rows[0]
        count = job.rows[1] - first
        data = self._read(job.source.start + first * job.source.row_bytes, count * job.source.row_bytes)
        shape = (count, *job.source.shape[1:]) if job.source.shape else ()
        rows = torch.frombuffer(data, dtype=job.source.dtype).reshape(shape) if len(data) else torch.empty(shape)
        result = self.merge(job, rows).contiguous()
        assert result.dtype == job.target.dtype and tuple(result.shape) == shape, (job.name, result.dtype)
        if result.numel():
            raw = memoryview(result.reshape(-1).view(torch.uint8).numpy().data)
            self._write(job.target.start + first * job.target.row_bytes, raw)

    def _read(self, position: int, size: int) -> memoryview:
        """Bytes of the source, in this thread's buffer: valid until the next call."""
        buffer: bytearray = getattr(self.buffers, "bytes", bytearray())
        if len(buffer) < size:
            buffer = bytearray(size)
            self.buffers.bytes = buffer
        view = memoryview(buffer)[:size]
        done = 0
        while done < size:
            count = os.preadv(self.source, [view[done:]], position + done)
            if count == 0:
                raise BadFile("the checkpoint became shorter while it was read")
            done += count
        return view

    def _write(self, position: int, data: memoryview) -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(self.target, data[done:], position + done)
        if self.written is not None:
            self.written.checksums[position] = (len(data), zlib.crc32(data))


def read_back(path: Path, written: Written) -> None:
    """Compare a file with what was written to it. Raises BadFile where it differs."""
    with path.open("rb") as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # from the disk, not from the cache
        for position, (size, checksum) in sorted(written.checksums.items()):
            file.seek(position)
            if zlib.crc32(file.read(size)) != checksum:
                raise BadFile(f"{path}: what was read back at byte {position} is not what was written: the disk errs")
