"""The base is asked for before it is read: every byte once, from the first to the last, and never far ahead."""

import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import lyc_fx
from lyc_fx.checkpoint import ahead, workers

needs_advice = pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system takes no advice")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    monkeypatch.setattr(workers, "WINDOW", 3 << 12)
    monkeypatch.setattr(ahead, "_STEP", 1 << 12)
    found: list[tuple[int, int]] = []

    def advise(file: int, start: int, size: int, advice: int) -> None:
        os.fstat(file)  # it is open
        if advice == os.POSIX_FADV_WILLNEED:
            found.append((start, start + size))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    return found


def files(folder: Path) -> tuple[Path, Path]:
    torch.manual_seed(0)
    save_file({f"l{i}.weight": torch.randn(60, 50) for i in range(9)}, folder / "base.safetensors")
    factors = {f"l{i}.lora_up.weight": torch.randn(60, 2) for i in range(1, 9, 2)}
    factors |= {f"l{i}.lora_down.weight": torch.randn(2, 50) for i in range(1, 9, 2)}
    save_file(factors, folder / "adapter.safetensors")
    return folder / "base.safetensors", folder / "adapter.safetensors"


@needs_advice
def test_a_fold_asks_for_every_byte_before_it_reads(
    asked: list[tuple[int, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter = files(tmp_path)
    reads, read = [], os.preadv

    def noted(file: int, into: list[memoryview], position: int) -> int:
        reads.append((position, position + len(into[0])))
        assert (position + (3 << 12), position + (3 << 12) + len(into[0])) in asked
        return read(file, into, position)

    monkeypatch.setattr(os, "preadv", noted)
    lyc_fx.fold_checkpoint(base, adapter, tmp_path / "out.safetensors")
    assert len(reads) >= 9
    wanted, deadline = set(range(min(reads)[0], base.stat().st_size)), time.monotonic() + 20
    while not wanted <= {byte for start, stop in asked for byte in range(start, stop)}:
        assert time.monotonic() < deadline, "the first ones by a thread of its own, which may be late"
        time.sleep(0.001)


@needs_advice
def test_the_command_line_asks_while_torch_is_loaded(asked: list[tuple[int, int]], tmp_path: Path) -> None:
    base, _ = files(tmp_path)
    size = base.stat().st_size
    for path, most, wanted in ((base, 1 << 30, size), (base, 1 << 13, 1 << 13), (tmp_path, 1 << 30, None)):
        asked.clear()
        ahead.read_ahead(path, most)
        deadline = time.monotonic() + 20
        expected = (
            sum(-(-f.stat().st_size // (1 << 12)) for f in tmp_path.iterdir())
            if wanted is None
            else (-(-wanted // (1 << 12)))
        )
        while len(asked) < expected and time.monotonic() < deadline:
            time.sleep(0.001)
        assert len(asked) == expected
    asked.clear()
    ahead.read_ahead(tmp_path / "none.safetensors")  # whoever opens it says so


def test_without_such_a_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapter = files(tmp_path)
    lyc_fx.fold_checkpoint(base, adapter, tmp_path / "with.safetensors")
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    ahead._read_ahead(base, 1 << 30)
    lyc_fx.fold_checkpoint(base, adapter, tmp_path / "without.safetensors")
    first, second = (load_file(tmp_path / name) for name in ("with.safetensors", "without.safetensors"))
    assert all(torch.equal(first[name], second[name]) for name in first)
