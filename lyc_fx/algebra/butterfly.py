"""Butterflies in fewer steps: two stages of blocks, one after the other, are one stage of blocks twice as large.

A stage of a butterfly sees channels as `(c, 2, q, r)` and mixes the 2 with the r; the stage after it, over twice the
distance, sees the same channels as `(c', 2', 2·q, r)`, c = (c', 2'), and mixes the 2' with the r. Both together mix
`(2', 2, r)`. That takes as many multiplications of each channel as the two, b + b = 2 · b, and half of the
permutations and of the calls.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from lyc_fx.algebra.blocks import Blocks, Swap
from lyc_fx.algebra.maps import Map


@final
@dataclass(frozen=True, eq=False)
class Stage:
    """Channels `(c, h, q, r)`, of which h and r are mixed."""

    matrices: Tensor
    """`(c, q, h, r, h, r)`"""

    @classmethod
    def of(cls, first: Map, blocks: Map, last: Map) -> Self | None:
        """A permutation, blocks, and the permutation back, if they turn pairs `(c, 2, k)` in the order `(c, k, 2)`."""
        if not (isinstance(first, Swap) and isinstance(blocks, Blocks) and isinstance(last, Swap)):
            return None
        count, size, _ = blocks.matrices.shape
        apart = first.second
        there, back = (first.first, first.inner), (last.first, last.second, last.inner)
        if there != (2, 1) or back != (apart, 2, 1) or 2 * apart % size or size % 2 or count * size % (2 * apart):
            return None
        q = 2 * apart // size
        parts = blocks.matrices.reshape([count // q, q, size // 2, 2, size // 2, 2])
        return cls(parts.permute(0, 1, 3, 2, 5, 4))

    def then(self, other: Self) -> Self | None:
        """Both as one, if the other mixes channels twice as far apart."""
        (c, q, h, r, *_), wide = self.matrices.shape, other.matrices.shape
        if h != 2 or c % 2 or tuple(wide[:4]) != (c // 2, 2 * q, 2, r):
            return None
        near = self.matrices.unflatten(0, [-1, 2])  # (c', 2', q, 2, r, 2, r)
        far = other.matrices.unflatten(1, [2, q])  # (c', 2, q, 2', r, 2', r)
        both = torch.einsum("chqwrvs,cvqhsgt->cqwhrvgt", far, near)
        return type(self)(both.reshape([c // 2, q, 2 * h, r, 2 * h, r]))

    @property
    def steps(self) -> tuple[Map, ...]:
        """The same as permutations and blocks."""
        c, q, h, r, *_ = self.matrices.shape
        blocks = Blocks(self.matrices.reshape([c * q, h * r, h * r]))
        return (blocks,) if q == 1 else (Swap(h, q, r), blocks, Swap(q, h, r))


def joined(maps: Sequence[Map]) -> tuple[Map, ...]:
    """Maps, of which the first acts first, with as few stages of butterflies as take no more multiplications."""
    found, at = list[Map | Stage](), 0
    while at < len(maps):
        stage = Stage.of(*maps[at : at + 3]) if at + 3 <= len(maps) else None
        if stage is None:
            found.append(maps[at])
            at += 1
            continue
        previous = found[-1] if found else None
        both = previous.then(stage) if isinstance(previous, Stage) else None
        if both is None:
            found.append(stage)
        else:
            found[-1] = both
        at += 3
    return tuple(step for each in found for step in (each.steps if isinstance(each, Stage) else (each,)))
