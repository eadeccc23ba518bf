"""lyc_fx.compile(cache=…): what is compiled once is found by others, for other values; bad files do no harm."""

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from compiled import FORMS, Net, X, ran
from torch import Tensor

import lyc_fx
from lyc_fx.caching import cache_file
from lyc_fx.caching.cache_file import CacheNotUsed

ROOT = Path(__file__).parents[1]


def same(values: Tensor) -> Tensor:
    """Between the layers; so that there are matrix products alone, which take no compiler of C++."""
    return values


def right(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_another_process_with_other_weights_and_adapters_compiles_nothing(tmp_path: Path) -> None:
    """Kernels come as machine code; adapters and base have other values, and the adapters another rank."""
    cache = tmp_path / "model.compiled"
    settings = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "OMP_NUM_THREADS": "1"}
    settings |= {"TORCHINDUCTOR_VEC_ISA_OK": "1"}

    def process(seed: int) -> list[str]:
        """Other tests may have left settings of inductor's in this one, which are part of the keys."""
        done = subprocess.run(
            [sys.executable, str(ROOT / "tests" / "compiled.py"), str(cache), *FORMS],
            env=os.environ | settings | {"SEED": str(seed), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / f"empty{seed}")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    for line in process(0):
        row = json.loads(line)
        assert (row["hit"], row["miss"]) == (0, 1)
    with zipfile.ZipFile(cache) as archive:
        assert any(name.endswith(".main.so") for name in archive.namelist())
    second = process(1)
    for line in second:
        row = json.loads(line)
        assert (row["hit"], row["miss"]) == (1, 0)
        assert row["difference"] < 1e-5 < row["size"]
    assert len(second) == len(FORMS)
    assert not list((tmp_path / "empty1").rglob("*.so"))


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    return data[:-200] + bytes([data[-200] ^ 1]) + data[-199:]


def without_header(data: bytes) -> bytes:
    return data[:23] + b"\n" + data[24:]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of an attached model."""
    cache = tmp_path_factory.mktemp("written") / "model.compiled"
    ran("attached", cache, function=same)
    return cache.read_bytes()


@pytest.mark.parametrize("damage", [cut, flipped, without_header])
def test_a_damaged_file_is_said_and_replaced(damage: Callable[[bytes], bytes], written: bytes, tmp_path: Path) -> None:
    cache = tmp_path / "model.compiled"
    cache.write_bytes(damage(written))
    with pytest.warns(CacheNotUsed, match=r"model\.compiled: is damaged: what is needed is compiled again"):
        found, wanted, counts = ran("attached", cache, function=same)
    right(found, wanted)
    assert counts == {"hit": 0, "miss": 1}
    assert ran("attached", cache, function=same)[2] == {"hit": 1, "miss": 0}


@pytest.mark.parametrize("what", ["torch", "Python", "processor"])
def test_code_from_elsewhere_is_not_run(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, here = tmp_path / "model.compiled", cache_file.origin()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(cache_file, "origin", lambda: here | {what: "other"})
        ran("attached", cache, function=same)
    with pytest.warns(CacheNotUsed, match=f"was written with {what} other .here {re.escape(here[what])}.: what"):
        assert ran("attached", cache, function=same)[2] == {"hit": 0, "miss": 1}
    assert ran("attached", cache, function=same)[2] == {"hit": 1, "miss": 0}


def test_two_models_share_a_file(tmp_path: Path) -> None:
    """Both have read it before either has anything to keep."""
    cache = tmp_path / "model.compiled"
    torch.compiler.reset()
    models = [Net(0, function) for function in (same, _twice)]
    compiled = [lyc_fx.compile(model, cache=cache) for model in models]
    for run in compiled:
        run(X)
    for function in (same, _twice):
        found, wanted, _ = ran("attached", cache, function=function)
        right(found, wanted)


def _twice(values: Tensor) -> Tensor:
    return values @ torch.ones(7, 7)


def test_what_is_no_such_file_is_left_alone(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"precious")
    for path, why in ((weights, "no file of lyc-fx's"), (tmp_path, "no file"), (tmp_path / "a" / "b", "no folder .*a")):
        with pytest.raises(lyc_fx.BadFile, match=why):
            lyc_fx.compile(Net(0, same), cache=path)
    assert weights.read_bytes() == b"precious"
    with pytest.raises(lyc_fx.WrongArgument, match=r"keeps what inductor compiles, and the backend is 'aot_eager'"):
        lyc_fx.compile(Net(0, same), backend="aot_eager", cache=tmp_path / "c")
    with pytest.raises(lyc_fx.WrongArgument, match="the cache is a path, not int"):
        lyc_fx.compile(Net(0, same), cache=3)  # type: ignore[arg-type]


def test_what_cannot_be_kept_runs(tmp_path: Path) -> None:
    torch.compiler.reset()
    folder, model = tmp_path / "gone", Net(0, same)
    folder.mkdir()
    wanted = model(X)
    compiled = lyc_fx.compile(model, cache=folder / "c")
    folder.rmdir()
    with pytest.warns(CacheNotUsed, match="compiled code is not kept: .*cannot be written"):
        right(compiled(X), wanted)


def test_the_caches_of_others_stay_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "own"))
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    ran("attached", tmp_path / "c", function=same)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "own")
    assert "TRITON_CACHE_DIR" not in os.environ
    assert not (tmp_path / "own").exists() or not list((tmp_path / "own").rglob("fxgraph"))
