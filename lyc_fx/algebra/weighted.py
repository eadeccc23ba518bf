"""Products of two matrices that several layers share, weighted by vectors of each layer's own."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from lyc_fx.algebra.layer import Layer, Scale, scaled
from lyc_fx.algebra.low import Low
from lyc_fx.algebra.shapes import Shape
from lyc_fx.algebra.structure import Structure
from lyc_fx.algebra.tensors import matrix


@final
@dataclass(frozen=True, eq=False)
class Weighted(Structure):
    """`diag(rows) · left · diag(ranks) · right`: `(out)`, `(out, r)`, `(r)`, `(r, in/groups · kernel)`."""

    left: Tensor
    right: Tensor
    rows: Tensor
    ranks: Tensor

    name = "low rank of shared matrices"

    def value(self, shape: Shape) -> Tensor:
        return self._low().value(shape)

    def pair(self) -> tuple[Tensor, Tensor]:
        return self._low().pair()

    def act(self, layer: Layer, x: Tensor, scale: Scale = 1.0) -> Tensor:
        """The vectors on activations, so that the matrices stay as they are and layers can share them.

        On convolutions and embeddings, where activations are larger than factors, as a plain product.
        """
        if layer.spatial or layer.looks_up:
            return self._low().act(layer, x, scale)
        left, right = layer.fitted(matrix(self.left)), layer.fitted(matrix(self.right))
        if layer.x_first:
            y = layer.narrow(x * layer.fitted(scaled(self.rows.flatten(), scale)), left)
            return layer.narrow(y * layer.fitted(self.ranks.flatten()), right)
        y = layer.narrow(x, right) * layer.fitted(scaled(self.ranks.flatten(), scale))
        return layer.narrow(y, left) * layer.fitted(self.rows.flatten())

    def add_to(self, weight: Tensor, scale: float) -> None:
        self._low().add_to(weight, scale)

    def _low(self) -> Low:
        left, right = matrix(self.left), matrix(self.right)
        return Low(left * self.rows.reshape([-1, 1]), right * self.ranks.reshape([-1, 1]))
