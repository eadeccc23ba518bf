"""Forty mistakes that people make on the command line: what is given, and what is said."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Files = Any
Case = tuple[Callable[[Files], list[object]], str]
"""The arguments of `lyc-fx`, and the whole message; `…/` stands for the folder"""


def fold(
    base: object, adapter: object, *more: object, out: str | None = "out.safetensors"
) -> Callable[[Files], list[object]]:
    def arguments(files: Files) -> list[object]:
        given = [each(files) if callable(each) else each for each in (base, adapter, *more)]
        return ["fold", *given, *(["-o", files.folder / out] if out else [])]

    return arguments


def base(files: Files) -> Path:
    return files.base


def locon(files: Files) -> Path:
    return files.locon


def named(name: str, content: bytes) -> Callable[[Files], Path]:
    def path(files: Files) -> Path:
        (files.folder / name).write_bytes(content)
        return files.folder / name

    return path


def stored(name: str, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Callable[[Files], Path]:
    def path(files: Files) -> Path:
        save_file(tensors, files.folder / name, metadata)
        return files.folder / name

    return path


def text(content: str) -> Callable[[Files], str]:
    """With the folder's paths in the place of `…/`."""
    return lambda files: content.replace("…/", f"{files.folder}/")


def changed(**tensors: Tensor | None) -> Callable[[Files], Path]:
    """The LoCon adapter with tensors replaced, or left out; `__` is a dot."""

    def path(files: Files) -> Path:
        found = load_file(files.locon)
        for key, value in tensors.items():
            found.pop(key.replace("__", "."), None)
            found |= {} if value is None else {key.replace("__", "."): value}
        save_file(found, files.folder / "changed.safetensors")
        return files.folder / "changed.safetensors"

    return path


def factors(module: str, height: int = 6, width: int = 4) -> dict[str, Tensor]:
    return {f"{module}.lora_up.weight": torch.ones(height, 2), f"{module}.lora_down.weight": torch.ones(2, width)}


def quantized(*names: str) -> dict[str, Tensor]:
    return {name: torch.zeros(2, dtype=torch.int32) for name in names}


PAGE = b"<!DOCTYPE html><html><head><title>Log in</title></head></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
GGUF = b"GGUF" + struct.pack("<IQQ", 3, 0, 0)
JSON = json.dumps({"r": 4}).encode()
AGAIN = (
    "fold into the checkpoint from before quantization, and quantize the result again, or keep the adapter beside the "
    "model"
)
GONE = "so it does not hold the weights that adapters are for"
