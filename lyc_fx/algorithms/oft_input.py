"""OFT on the input side: one orthogonal block per group of input columns (as in PEFT 0.18 and later)."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lyc_fx.adapters.adapter import Strength
from lyc_fx.adapters.orthogonal import Bounded
from lyc_fx.algebra.action import Action
from lyc_fx.algebra.blocks import Blocks
from lyc_fx.algebra.mapped import Mapped
from lyc_fx.algebra.rotations import cayley, neumann, skew
from lyc_fx.algebra.shapes import Shape
from lyc_fx.errors import BadAdapter

_MOST_TERMS = 100
"""PEFT's default is 5; each costs a product of blocks"""


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class InputOFT(Bounded):
    """`W'[:, block j] = W[:, block j] · (I + s · (R_j - I))ᵀ`, in·kernel = n · b columns in n blocks of b.

    With `Q = B - Bᵀ`, R is PEFT's series in Q of so many terms (`lyc_fx.algebra.rotations.neumann`), or without terms
    Cayley's map of the other sign, `R = (I - Q)(I + Q)⁻¹`.

    `alpha` is a bound (COFT), no scale: a Q of norm above `alpha / √(number of stored blocks)` is shrunk to it.
    """

    name = "oft-input"
    suffixes = {"blocks": "oft_R"}
    scalars = {"terms": "oft_terms"}
    variants = {"": {"blocks": "column_blocks b b"}}

    terms: float = 0

    @property
    def variant(self) -> str:
        return ", ".join(filter(None, (f"{self.terms:g} terms" if self.terms else "Cayley", super().variant)))

    def fit(self, shape: Shape) -> None:
        super().fit(shape)
        if self.terms not in range(_MOST_TERMS + 1):
            raise BadAdapter(f"oft_terms is {self.terms:g}, not a number of terms")

    def action(self, strength: Strength) -> Action:
        return Mapped(columns=Blocks(self.turns(strength).transpose(-1, -2)))

    def turns(self, strength: Strength) -> Tensor:
        """`I + s · (R - I)`, `(n, b, b)`."""
        turn = skew(self.blocks)
        if self.alpha:
            norm = torch.linalg.vector_norm(turn, dim=(-2, -1), keepdim=True)
            turn = self.bounded(turn, norm, self.alpha / self.blocks.shape[0] ** 0.5)
        return neumann(turn, int(self.terms), strength) if self.terms else cayley(-turn, strength)

    @classmethod
    def random_scalars(cls, rank: int) -> dict[str, float]:
        return {"terms": float((0, 5, 3, 2, 7)[rank % 5])}
