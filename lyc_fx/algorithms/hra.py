"""HRA: a product of Householder reflections of the input columns (arXiv:2405.17484, as in PEFT)."""

from dataclasses import dataclass
from math import prod
from typing import final

from torch import Tensor

from lyc_fx.adapters.adapter import Strength
from lyc_fx.adapters.shaped import Shaped
from lyc_fx.algebra.action import Action
from lyc_fx.algebra.mapped import Mapped
from lyc_fx.algebra.rotations import reflections
from lyc_fx.algebra.shapes import Shape
from lyc_fx.algebra.shear import Shear
from lyc_fx.algebra.tensors import matrix
from lyc_fx.errors import BadAdapter


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class HRA(Shaped):
    """`W' = W · (I + s · (H - I))`, `H = H_1 ⋯ H_r`, `H_i = I - 2 u_i u_iᵀ`, u_i the columns of U at unit length."""

    name = "hra"
    suffixes = {"u": "hra_u"}
    scalars = {"orthonormal": "hra_gs"}
    variants = {"": {"u": "in*kernel r"}}
    uses_alpha = False
    variant = property(lambda self: "Gram-Schmidt" if self.orthonormal else "")

    u: Tensor
    orthonormal: float = 0
    """1 with Gram-Schmidt"""

    def fit(self, shape: Shape) -> None:
        super().fit(shape)
        columns = matrix(self.u)
        if bool(columns.double().eq(0).all(dim=0).any()) or (self.orthonormal and columns.shape[1] > columns.shape[0]):
            raise BadAdapter(f"hra_u {tuple(self.u.shape)} has columns without a direction")

    def action(self, strength: Strength) -> Action:
        return Mapped(columns=Shear(*reflections(matrix(self.u), orthonormal=bool(self.orthonormal)), -strength))

    @classmethod
    def factor_shapes(cls, shape: Shape, layout: frozenset[str], rank: int) -> dict[str, tuple[int, ...]]:
        return super().factor_shapes(shape, layout, min(rank, prod(shape[1:])))

    @classmethod
    def random_scalars(cls, rank: int) -> dict[str, float]:
        return {"orthonormal": float(rank % 2)}
