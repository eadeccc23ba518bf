"""The output file: filled by several threads in any order, every byte once, in bounded memory, past the page cache."""

import errno
import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lyc_fx.checkpoint import sink
from lyc_fx.checkpoint.direct import DirectFile
from lyc_fx.checkpoint.sink import Sink

CHUNK = 4096
SIZE = 20 * CHUNK + 123


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink, "CHUNK", CHUNK)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "out"
    path.write_bytes(bytes(SIZE))
    return path


def pieces(size: int, largest: int) -> Iterator[tuple[int, int]]:
    draw, start = random.Random(0), 0
    while start < size:
        stop = min(size, start + draw.randint(1, largest))
        yield start, stop
        start = stop


def content() -> bytes:
    return random.Random(1).randbytes(SIZE)


def fill(out: Sink, data: bytes, parts: list[memoryview], start: int, stop: int) -> None:
    for part in parts:
        part[:] = data[start : start + len(part)]
        start += len(part)
    assert start == stop
    out.commit(stop - sum(map(len, parts)), stop)


@pytest.mark.parametrize("largest", [100, 5000, 9 * CHUNK])
@pytest.mark.parametrize("memory", [0, 6 * CHUNK])
def test_every_byte_where_it_belongs(target: Path, largest: int, memory: int) -> None:
    data = content()
    with Sink(target, SIZE, memory, checksums=True) as out, ThreadPoolExecutor(4) as pool:
        done = []
        for start, stop in pieces(SIZE, largest):
            out.write(start, b"")  # nothing, which is no chunk
            done.append(pool.submit(fill, out, data, out.allocate(start, stop), start, stop))
        for each in done:
            each.result()
    assert target.read_bytes() == data
    assert out.checksums is not None and sum(size for size, _ in out.checksums.values()) == SIZE


def test_put(target: Path) -> None:
    data = content()
    with Sink(target, SIZE, 0, checksums=False) as out:
        for start, stop in pieces(SIZE, 5000):
            out.write(start, data[start:stop])
    assert target.read_bytes() == data and out.checksums is None


def test_no_more_memory_than_allowed(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is slow: whoever asks for room waits."""
    made, write = [], DirectFile.write
    anonymous = sink.mmap.mmap
    monkeypatch.setattr(sink.mmap, "mmap", lambda *args: made.append(args) or anonymous(*args))
    gate = threading.Semaphore(0)

    def slow(self: DirectFile, position: int, data: memoryview) -> None:
        gate.acquire()
        write(self, position, data)

    monkeypatch.setattr(DirectFile, "write", slow)
    data = content()
    with Sink(target, SIZE, 4 * CHUNK, checksums=False) as out:
        threading.Thread(target=lambda: [gate.release() for _ in range(21)]).start()
        for start, stop in pieces(SIZE, 1000):
            out.write(start, data[start:stop])
    assert target.read_bytes() == data
    assert 1 <= len(made) <= 4


def test_the_page_cache_is_passed_by_where_the_system_can(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[bool, int]] = []
    original = os.pwrite

    def seen(file: int, data: memoryview, position: int) -> int:
        import fcntl

        written.append((bool(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT), len(data)))
        return original(file, data, position)

    monkeypatch.setattr(os, "pwrite", seen)
    try:
        os.close(os.open(target, os.O_WRONLY | os.O_DIRECT))
    except (OSError, AttributeError):
        pytest.skip("this file system has no O_DIRECT")
    with Sink(target, SIZE, 0, checksums=False) as out:
        out.write(0, content())
    assert sorted(written) == [(False, 123), *[(True, CHUNK)] * 20]


@pytest.mark.parametrize("how", ["no flag", "not opened", "not written"])
def test_without_it_all_the_same(target: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(os, "O_DIRECT"):
        pytest.skip("this system has no O_DIRECT")
    refused, flag = OSError(errno.EINVAL, "Invalid argument"), os.O_DIRECT
    opened, pwrite, files = os.open, os.pwrite, {}

    def opening(path: Path, flags: int) -> int:
        assert not (flags & flag and how == "no flag")
        if flags & flag and how == "not opened":
            raise refused
        file = opened(path, flags)
        files[file] = flags
        return file

    def writing(file: int, data: memoryview, position: int) -> int:
        if how == "not written" and files[file] & flag:
            raise refused
        return pwrite(file, data, position)

    monkeypatch.setattr(os, "open", opening)
    monkeypatch.setattr(os, "pwrite", writing)
    if how == "no flag":
        monkeypatch.delattr(os, "O_DIRECT")
    with Sink(target, SIZE, 0, checksums=False) as out:
        out.write(0, content())
    assert target.read_bytes() == content()


def test_an_error_of_the_disk_is_raised(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"), Sink(target, SIZE, 0, checksums=False) as out:
        for start, stop in pieces(SIZE, 1000):
            out.write(start, bytes(stop - start))


def test_who_waits_learns_of_a_failure(target: Path) -> None:
    """A chunk that nobody will fill: without `fail`, the fourth would be waited for for ever."""
    with pytest.raises(ValueError, match="spoilt"), Sink(target, SIZE, 0, checksums=False) as out:
        out.allocate(0, 2 * CHUNK + 1)
        threading.Timer(0.05, out.fail, [ValueError("spoilt")]).start()
        out.allocate(2 * CHUNK + 1, 4 * CHUNK)
