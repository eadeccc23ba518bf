"""An exported program as a base: where the weights are in its files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from lyc_fx.binding.fitting import Weight
from lyc_fx.checkpoint.base import Base, Part
from lyc_fx.checkpoint.scaled import with_scales
from lyc_fx.checkpoint.weight_norm import with_weight_norm
from lyc_fx.storage.header import Layout, Stored
from lyc_fx.storage.may_overwrite import FOLD

MANIFEST = "manifest.json"
"""The text by which a program of lyc-fx describes itself (`lyc_fx.exporting.manifest`)"""
TEXTS = (MANIFEST, FOLD)
"""What is read of the texts in a program, and written anew"""


@final
@dataclass(frozen=True)
class Held:
    """One weight of a program."""

    path: Path
    """The file that has its bytes"""
    stored: Stored
    """Its bytes; the shape is that in the order of storage"""
    order: tuple[int, ...]
    """The dimensions in the order of storage, slowest first: (0, 2, 3, 1) for channels last"""

    @classmethod
    def of(
        cls, path: Path, name: str, dtype: torch.dtype, shape: tuple[int, ...], strides: tuple[int, ...], start: int
    ) -> "Held | None":
        """A tensor whose first element is at byte `start`; None if its elements do not fill one range of bytes."""
        order = tuple(sorted(range(len(shape)), key=lambda i: (-strides[i], shape[i] == 1, i)))
        filled = 1
        for i in reversed(order):
            if shape[i] != 1 and strides[i] != filled:
                return None
            filled *= shape[i]
        order = _plain(order, shape)
        return cls(path, Stored(name, dtype, tuple(shape[i] for i in order), start), order)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that the program sees."""
        return tuple(self.stored.shape[i] for i in self._places)

    @property
    def turned(self) -> bool:
        """Whether the order of storage is another than that of the dimensions."""
        return self.order != tuple(range(len(self.order)))

    @property
    def range(self) -> tuple[Path, int, int]:
        """Its file, first byte, and the byte after its last."""
        return self.path, self.stored.start, self.stored.start + self.stored.bytes

    def seen(self, rows: Tensor) -> Tensor:
        """The program's view of the tensor as it is stored."""
        return rows.permute(self._places)

    @property
    def _places(self) -> tuple[int, ...]:
        return tuple(map(self.order.index, range(len(self.order))))


def _plain(order: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The usual order where dimensions of one element are all that differs from it."""
    long = [i for i in order if shape[i] != 1]
    return tuple(range(len(shape))) if long == sorted(long) else order


@final
@dataclass(frozen=True)
class Program:
    """What a fold needs to know of a file."""

    path: Path
    files: tuple[Path, ...]
    """All its files, with that at `path` first"""
    held: Mapping[str, Held]
    odd: Mapping[str, str] = field(default_factory=dict)
    """Why a weight cannot be changed in its place, by its name"""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Those of TEXTS that it has"""
    turned: frozenset[str] = frozenset()
    """The weights of transposed convolutions, `(in, out/groups, *kernel)`"""

    @property
    def is_onnx(self) -> bool:
        """Of the two formats, by its name."""
        return self.path.suffix == ".onnx"

    def base(self) -> Base:
        """As a base checkpoint."""
        found: dict[Path, list[Stored]] = {path: [] for path in self.files}
        for each in self.held.values():
            found[each.path].append(each.stored)
        parts = [Part(path, Path(path.name), "", Layout(b"", tuple(held)), {}) for path, held in found.items()]
        return Base(self.path, tuple(parts))

    def weights(self) -> dict[str, Weight]:
        """Return every weight by its name."""
        found = {
            name: Weight(held.shape, held.stored.dtype, of_transposed_conv=name in self.turned)
            for name, held in self.held.items()
        }
        return with_weight_norm(with_scales(found))
