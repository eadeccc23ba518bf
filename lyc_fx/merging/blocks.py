"""A large weight in blocks of rows: small enough for the caches, cut where every adapter can be cut."""

import itertools
from collections.abc import Sequence
from math import prod

import torch

from lyc_fx.algebra.shapes import Shape
from lyc_fx.merging.merged import Change

BLOCK = 1 << 19
"""Elements of a block: a constant, so that results do not depend on memory or threads."""
WIDE = 1 << 21
"""Elements of a piece of columns. Larger than a block: what OFT solves for its rotations is solved for each"""
ON_GPU = 16
"""Times as large are both on a GPU, where launching its kernels takes the time"""
CPU = torch.device("cpu")
Rows = tuple[int, int]


def row_blocks(shape: Shape, stack: Sequence[Change], device: torch.device = CPU) -> list[Rows]:
    """The blocks of a weight of this shape `(out, in, *kernel)`; a single one where its rows depend on each other."""
    height = shape[0] if shape else 1
    whole = [(0, height)]
    at_most = max(1, BLOCK * _times(device) // max(1, prod(shape[1:])))
    if height <= at_most:
        return whole
    bounds = sorted({0, height, *(bound for change in stack for bound in change.rows or ())})
    found: list[Rows] = []
    for start, stop in itertools.pairwise(bounds):
        step = _step(start, stop, shape, stack, at_most)
        if step is None:
            return whole
        found += _cut(start, stop, step)
    return found


def on_rows(stack: Sequence[Change], start: int, stop: int, shape: Shape) -> list[Change]:
    """The changes of some rows alone, with factors for these rows."""
    if (start, stop) == (0, shape[0] if shape else 1):
        return list(stack)
    found = []
    for change in stack:
        first, last = change.rows or (0, shape[0])
        if first <= start and stop <= last:
            adapter = change.adapter
            if (first, last) != (start, stop):
                adapter = adapter.rows(start - first, stop - first, (last - first, *shape[1:]))
            found.append(Change(adapter, change.strength))
    return found


def pieces(shape: Shape, stack: Sequence[Change], device: torch.device = CPU) -> list[tuple[int, Rows]]:
    """The parts, each with the dimension along which it is cut, of a weight that is in memory as a whole.

    Where rows depend on each other, columns (dimension 1) may not.
    """
    rows, wide = row_blocks(shape, stack, device), WIDE * _times(device)
    if len(rows) > 1 or prod(shape) <= wide or len(shape) < 2 or any(change.rows for change in stack):
        return [(0, each) for each in rows]
    if any(change.adapter.columns(0, 1, shape) is None for change in stack):
        return [(0, each) for each in rows]
    return [(1, each) for each in _cut(0, shape[1], max(1, wide // (shape[0] * prod(shape[2:]))))]


def largest_piece(shape: Shape, stack: Sequence[Change]) -> int:
    """Elements of the largest of `pieces`."""
    cut = pieces(shape, stack)
    return max((prod(shape) // shape[dim] * (stop - start) for dim, (start, stop) in cut), default=0) if shape else 1


def on_columns(stack: Sequence[Change], start: int, stop: int, shape: Shape) -> list[Change]:
    """The changes of some columns alone."""
    cut = [change.adapter.columns(start, stop, shape) for change in stack]
    return [Change(adapter, change.strength) for adapter, change in zip(cut, stack, strict=True) if adapter]


def _times(device: torch.device) -> int:
    return 1 if device.type == "cpu" else ON_GPU


def _step(start: int, stop: int, shape: Shape, stack: Sequence[Change], at_most: int) -> int | None:
    """Rows of the blocks between two bounds; None where an adapter there cannot be cut so."""
    constrained: set[int] = set()
    for change in stack:
        first, last = change.rows or (0, shape[0])
        if not (first <= start and stop <= last):
            continue
        step = change.adapter.row_step((last - first, *shape[1:]), at_most)
        if step is None:
            if (first, last) != (start, stop):
                return None
            step = stop - start
        if step != at_most:
            if (first, last) != (start, stop) and (first != 0 or start != 0 or stop != last):
                return None
            constrained.add(step)
    if len(constrained) > 1:
        return None
    return constrained.pop() if constrained else at_most


def _cut(start: int, stop: int, step: int) -> list[Rows]:
    return [(first, min(first + step, stop)) for first in range(start, stop, step)]
