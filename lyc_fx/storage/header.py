"""The layout of safetensors files: where the tensors of a file are, and where those of its merged copy will be."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import final

import torch

from lyc_fx.errors import Unsupported
from lyc_fx.storage.container import opened
from lyc_fx.storage.files import STORED, header_of


@final
@dataclass(frozen=True)
class Stored:
    """One tensor of a file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """Its first byte in the file"""

    @cached_property
    def bytes(self) -> int:
        """The size of its data."""
        return prod(self.shape) * self.dtype.itemsize

    @cached_property
    def row_bytes(self) -> int:
        """The size of one row, which is one index of the first dimension."""
        return prod(self.shape[1:]) * self.dtype.itemsize


@final
@dataclass(frozen=True)
class Layout:
    """The layout of a file: the bytes of its header, and its tensors in the order of their data."""

    header: bytes
    tensors: tuple[Stored, ...]

    @property
    def bytes(self) -> int:
        """The size of the whole file."""
        return max((t.start + t.bytes for t in self.tensors), default=len(self.header))


def read_layout(path: Path) -> tuple[Layout, dict[str, str]]:
    """Read the layout of a safetensors file, and its metadata.

    Raises BadFile for a file that is not valid, and Unsupported for a dtype that cannot be copied.
    """
    with opened(path) as source:  # this checks offsets, shapes and dtypes
        metadata = dict(source.metadata() or {})
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length)
    entries = {name: entry for name, entry in json.loads(text).items() if name != "__metadata__"}
    for name, entry in entries.items():
        if entry["dtype"] not in STORED:
            raise Unsupported(f"{path}: {name} is stored as {entry['dtype']}, which lyc-fx cannot copy")
    found = [
        Stored(name, STORED[e["dtype"]], tuple(e["shape"]), 8 + length + e["data_offsets"][0])
        for name, e in entries.items()
    ]
    return Layout(length.to_bytes(8, "little") + text, tuple(sorted(found, key=lambda t: (t.start, t.name)))), metadata


def lay_out(tensors: Iterable[Stored], dtypes: Mapping[str, torch.dtype], metadata: Mapping[str, str]) -> Layout:
    """Compute the layout of a new file with the same tensors in the same order, in the dtypes given by name."""
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    header, starts = header_of({name: (dtypes[name], shape) for name, shape in shapes.items()}, metadata)
    return Layout(header, tuple(Stored(name, dtypes[name], shape, starts[name]) for name, shape in shapes.items()))
