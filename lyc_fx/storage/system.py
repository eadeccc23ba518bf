"""File operations that differ between systems. Windows has no positional reads and writes, no fcntl, and cannot open
folders."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import final

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]
try:
    import msvcrt
except ImportError:
    msvcrt = None  # type: ignore[assignment]

_CANNOT = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
"""The errors for a call that the system or the file system does not support"""
_TAKEN = "another process is at work there"
_BEHIND = 1 << 30
"""The position of the byte that is locked on Windows: beyond the end of every file that is locked"""


@final
class PositionFile(FileIO):
    """An existing file, read or written by position from any thread. The caller must close it."""

    def __init__(self, path: str | os.PathLike[str], mode: str, flags: int = 0) -> None:
        super().__init__(path, mode, opener=lambda name, usual: os.open(name, usual | flags))
        self._moving = Lock()

    def read_at(self, position: int, into: memoryview) -> int:
        """Read up to `len(into)` bytes. Returns how many were read, 0 at the end of the file. Raises OSError."""
        if hasattr(os, "preadv"):
            return os.preadv(self.fileno(), [into], position)
        with self._moving:
            self.seek(position)
            return self.readinto(into) or 0

    def write_at(self, position: int, data: memoryview) -> int:
        """Write some or all of the data. Returns how many bytes were written. Raises OSError."""
        if hasattr(os, "pwrite"):
            return os.pwrite(self.fileno(), data, position)
        with self._moving:
            self.seek(position)
            return self.write(data) or 0


def reserve(file: int, size: int) -> None:
    """Set the size of an open file, and allocate its space where that is supported. Raises OSError for a full disk."""
    if hasattr(os, "posix_fallocate") and size:
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
    os.ftruncate(file, size)


def prefetch(file: int, position: int, size: int) -> None:
    """Ask the system to read some bytes of an open file into the page cache. Does not wait, unless the disk is busy."""
    if hasattr(os, "posix_fadvise"):  # macOS has none either
        with suppress(OSError):  # not supported by every file system
            os.posix_fadvise(file, position, size, os.POSIX_FADV_WILLNEED)


def drop_from_cache(file: int) -> None:
    """Drop an open file from the page cache, so that the next read comes from the disk."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def sync(file: int) -> None:
    """Wait until the bytes of an open file are on the disk. Raises OSError."""
    getattr(os, "fdatasync", os.fsync)(file)  # macOS has no fdatasync either


def sync_path(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk. Raises OSError.

    Does nothing for a folder on a system that cannot open folders.
    """
    folder = path.is_dir()
    try:
        handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)  # Windows syncs only files open for writing
    except PermissionError:
        if folder:
            return
        handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not folder or error.errno not in _CANNOT:
            raise
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock an existing file against other processes. Raises BlockingIOError if another process has the lock."""
    with path.open("r+b", buffering=0) as file:
        lock = _flock if fcntl else _locking if msvcrt else _named
        with lock(file.fileno(), path):
            yield


@contextmanager
def _flock(file: int, _: Path) -> Iterator[None]:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BlockingIOError(error.errno, _TAKEN) from error
    yield  # the lock ends with the file


@contextmanager
def _locking(file: int, _: Path) -> Iterator[None]:
    """Lock a byte on Windows. No other process can read a locked byte, so this is one beyond the end of the file."""
    os.lseek(file, _BEHIND, os.SEEK_SET)
    try:
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]  # for mypy on other systems
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EDEADLK):
            raise
        raise BlockingIOError(error.errno, _TAKEN) from error
    try:
        yield
    finally:
        os.lseek(file, _BEHIND, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_UNLCK, 1)  # type: ignore[attr-defined]


@contextmanager
def _named(_: int, path: Path) -> Iterator[None]:
    """Lock by a file beside it that only one process can create."""
    lock = path.with_name(f"{path.name}.lock")
    try:
        os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError as error:
        raise BlockingIOError(errno.EAGAIN, f"{_TAKEN}, or was killed: then remove {lock}") from error
    try:
        yield
    finally:
        lock.unlink()
