"""HRA: a product of Householder reflections of the input columns (arXiv:2405.17484, as in PEFT)."""

from dataclasses import dataclass
from math import prod
from typing import final

import torch
from torch import Tensor

from lyc_fx.algebra.shapes import Shape, expect, matrix_dims
from lyc_fx.errors import BadAdapter
from lyc_fx.families.adapter import Strength
from lyc_fx.families.shaped import Shaped, layouts_of


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class HRA(Shaped):
    """`W' = W · (I + s · (H - I))`, `H = H_1 ⋯ H_r`, `H_i = I - 2 u_i u_iᵀ`, u_i the columns of U at unit length.

    In one, `H = I - U T Uᵀ`, `T⁻¹ = I/2 + triu(UᵀU, 1)`. After Gram-Schmidt, `U = Q R`, it is `H = I - 2 Q Qᵀ`.
    """

    name = "hra"
    suffixes = {"u": "hra_u"}
    scalars = {"orthonormal": "hra_gs"}
    variants = {"": {"u": "in*kernel r"}}
    layouts = layouts_of(variants)
    uses_alpha = False
    rank = property(lambda self: self.u.shape[1])
    variant = property(lambda self: "Gram-Schmidt" if self.orthonormal else "")

    u: Tensor
    orthonormal: float = 0
    """1 with Gram-Schmidt"""

    def fit(self, shape: Shape) -> None:
        _, inner, taps = matrix_dims(shape)
        expect("hra_u", self.u.shape, (inner * taps, self.rank))
        if bool(self.u.double().eq(0).all(dim=0).any()) or (self.orthonormal and self.rank > inner * taps):
            raise BadAdapter(f"hra_u {tuple(self.u.shape)} has columns without a direction")

    def weight_shape(self) -> None:
        """Nothing tells `out`."""

    def apply(self, weight: Tensor, strength: Strength) -> Tensor:
        left, right = self._change()
        return weight - strength * (weight.flatten(1) @ left @ right).reshape(weight.shape)

    def _change(self) -> tuple[Tensor, Tensor]:
        """`H = I - left @ right`: `(in·kernel, r)`, `(r, in·kernel)`."""
        if self.orthonormal:
            q = torch.linalg.qr(self.u)[0]
            return q, 2 * q.t()
        u = self.u / torch.linalg.vector_norm(self.u, dim=0)
        gram = u.t() @ u
        return u, torch.linalg.solve_triangular((gram.triu() + gram.triu(1)) / 2, u.t(), upper=True)

    @classmethod
    def factor_shapes(cls, shape: Shape, layout: frozenset[str], rank: int) -> dict[str, tuple[int, ...]]:
        return super().factor_shapes(shape, layout, min(rank, prod(shape[1:])))

    @classmethod
    def random_scalars(cls, rank: int) -> dict[str, float]:
        return {"orthonormal": float(rank % 2)}
