"""The jobs that make a merged copy of a file: each writes one stretch of the output, in whatever order."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, final

from lyc_fx.families.blocks import BLOCK, Rows, row_blocks
from lyc_fx.folding.header import Layout, Stored

COPIED = 1 << 24
"""Bytes that are copied at once"""


class Cut(NamedTuple):
    """How a tensor is merged."""

    blocks: list[Rows]
    at_once: int
    """Elements of a block that are computed at a time"""


@final
@dataclass(frozen=True)
class Copy:
    """Bytes as they are."""

    source_start: int
    target: int
    size: int
    name: str
    """Of the last tensor in them, for the progress"""

    @property
    def target_bytes(self) -> tuple[int, int]:
        """Where they go in the output."""
        return self.target, self.target + self.size


@final
@dataclass(frozen=True)
class Compute:
    """Rows of a tensor, merged, or in another dtype."""

    source: Stored
    target: Stored
    rows: Rows
    at_once: int
    """Of its elements, how many are computed at a time"""

    @property
    def name(self) -> str:
        return self.source.name

    @cached_property
    def source_start(self) -> int:
        """Their first byte in the base."""
        return self.source.start + self.rows[0] * self.source.row_bytes

    @cached_property
    def size(self) -> int:
        """Bytes of the output."""
        return (self.rows[1] - self.rows[0]) * self.target.row_bytes

    @cached_property
    def target_bytes(self) -> tuple[int, int]:
        """Where they go in the output."""
        first = self.target.start + self.rows[0] * self.target.row_bytes
        return first, first + self.size


def jobs(source: Layout, target: Layout, cuts: dict[str, Cut]) -> Iterator[Copy | Compute]:
    """Every byte of the output's data once. `cuts` are of those that are computed; the rest is copied."""
    run: Copy | None = None
    for old, new in zip(source.tensors, target.tensors, strict=True):
        wanted = cuts.get(old.name)
        if wanted is None and old.dtype != new.dtype:
            wanted = Cut(row_blocks(old.shape, []), BLOCK)
        if wanted is None:
            if run is not None and run.source_start + run.size == old.start and run.target + run.size == new.start:
                run = Copy(run.source_start, run.target, run.size + old.bytes, old.name)
            else:
                yield from _pieces(run)
                run = Copy(old.start, new.start, old.bytes, old.name)
            continue
        yield from _pieces(run)
        run = None
        yield from (Compute(old, new, rows, wanted.at_once) for rows in wanted.blocks)
    yield from _pieces(run)


def _pieces(run: Copy | None) -> Iterator[Copy]:
    """A long stretch in parts."""
    for first in range(0, run.size if run else 0, COPIED):
        assert run is not None
        yield Copy(run.source_start + first, run.target + first, min(COPIED, run.size - first), run.name)
