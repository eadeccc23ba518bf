"""Whatever goes wrong: one clear message, an exit code, no traceback, no output, inputs as they were."""

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import lyc_fx.checkpoint.fold

Spoil = Callable[..., list[object]]
"""Prepares what is wrong, and gives the arguments of `lyc-fx`"""


def _fold(base: object, adapter: object, out: object, *more: object) -> list[object]:
    return ["fold", base, adapter, "-o", out, *more]


def _changed(files, key: str, value: torch.Tensor | None) -> Path:
    """The LoCon adapter with one tensor replaced, or left out."""
    tensors = load_file(files.locon)
    tensors.pop(key)
    path = files.folder / "changed.safetensors"
    save_file(tensors if value is None else tensors | {key: value}, path)
    return path


def _renamed(files, old: str, new: str) -> Path:
    path = files.folder / "renamed.safetensors"
    save_file({key.replace(old, new): value for key, value in load_file(files.locon).items()}, path)
    return path


def _written(files, name: str, content: bytes) -> Path:
    path = files.folder / name
    path.write_bytes(content)
    return path


def _pickled(files) -> Path:
    path = files.folder / "adapter.pt"
    torch.save(load_file(files.locon), path)
    return path


def _of_dtype(files, dtype: str, size: int) -> Path:
    """A safetensors file with a tensor of 8×4 numbers in a dtype that torch does not have."""
    layout = {
        "fc.weight": {"dtype": "F32", "shape": [6, 4], "data_offsets": [0, 96]},
        "x": {"dtype": dtype, "shape": [8, 4], "data_offsets": [96, 96 + size]},
    }
    header = json.dumps(layout).encode()
    return _written(files, "odd.st", len(header).to_bytes(8, "little") + header + bytes(96 + size))


def _linked(files) -> Path:
    path = files.folder / "link.safetensors"
    path.symlink_to(files.base)
    return path


_UP = "lycoris_fc.lora_up.weight"
_NAN = torch.full((6, 2), float("nan"))


def _empty(files) -> Path:  # type: ignore[no-untyped-def]
    (files.folder / "empty").mkdir(exist_ok=True)
    return files.folder / "empty"


