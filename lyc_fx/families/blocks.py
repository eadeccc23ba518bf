"""A large weight in blocks of rows: small enough for the caches, cut where every adapter can be cut."""

import itertools
from collections.abc import Sequence
from math import prod

from lyc_fx.families.merged import Change
from lyc_fx.families.shapes import Shape

BLOCK = 1 << 19
"""Elements of a block: a constant, so that results do not depend on memory or threads."""
Rows = tuple[int, int]


def row_blocks(shape: Shape, stack: Sequence[Change]) -> list[Rows]:
    """The blocks of a weight of this shape `(out, in, *kernel)`; a single one where its rows depend on each other."""
    height = shape[0] if shape else 1
    whole = [(0, height)]
    at_most = max(1, BLOCK // max(1, prod(shape[1:])))
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
            adapter = change.adapter.rows(start - first, stop - first, (last - first, *shape[1:]))
            found.append(Change(adapter, change.strength))
    return found


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
