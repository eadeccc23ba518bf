"""Hadamard products: two structures, entry by entry."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from lyc_fx.algebra.layer import Layer, NoChain, Scale
from lyc_fx.algebra.low import Low, Tucker
from lyc_fx.algebra.shapes import Shape
from lyc_fx.algebra.structure import Structure
from lyc_fx.algebra.tensors import matrix

PIECE = 1 << 17
"""Elements that are added at once, so that both products stay in a core's cache"""


@final
@dataclass(frozen=True, eq=False)
class Hadamard(Structure):
    """`H[o,i,κ] = left[o,i,κ] · right[o,i,κ]`"""

    left: Structure
    right: Structure

    name = "Khatri–Rao"
    widens = True

    def value(self, shape: Shape) -> Tensor:
        return self.left.value(shape) * self.right.value(shape)

    def pair(self) -> tuple[Tensor, Tensor]:
        """Khatri–Rao, of rank r·r': `up[:, p·r'+q] = a[:, p] · a'[:, q]`, `down[p·r'+q, :] = b[p, :] · b'[q, :]`."""
        (a1, b1), (a2, b2) = self.left.pair(), self.right.pair()
        return columns(a1, a2), rows(b1, b2)

    def as_low(self) -> Low | None:
        return Low(*self.pair()) if isinstance(self.left, Low) and isinstance(self.right, Low) else None

    def act(self, layer: Layer, x: Tensor, scale: Scale = 1.0) -> Tensor:
        """Of two products, as one of rank r·r'; where rows are looked up, as the product of both."""
        one, other = self.left, self.right
        if layer.looks_up:
            return one.act(layer, x, scale) * other.act(layer, x)
        if (product := self.as_low()) is not None:
            return product.act(layer, x, scale)
        if isinstance(one, Tucker) and isinstance(other, Tucker):
            return self._tucker(one, other).act(layer, x, scale)
        raise NoChain("a product of two full tensors has no chain")

    @staticmethod
    def _tucker(one: Tucker, other: Tucker) -> Tucker:
        """`core[(p,p'),(q,q'),κ] = core₁[p,q,κ] · core₂[p',q',κ]`"""
        (p1, q1, *kernel), (p2, q2, *_) = one.core.shape, other.core.shape
        core = one.core.reshape([p1, 1, q1, 1, -1]) * other.core.reshape([1, p2, 1, q2, -1])
        left, right = columns(one.left, other.left), rows(one.right, other.right)
        return Tucker(core.reshape([p1 * p2, q1 * q2, *kernel]), left, right)

    def add_to(self, weight: Tensor, scale: float) -> None:
        one, other = self.left, self.right
        if not (isinstance(one, Low) and isinstance(other, Low)):
            weight.addcmul_(one.value(weight.shape), other.value(weight.shape), value=scale)
            return
        step = max(1, PIECE // weight[0].numel())
        for part, left, right in zip(*(t.split(step) for t in (weight, one.left, other.left)), strict=True):
            sides = Low(left, one.right).value(part.shape), Low(right, other.right).value(part.shape)
            part.addcmul_(*sides, value=scale)


def columns(first: Tensor, second: Tensor) -> Tensor:
    """The products of each column of one matrix with each of another's."""
    return (matrix(first)[:, :, None] * matrix(second)[:, None, :]).flatten(1)


def rows(first: Tensor, second: Tensor) -> Tensor:
    """The products of each row of one matrix with each of another's."""
    return (matrix(first)[:, None, :] * matrix(second)[None, :, :]).flatten(0, 1)
