"""The base checkpoint of a fold: one safetensors file, a model's folder of shards, or a pipeline's folder."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from lyc_fx.binding.fitting import Weight
from lyc_fx.checkpoint.scaled import with_scales
from lyc_fx.checkpoint.weight_norm import with_weight_norm
from lyc_fx.errors import BadFile
from lyc_fx.storage.files import path_of
from lyc_fx.storage.header import Layout, Stored, read_layout

_INDEX = ".safetensors.index.json"
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5", ".onnx", ".gguf"}
"""Weights in other formats: they are not copied, since they would lack the adapters"""

PROGRAMS = (".pt2", ".onnx")


@final
@dataclass(frozen=True)
class Part:
    """One safetensors file of the base."""

    path: Path
    inside: Path
    """Its path relative to the base folder, which is also its path in the output folder"""
    prefix: str
    """Prefix of its tensors' full names: a pipeline's component, such as `unet.`; else empty"""
    layout: Layout
    metadata: Mapping[str, str]


@final
@dataclass(frozen=True)
class Base:
    """All files of a base checkpoint."""

    root: Path
    parts: tuple[Part, ...]
    other_files: tuple[Path, ...] = ()
    """The folder's other files, which are copied: configurations, tokenizers, indices; paths relative to it"""
    left_out: tuple[Path, ...] = ()
    """Files that are not copied: weights in other formats; relative paths"""

    @property
    def folder(self) -> bool:
        """Whether the base, and so the output, is a folder."""
        return os.path.isdir(self.root)

    @property
    def bytes(self) -> int:
        """The total size of the safetensors files."""
        return sum(part.layout.bytes for part in self.parts)

    def weights(self) -> dict[str, Weight]:
        """Return every tensor by its full name, and the weights that weight norm computes from two tensors.

        Raises BadFile if two files hold a tensor of the same name.
        """
        found: dict[str, Weight] = {}
        homes: dict[str, Path] = {}
        for part in self.parts:
            for tensor in part.layout.tensors:
                name = part.prefix + tensor.name
                if name in found:
                    raise BadFile(
                        f"{part.path}: {name} is also in {homes[name]}: remove one of the two files, or give one "
                        "file as the base instead of the folder"
                    )
                found[name], homes[name] = Weight(tensor.shape, tensor.dtype), part.path
        return with_weight_norm(with_scales(found))

    @cached_property
    def _places(self) -> dict[str, tuple[Path, Stored]]:
        return {part.prefix + tensor.name: (part.path, tensor) for part in self.parts for tensor in part.layout.tensors}

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Read rows `start:stop` of a tensor, by its full name. A scalar counts as one row.

        Raises BadFile if the file has become shorter.
        """
        path, stored = self._places[name]
        data = bytearray((stop - start) * stored.row_bytes)
        with path.open("rb") as file:
            file.seek(stored.start + start * stored.row_bytes)
            if file.readinto(data) != len(data):
                raise BadFile(f"{path}: became shorter while it was being read")
        return torch.frombuffer(data, dtype=stored.dtype).reshape(
            (stop - start, *stored.shape[1:])[: len(stored.shape)]
        )


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Return whether a base is a folder, or an index of shards, which stands for the folder that contains it."""
    return os.path.isdir(path) or os.fspath(path).endswith(_INDEX)


def is_program(path: str | os.PathLike[str]) -> bool:
    """Return whether a base is an exported program, by its name."""
    return isinstance(path, (str, os.PathLike)) and os.fspath(path).endswith(PROGRAMS) and not os.path.isdir(path)


def open_base(path: str | os.PathLike[str]) -> Base:
    """Read the headers of a base: a safetensors file, an index of shards, a model's folder, or a pipeline's folder.

    Raises BadFile for anything else, and for an index whose shards are missing.
    """
    root = path_of(path, "the base")
    if is_folder(root) and os.path.isfile(root):
        root = root.parent
    if not os.path.isdir(root):  # pathlib raises for a name that is too long
        return Base(root, (_part(root, Path(root.name), ""),))
    files = sorted(each for each in root.rglob("*") if each.is_file() and not _hidden(each.relative_to(root)))
    weights = [each for each in files if each.suffix == ".safetensors"]
    if not weights:
        for each in files:
            if each.suffix.lower() == ".gguf":
                read_layout(each)  # says what it is
        raise BadFile(f"{root}: this folder contains no .safetensors file")
    parts = []
    for each in weights:
        inside = each.relative_to(root)
        owner = ".".join(inside.parts[:-1])
        parts.append(_part(each, inside, f"{owner}." if owner else ""))
    for index in (each for each in files if each.name.endswith(_INDEX)):
        _check_index(index)
    others = [each.relative_to(root) for each in files if each not in set(weights)]
    left_out = tuple(each for each in others if each.suffix in _PICKLES)
    return Base(root, tuple(parts), tuple(each for each in others if each not in set(left_out)), left_out)


def _part(path: Path, inside: Path, prefix: str) -> Part:
    layout, metadata = read_layout(path)
    return Part(path, inside, prefix, layout, metadata)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _check_index(index: Path) -> None:
    """Raise BadFile if an index names a shard that does not exist, as after an incomplete download."""
    try:
        shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        missing = sorted(name for name in shards if not (index.parent / name).is_file())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadFile(f"{index}: is not a valid index of shards: {error}") from error
    if missing:
        raise BadFile(f"{index}: {len(missing)} of its shards are missing: {', '.join(missing[:3])}")
