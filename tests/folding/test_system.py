"""Systems without calls by position, fcntl and handles of folders: the same bytes, the same care."""

import errno
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import torch
import windows
from safetensors.torch import save_file

import lyc_fx
from lyc_fx.errors import BadFile
from lyc_fx.storage import system


@pytest.fixture
def given(tmp_path: Path) -> Path:
    draw = torch.Generator().manual_seed(0)
    weights = {"0.weight": torch.randn(15, 6, generator=draw), "1.weight": torch.randn(4, 15, generator=draw)}
    factors = {}
    for name, weight in weights.items():
        key = f"lycoris_{name[0]}"
        factors[f"{key}.lora_up.weight"] = torch.randn(weight.shape[0], 2, generator=draw)
        factors[f"{key}.lora_down.weight"] = torch.randn(2, weight.shape[1], generator=draw)
        factors[f"{key}.alpha"] = torch.tensor(1.0)
    model = tmp_path / "given" / "model"
    model.mkdir(parents=True)
    save_file(weights, tmp_path / "given" / "one.safetensors")
    save_file(factors, tmp_path / "given" / "adapter.safetensors")
    for number, name in enumerate(weights):
        save_file({name: weights[name]}, model / f"part-{number}.safetensors")
    index = {name: f"part-{number}.safetensors" for number, name in enumerate(weights)}
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    config = {"torch_dtype": "float32", "id2label": {"0": "naïve"}}
    (model / "config.json").write_text(json.dumps(config, ensure_ascii=False), "utf-8")
    return tmp_path / "given"


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="what is open is found in /proc")
def test_windows_by_imitation(given: Path, tmp_path: Path) -> None:
    """Also in a locale that is not UTF-8."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    windows.work(given, here)
    lyc_fx.fold_checkpoint(given / "model", given / "adapter.safetensors", here / "line")
    environment = os.environ | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, windows.__file__, given, there],
        capture_output=True,
        text=True,
        check=False,
        env=environment | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    assert files(there) == files(here)
    assert "naïve" in files(here)["model/config.json"].decode()


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("known", [True, False])
def test_by_position_from_any_thread(tmp_path: Path, known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in () if known else ("preadv", "pwrite"):
        monkeypatch.delattr(os, name, raising=False)
    data, path, size = Random(0).randbytes(1 << 20), tmp_path / "file", 1 << 10
    path.touch()
    read = bytearray(len(data))
    places = Random(1).sample(range(0, len(data), size), len(data) // size)
    with system.PositionFile(path, "r+b") as file, ThreadPoolExecutor(8) as pool:
        written = pool.map(lambda at: file.write_at(at, memoryview(data)[at : at + size]), places)
        assert set(written) == {size}
        assert set(pool.map(lambda at: file.read_at(at, memoryview(read)[at : at + size]), places)) == {size}
        assert file.read_at(len(data), memoryview(read)) == 0
    assert path.read_bytes() == data == bytes(read)


def test_space_that_cannot_be_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(number: int) -> None:
        def call(*_: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "posix_fallocate", call, raising=False)

    with (tmp_path / "file").open("w+b") as file:
        fails(errno.EOPNOTSUPP)
        system.reserve(file.fileno(), 1000)
        assert os.fstat(file.fileno()).st_size == 1000
        fails(errno.ENOSPC)
        with pytest.raises(OSError, match="No space left"):
            system.reserve(file.fileno(), 2000)


def test_a_folder_that_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(number: int) -> None:
        def call(_: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", call)

    fails(errno.EINVAL)
    system.sync_path(tmp_path)
    (tmp_path / "file").touch()
    for path, number in ((tmp_path, errno.EIO), (tmp_path / "file", errno.EINVAL)):
        fails(number)
        with pytest.raises(OSError):
            system.sync_path(path)


class Msvcrt(SimpleNamespace):
    """Locks of Windows: of bytes at the file's position, refused as Windows refuses them."""

    LK_NBLCK, LK_UNLCK = 2, 0

    def __init__(self) -> None:
        self.taken: set[tuple[int, int]] = set()

    def locking(self, file: int, mode: int, size: int) -> None:
        about, position = os.fstat(file), os.lseek(file, 0, os.SEEK_CUR)
        assert size == 1 and position > about.st_size, "else nobody else could read it"
        place = about.st_ino, position
        if mode == self.LK_UNLCK:
            self.taken.remove(place)
        elif place in self.taken:
            raise PermissionError(errno.EACCES, "Permission denied")
        else:
            self.taken.add(place)


@pytest.fixture(params=["fcntl", "msvcrt", "a file"])
def locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "fcntl":
        pytest.importorskip("fcntl")
    else:
        monkeypatch.setattr(system, "fcntl", None)
        monkeypatch.setattr(system, "msvcrt", Msvcrt() if request.param == "msvcrt" else None)
    return request.param


def test_a_lock(locks: str, tmp_path: Path) -> None:
    path = tmp_path / "mark"
    path.write_text("what it says")
    for _ in range(2):
        with system.locked(path):
            with pytest.raises(BlockingIOError, match="another process is at work there"), system.locked(path):
                pass
            assert path.read_text() == "what it says"
    with pytest.raises(ValueError), system.locked(path):
        raise ValueError
    with system.locked(path):
        pass
    assert os.listdir(tmp_path) == ["mark"]


def test_who_resumes_is_alone(locks: str, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second fold of the same begins while the first one writes."""
    again, refused = [True], []

    def progress(*_: object) -> None:
        if again.pop() if again else False:
            with pytest.raises(BadFile, match=r"\.out\.resume: another process is at work there") as error:
                fold()
            refused.append(str(error.value))

    def fold() -> None:
        lyc_fx.fold_checkpoint(
            given / "model", given / "adapter.safetensors", tmp_path / "out", resume=True, progress=progress
        )

    fold()
    assert refused and ("or was killed: then remove" in refused[0]) == (locks == "a file")
    assert not any(".lock" in name or name.startswith(".") for name in files(tmp_path / "out"))
