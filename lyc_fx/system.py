"""What systems do each in their own way. Windows has no calls by position, no fcntl, and opens no folders."""

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
"""What a system or a file system says of a call that it does not know"""
_TAKEN = "another process is at work there"
_BEHIND = 1 << 30


@final
class PositionFile(FileIO):
    """A file that is there already, read or written by position from any thread. Close it."""

    def __init__(self, path: str | os.PathLike[str], mode: str, flags: int = 0) -> None:
        super().__init__(path, mode, opener=lambda name, usual: os.open(name, usual | flags))
        self._moving = Lock()

    def read_at(self, position: int, into: memoryview) -> int:
        """Read at most as much as there is room for. Returns the bytes read, 0 at the end. Raises OSError."""
        if hasattr(os, "preadv"):
            return os.preadv(self.fileno(), [into], position)
        with self._moving:
            self.seek(position)
            return self.readinto(into) or 0

    def write_at(self, position: int, data: memoryview) -> int:
        """Write some of the data. Returns how many bytes. Raises OSError."""
        if hasattr(os, "pwrite"):
            return os.pwrite(self.fileno(), data, position)
        with self._moving:
            self.seek(position)
            return self.write(data) or 0


def reserve(file: int, size: int) -> None:
    """Make an open file so long, with its space taken where that can be done. Raises OSError where the disk is full."""
    if hasattr(os, "posix_fallocate") and size:
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
    os.ftruncate(file, size)


def prefetch(file: int, position: int, size: int) -> None:
    """Ask for some bytes of an open file. Returns before they are there, unless the disk has enough to do."""
    if hasattr(os, "posix_fadvise"):  # macOS has none either
        with suppress(OSError):  # a file system that cannot
            os.posix_fadvise(file, position, size, os.POSIX_FADV_WILLNEED)


def drop_from_cache(file: int) -> None:
    """Drop an open file from the page cache, so that it is read from the disk."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def sync(file: int) -> None:
    """Wait until the bytes of an open file are on the disk. Raises OSError."""
    getattr(os, "fdatasync", os.fsync)(file)  # macOS has no fdatasync either


def sync_path(path: Path) -> None:
    """Wait until a file is on the disk, or a folder's list of names where folders can be opened. Raises OSError."""
    folder = path.is_dir()
    try:
        handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)  # Windows syncs only what may be written
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
    """Hold a file that is there against other processes. Raises BlockingIOError, which says so, where one has it."""
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
    """Windows' way, where nobody else may read what is locked: hence a byte behind all that is read."""
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
    """By a file that only one process can create."""
    lock = path.with_name(f"{path.name}.lock")
    try:
        os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError as error:
        raise BlockingIOError(errno.EAGAIN, f"{_TAKEN}, or was killed: then remove {lock}") from error
    try:
        yield
    finally:
        lock.unlink()
