"""The jobs that make up the merged copy of a file. Each fills one byte range of the output; their order is free."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, final

from lyc_fx.merging.blocks import BLOCK, Rows, row_blocks
from lyc_fx.storage.header import Layout, Stored

COPY_SIZE = 1 << 24
"""Largest number of bytes that one job copies"""


class Blocks(NamedTuple):
    """How a tensor is split up for its merge."""

    blocks: list[Rows]
    """Ranges of rows, one for each job"""
    at_once: int
    """How many elements of a block are computed at a time"""


@final
@dataclass(frozen=True)
class Copy:
    """Copy a range of bytes unchanged."""

    source_start: int
    target: int
    size: int
    name: str
    """The last tensor in the range, for progress reports"""

    @property
    def target_bytes(self) -> tuple[int, int]:
        """The byte range in the output, as (start, stop)."""
        return self.target, self.target + self.size


@final
@dataclass(frozen=True)
class Compute:
    """Merge some rows of a tensor, or convert them to another dtype."""

    source: Stored
    target: Stored
    rows: Rows
    at_once: int
    """How many elements are computed at a time"""

    @property
    def name(self) -> str:
        """The name of the tensor."""
        return self.source.name

    @cached_property
    def source_start(self) -> int:
        """The first byte of the rows in the base."""
        return self.source.start + self.rows[0] * self.source.row_bytes

    @cached_property
    def size(self) -> int:
        """The number of bytes that the rows take in the output."""
        return (self.rows[1] - self.rows[0]) * self.target.row_bytes

    @cached_property
    def target_bytes(self) -> tuple[int, int]:
        """The byte range in the output, as (start, stop)."""
        first = self.target.start + self.rows[0] * self.target.row_bytes
        return first, first + self.size


def make_jobs(source: Layout, target: Layout, computed: dict[str, Blocks]) -> Iterator[Copy | Compute]:
    """Yield jobs that together fill every byte of the output's data exactly once, in the order of the output.

    `source` and `target` list the same tensors. `computed` has the blocks of the tensors to merge, by name; the others
    are copied, or converted where their dtype changes.
    """
    run: Copy | None = None
    for old, new in zip(source.tensors, target.tensors, strict=True):
        wanted = computed.get(old.name)
        if wanted is None and old.dtype != new.dtype:
            wanted = Blocks(row_blocks(old.shape, []), BLOCK)
        if wanted is None:
            if run is not None and run.source_start + run.size == old.start and run.target + run.size == new.start:
                run = Copy(run.source_start, run.target, run.size + old.bytes, old.name)
            else:
                yield from _in_pieces(run)
                run = Copy(old.start, new.start, old.bytes, old.name)
            continue
        yield from _in_pieces(run)
        run = None
        yield from (Compute(old, new, rows, wanted.at_once) for rows in wanted.blocks)
    yield from _in_pieces(run)


def _in_pieces(run: Copy | None) -> Iterator[Copy]:
    """Split a long copy into jobs of at most COPY_SIZE bytes."""
    for first in range(0, run.size if run else 0, COPY_SIZE):
        assert run is not None
        yield Copy(run.source_start + first, run.target + first, min(COPY_SIZE, run.size - first), run.name)
