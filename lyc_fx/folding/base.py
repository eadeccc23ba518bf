"""The base of a fold: one file, the shards of a model, or a pipeline's folder, with the names that its weights have."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from lyc_fx.errors import BadFile
from lyc_fx.files import path_of
from lyc_fx.fitting import Weight
from lyc_fx.folding.header import Layout, Stored, read
from lyc_fx.folding.normed import with_normed
from lyc_fx.folding.scaled import with_scales

_INDEX = ".safetensors.index.json"
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5", ".onnx", ".gguf"}
"""Other copies of the weights, which would be without the adapters"""


@final
@dataclass(frozen=True)
class Part:
    """One safetensors file."""

    path: Path
    inside: Path
    """Its path in the output folder"""
    prefix: str
    """What stands before its tensors' names: a pipeline's component, `unet.`"""
    layout: Layout
    metadata: Mapping[str, str]


@final
@dataclass(frozen=True)
class Base:
    """All files of a base."""

    root: Path
    parts: tuple[Part, ...]
    carried: tuple[Path, ...] = ()
    """Other files of a folder, relative to it: configurations, tokenizers, indices"""
    left: tuple[Path, ...] = ()
    """Files that are left out: weights in other formats"""

    @property
    def folder(self) -> bool:
        """Whether the output is a folder."""
        return os.path.isdir(self.root)

    @property
    def bytes(self) -> int:
        return sum(part.layout.bytes for part in self.parts)

    def weights(self) -> dict[str, Weight]:
        """Every tensor by its full name, and every weight that is computed from some.

        Raises BadFile where two files have the same one.
        """
        found: dict[str, Weight] = {}
        homes: dict[str, Path] = {}
        for part in self.parts:
            for tensor in part.layout.tensors:
                name = part.prefix + tensor.name
                if name in found:
                    raise BadFile(
                        f"{part.path}: {name} is also in {homes[name]}: remove one of the two, or name a file"
                    )
                found[name], homes[name] = Weight(tensor.shape, tensor.dtype), part.path
        return with_normed(with_scales(found))

    @cached_property
    def _places(self) -> dict[str, tuple[Path, Stored]]:
        return {part.prefix + tensor.name: (part.path, tensor) for part in self.parts for tensor in part.layout.tensors}

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Some rows of a tensor, by its full name; of a number, which is one row, all."""
        path, stored = self._places[name]
        data = bytearray((stop - start) * stored.row_bytes)
        with path.open("rb") as file:
            file.seek(stored.start + start * stored.row_bytes)
            if file.readinto(data) != len(data):
                raise BadFile(f"{path}: became shorter while it was read")
        return torch.frombuffer(data, dtype=stored.dtype).reshape(
            (stop - start, *stored.shape[1:])[: len(stored.shape)]
        )


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a base is a folder, or an index, which stands for the folder that it lies in."""
    return os.path.isdir(path) or os.fspath(path).endswith(_INDEX)


def based(path: str | os.PathLike[str]) -> Base:
    """A safetensors file; an index of shards, or a folder that has one; a pipeline's folder of such folders.

    Raises BadFile for anything else.
    """
    root = path_of(path, "the base")
    if is_folder(root) and os.path.isfile(root):
        root = root.parent
    if not os.path.isdir(root):  # pathlib raises for a name that is too long
        return Base(root, (_part(root, Path(root.name), ""),))
    files = sorted(each for each in root.rglob("*") if each.is_file() and not _hidden(each.relative_to(root)))
    weights = [each for each in files if each.suffix == ".safetensors"]
    if not weights:
        raise BadFile(f"{root}: no .safetensors file is in this folder")
    parts = []
    for each in weights:
        inside = each.relative_to(root)
        owner = ".".join(inside.parts[:-1])
        parts.append(_part(each, inside, f"{owner}." if owner else ""))
    for index in (each for each in files if each.name.endswith(_INDEX)):
        _check(index)
    others = [each.relative_to(root) for each in files if each not in set(weights)]
    left = tuple(each for each in others if each.suffix in _PICKLES)
    return Base(root, tuple(parts), tuple(each for each in others if each not in set(left)), left)


def _part(path: Path, inside: Path, prefix: str) -> Part:
    layout, metadata = read(path)
    return Part(path, inside, prefix, layout, metadata)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _check(index: Path) -> None:
    """Raise BadFile where an index names a shard that is not there: a download that is not complete."""
    try:
        shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        missing = sorted(name for name in shards if not (index.parent / name).is_file())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadFile(f"{index}: is no index of shards: {error}") from error
    if missing:
        raise BadFile(f"{index}: {len(missing)} of its shards are not there: {', '.join(missing[:3])}")
