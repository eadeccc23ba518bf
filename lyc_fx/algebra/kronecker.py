"""Kronecker products: a matrix of blocks, each the same structure times a number."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lyc_fx.algebra.shapes import Shape
from lyc_fx.algebra.structure import Structure
from lyc_fx.algebra.tensors import kronecker


@final
@dataclass(frozen=True, eq=False)
class Kron(Structure):
    """`K[l·k+k', m·n+n', κ] = left[l,m] · right[k',n',κ]`: `(l, m)`, and a structure `(k, n, *kernel)`."""

    left: Tensor
    right: Structure

    def value(self, shape: Shape) -> Tensor:
        return kronecker(self.left, self.right.value(self._block(shape)))

    def pair(self) -> tuple[Tensor, Tensor]:
        """`left ⊗ (a @ b) = (left ⊗ a) @ (I ⊗ b)`, of rank m · r."""
        a, b = self.right.pair()
        down = kronecker(torch.eye(self.left.shape[1]).to(self.left), b)  # (m·r, m·n·κ): a weight's inputs and taps
        return kronecker(self.left, a), down

    def add_to(self, weight: Tensor, scale: float) -> None:
        (l, m), (k, n, *_) = self.left.shape, self._block(weight.shape)  # noqa: E741
        right = self.right.value(self._block(weight.shape))
        weight.view(l, k, m, n, -1).addcmul_(self.left.view(l, 1, m, 1, 1), right.view(1, k, 1, n, -1), value=scale)

    def _block(self, shape: Shape) -> tuple[int, ...]:
        """`(k, n, *kernel)`, of a weight of this shape."""
        return shape[0] // self.left.shape[0], shape[1] // self.left.shape[1], *shape[2:]
