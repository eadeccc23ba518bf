"""Hadamard products: two structures, entry by entry."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from lyc_fx.algebra.low import Low
from lyc_fx.algebra.shapes import Shape
from lyc_fx.algebra.structure import Structure

PIECE = 1 << 17
"""Elements that are added at once, so that both products stay in a core's cache"""


@final
@dataclass(frozen=True, eq=False)
class Hadamard(Structure):
    """`H[o,i,κ] = left[o,i,κ] · right[o,i,κ]`"""

    left: Structure
    right: Structure

    def value(self, shape: Shape) -> Tensor:
        return self.left.value(shape) * self.right.value(shape)

    def pair(self) -> tuple[Tensor, Tensor]:
        """Khatri–Rao, of rank r·r': `up[:, p·r'+q] = a[:, p] · a'[:, q]`, `down[p·r'+q, :] = b[p, :] · b'[q, :]`."""
        (a1, b1), (a2, b2) = self.left.pair(), self.right.pair()
        return (a1[:, :, None] * a2[:, None, :]).flatten(1), (b1[:, None, :] * b2[None, :, :]).flatten(0, 1)

    def add_to(self, weight: Tensor, scale: float) -> None:
        one, other = self.left, self.right
        if not (isinstance(one, Low) and isinstance(other, Low)):
            weight.addcmul_(one.value(weight.shape), other.value(weight.shape), value=scale)
            return
        step = max(1, PIECE // weight[0].numel())
        for rows, left, right in zip(*(t.split(step) for t in (weight, one.left, other.left)), strict=True):
            sides = Low(left, one.right).value(rows.shape), Low(right, other.right).value(rows.shape)
            rows.addcmul_(*sides, value=scale)
