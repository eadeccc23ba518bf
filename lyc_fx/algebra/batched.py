"""Products of many pairs of narrow matrices, one for each slice of a weight of three dimensions."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from lyc_fx.algebra.layer import Layer, NoChain, Scale
from lyc_fx.algebra.shapes import Shape
from lyc_fx.algebra.structure import Structure
from lyc_fx.algebra.tensors import shaped
from lyc_fx.errors import BadAdapter


@final
@dataclass(frozen=True, eq=False)
class Batched(Structure):
    """`B[e] = left[e] @ right[e]`: `(e, out, r)` and `(e, r, in)`, or the transpose where the weight is `(e, in, out)`.

    With one slice also a matrix. `turned` says that a weight with in = out is `(e, in, out)`.
    """

    left: Tensor
    right: Tensor
    turned: bool = False

    name = "a product for each slice"

    def value(self, shape: Shape) -> Tensor:
        left, right = self.left, self.right
        if self.turned or shape[-1] != right.shape[2]:
            left, right = right.transpose(1, 2), left.transpose(1, 2)
        return shaped(left @ right, shape)

    def pair(self) -> tuple[Tensor, Tensor]:
        """Raises BadAdapter: there is none for all slices."""
        raise BadAdapter("a product for each slice has no form as one product of two matrices")

    def act(self, layer: Layer, x: Tensor, scale: Scale = 1.0) -> Tensor:
        """Raises NoChain: no layer of the table has a weight of three dimensions."""
        raise NoChain("a product for each slice of the weight has no chain")