CASES: dict[str, tuple[Spoil, int, list[str]]] = {
    "no such base": (lambda f: _fold(f.folder / "nope.st", f.locon, f.out), 1, ["nope.st: there is no such file"]),
    "no such adapter": (lambda f: _fold(f.base, f.folder / "nope.st", f.out), 1, ["nope.st: there is no such file"]),
    "base is an empty directory": (
        lambda f: _fold(_empty(f), f.locon, f.out),
        1,
        ["empty: this folder contains no .safetensors file"],
    ),
    "output is a directory": (lambda f: _fold(f.base, f.locon, f.folder), 1, ["is a directory; name the output file"]),
    "output in no directory": (
        lambda f: _fold(f.base, f.locon, f.folder / "no" / "out.safetensors"),
        1,
        ["cannot be written", "No such file or directory"],
    ),
    "pickle": (lambda f: _fold(f.base, _pickled(f), f.out), 1, ["adapter.pt: is a pickle", "weights_only=True"]),
    "truncated adapter": (
        lambda f: _fold(f.base, _written(f, "cut.st", f.locon.read_bytes()[:-5]), f.out),
        1,
        ["cut.st: not a whole safetensors file"],
    ),
    "truncated base": (
        lambda f: _fold(_written(f, "cut.st", f.base.read_bytes()[:300]), f.locon, f.out),
        1,
        ["cut.st: not a whole safetensors file (300 bytes"],
    ),
    "empty file": (lambda f: _fold(f.base, _written(f, "e.st", b""), f.out), 1, ["e.st: not a whole safetensors file"]),
    "packed dtype": (
        lambda f: _fold(_of_dtype(f, "F4", 16), f.lokr, f.out),
        1,
        ["x is stored as F4, which lyc-fx cannot copy"],
    ),
    "adapter of a packed dtype": (
        lambda f: _fold(f.base, _of_dtype(f, "F6_E2M3", 24), f.out),
        1,
        ["odd.st: x is stored as F6_E2M3"],
    ),
    "no adapter at all": (lambda f: _fold(f.base, f.base, f.out), 1, ["none of its keys (4) is of a known adapter"]),
    "unmatched key": (
        lambda f: _fold(f.base, _renamed(f, "block_0_conv", "block_1_conv"), f.out),
        1,
        ["lycoris_block_1_conv: no such weight", "nearest: block.0.conv.weight", "--no-strict"],
    ),
    "unmatched keys of another model": (
        lambda f: _fold(f.base, _renamed(f, "lycoris_fc", "lora_te1_fc2"), f.out),
        1,
        ["lora_te1_*, such as lora_te1_fc2", '--exclude "lora_te1_*"'],
    ),
    "adapter for another model": (
        lambda f: _fold(f.base, _renamed(f, "lycoris_", "lycoris_x_"), f.out),
        1,
        ["lycoris_x_fc", "lycoris_x_block_0_conv", "None of the names is the model's"],
    ),
    "wrong shape": (
        lambda f: _fold(f.base, _changed(f, _UP, torch.zeros(7, 2)), f.out),
        1,
        ["lycoris_fc: does not fit fc.weight (6, 4)", "(7, 2)", "(6, 2)"],
    ),
    "missing factor": (lambda f: _fold(f.base, _changed(f, _UP, None), f.out), 1, ["without lora_up.weight"]),
    "nan": (lambda f: _fold(f.base, _changed(f, _UP, _NAN), f.out), 1, ["lora_up.weight holds 12 values"]),
    "infinite alpha": (
        lambda f: _fold(f.base, _changed(f, "lycoris_fc.alpha", torch.tensor(float("inf"))), f.out),
        1,
        ["lycoris_fc: alpha is inf"],
    ),
    "output is the base": (lambda f: _fold(f.base, f.locon, f.base), 1, ["is an input as well as the output"]),
    "output is the base by a link": (
        lambda f: _fold(f.base, f.locon, _linked(f)),
        1,
        ["link.safetensors: is a link to ", "give that path instead"],
    ),
    "output is an adapter": (lambda f: _fold(f.base, f.locon, f.locon), 1, ["is an input as well as the output"]),
    "strength is no number": (lambda f: _fold(f.base, f"{f.locon}@0,5", f.out), 2, ["the strength '0,5' is not a"]),
    "strength is empty": (lambda f: _fold(f.base, f"{f.locon}@", f.out), 2, ["the strength '' is not a number"]),
    "strength is not finite": (lambda f: _fold(f.base, f"{f.locon}@nan", f.out), 1, ["strength nan is not finite"]),
    "overall strength": (
        lambda f: _fold(f.base, f.locon, f.out, "--strength", "much"),
        2,
        ["Invalid value for '--strength'"],
    ),
    "pattern without a match": (
        lambda f: _fold(f.base, f.locon, f.out, "--exclude", "lora_te_*"),
        1,
        ["no module matches 'lora_te_*'", "lycoris_"],
    ),
    "transposed without a match": (
        lambda f: _fold(f.base, f.locon, f.out, "--transposed", "h.*.weight"),
        1,
        ["transposed: no weight matches 'h.*.weight'"],
    ),
    "nothing left": (lambda f: _fold(f.base, f.locon, f.out, "--exclude", "*"), 1, ["leave no adapter"]),
    "no adapter named": (lambda f: ["fold", f.base, "-o", f.out], 2, ["ADAPTER"]),
    "no output named": (lambda f: ["fold", f.base, f.locon], 2, ["--out"]),
    "unknown option": (lambda f: _fold(f.base, f.locon, f.out, "--fast"), 2, ["--fast"]),
    "inspect nothing": (lambda f: ["inspect", f.folder / "nope.st"], 1, ["nope.st: there is no such file"]),
    "inspect a pickle": (lambda f: ["inspect", _pickled(f)], 1, ["is a pickle"]),
}


@pytest.mark.parametrize("name", CASES)
def test_errors(files, lyc, name: str) -> None:
    spoil, code, words = CASES[name]
    arguments = spoil(files)
    before = files.held()
    said = lyc(*arguments)
    assert said.code == code
    assert said.out == ""
    assert said.err.startswith("error: " if code == 1 else "Usage: lyc-fx fold")
    for word in words:
        assert word in said.err
    assert files.held() == before


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "out.safetensors: No space left on device; nothing was"),
        (OSError(errno.EIO, os.strerror(errno.EIO)), "out.safetensors: cannot be written: Input/output error"),
        (MemoryError(), "there is not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), "there is not enough memory"),
        (KeyboardInterrupt(), "interrupted"),
    ],
    ids=["full disk", "broken disk", "memory", "torch's memory", "Ctrl-C"],
)
def test_failures_while_writing(files, lyc, monkeypatch, error: BaseException, message: str) -> None:
    original = lyc_fx.checkpoint.fold.run_jobs

    def failing(*arguments, **options):
        original(*arguments, **options)
        raise error

    monkeypatch.setattr(lyc_fx.checkpoint.fold, "run_jobs", failing)
    files.out.write_bytes(b"an older file")
    before = files.held()
    said = lyc("fold", files.base, files.locon, "-o", files.out, "--force")
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("error: ")
    assert message in said.err
    assert files.held() == before


def test_a_file_system_that_takes_no_more_bytes(files) -> None:
    before = files.held()
    result = subprocess.run(
        [sys.executable, "-m", "lyc_fx", "fold", files.base, files.locon, "-o", files.out],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200)),
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"error: {files.out}: File too large; nothing was written\n"
    assert files.held() == before
