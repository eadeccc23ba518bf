"""Products of two narrow matrices, and Tucker products: a narrow core between them."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from lyc_fx.algebra.layer import Factor, Layer, NoChain, Scale
from lyc_fx.algebra.shapes import Shape
from lyc_fx.algebra.structure import Structure
from lyc_fx.algebra.tensors import low_rank, matrix, tucker, with_core


@final
@dataclass(frozen=True, eq=False)
class Low(Structure):
    """`left @ right`: `(out, r)` and `(r, in/groups · kernel)`, each perhaps with its kernel dimensions apart."""

    left: Tensor
    right: Tensor

    name = "low rank"

    def value(self, shape: Shape) -> Tensor:
        return low_rank(self.left, self.right, shape)

    def pair(self) -> tuple[Tensor, Tensor]:
        return matrix(self.left), matrix(self.right)

    def as_low(self) -> "Low":
        return self

    def act(self, layer: Layer, x: Tensor, scale: Scale = 1.0) -> Tensor:
        """A narrow layer with `right`, which has stride, padding and dilation, and a 1×1 layer with `left`.

        The other way round where x meets the first dimension of the weight.
        """
        left, right = self.pair()
        if left.shape[0] != layer.shape[0]:
            side = "inputs" if layer.x_first else "outputs"
            raise NoChain(f"the product has {left.shape[0]} rows, the layer {layer.shape[0]} {side}")
        return layer.product(x, Factor(left, shared=False), Factor(right, whole=True), scale=scale)

    def add_to(self, weight: Tensor, scale: float) -> None:
        matrix(weight).addmm_(matrix(self.left), matrix(self.right), alpha=scale)

    def dot(self, weight: Tensor, axis: int) -> Tensor:
        """Rows: `Σ_r (W Dᵀ) ∘ U`; inputs: `Σ_r,κ (Uᵀ W) ∘ D`."""
        left, right = self.pair()
        if axis == 0:
            return ((matrix(weight) @ right.t()) * left).sum(1)
        return ((left.t() @ matrix(weight)) * right).reshape([right.shape[0], weight.shape[1], -1]).sum([0, 2])

    def squares(self, shape: Shape, axis: int) -> Tensor:
        """Rows: `Σ_r (U (D Dᵀ)) ∘ U`; inputs: `Σ_r,κ ((Uᵀ U) D) ∘ D`."""
        left, right = self.pair()
        if axis == 0:
            return ((left @ (right @ right.t())) * left).sum(1)
        return (((left.t() @ left) @ right) * right).reshape([right.shape[0], shape[1], -1]).sum([0, 2])


@final
@dataclass(frozen=True, eq=False)
class Tucker(Structure):
    """`T[o,i,κ] = Σ_pq core[p,q,κ] · left[o,p] · right[q,i]`: `(p, q, *kernel)`, `(out, p)`, `(q, in/groups)`."""

    core: Tensor
    left: Tensor
    right: Tensor

    name = "Tucker"

    def value(self, shape: Shape) -> Tensor:
        return tucker(self.core, self.left, self.right)

    def pair(self) -> tuple[Tensor, Tensor]:
        return with_core(self.core, self.left.t(), self.right)

    def act(self, layer: Layer, x: Tensor, scale: Scale = 1.0) -> Tensor:
        """1×1 with the factor that x meets, the core's k×k, 1×1 with the other factor."""
        core = Factor(matrix(self.core), whole=True)
        return layer.product(x, Factor(self.left, shared=False), core, Factor(self.right), scale=scale)
