"""Products of two narrow matrices, and Tucker products: a narrow core between them."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from lyc_fx.algebra.shapes import Shape
from lyc_fx.algebra.structure import Structure
from lyc_fx.algebra.tensors import low_rank, matrix, tucker, with_core


@final
@dataclass(frozen=True, eq=False)
class Low(Structure):
    """`left @ right`: `(out, r)` and `(r, in/groups · kernel)`, each perhaps with its last sizes apart."""

    left: Tensor
    right: Tensor

    def value(self, shape: Shape) -> Tensor:
        return low_rank(self.left, self.right, shape)

    def pair(self) -> tuple[Tensor, Tensor]:
        return matrix(self.left), matrix(self.right)

    def add_to(self, weight: Tensor, scale: float) -> None:
        matrix(weight).addmm_(matrix(self.left), matrix(self.right), alpha=scale)


@final
@dataclass(frozen=True, eq=False)
class Tucker(Structure):
    """`T[o,i,κ] = Σ_pq core[p,q,κ] · left[o,p] · right[q,i]`: `(p, q, *kernel)`, `(out, p)`, `(q, in/groups)`."""

    core: Tensor
    left: Tensor
    right: Tensor

    def value(self, shape: Shape) -> Tensor:
        return tucker(self.core, self.left, self.right)

    def pair(self) -> tuple[Tensor, Tensor]:
        return with_core(self.core, self.left.t(), self.right)
