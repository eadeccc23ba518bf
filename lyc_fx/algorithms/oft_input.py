"""OFT on the input side: one orthogonal block per group of input columns (as in PEFT 0.18 and later)."""

from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from lyc_fx.adapters.adapter import Adapter, Strength
from lyc_fx.algebra.action import Action
from lyc_fx.algebra.blocks import Blocks
from lyc_fx.algebra.mapped import Mapped
from lyc_fx.algebra.rotations import cayley, neumann, skew
from lyc_fx.algebra.shapes import Shape, matrix_dims
from lyc_fx.errors import BadAdapter

_MOST_TERMS = 100
"""PEFT's default is 5; each costs a product of blocks"""


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class InputOFT(Adapter):
    """`W'[:, block j] = W[:, block j] · (I + s · (R_j - I))ᵀ`, in·kernel = n · b columns in n blocks of b.

    With `Q = B - Bᵀ`, R is PEFT's series in Q of so many terms (`lyc_fx.algebra.rotations.neumann`), or without terms
    Cayley's map of the other sign, `R = (I - Q)(I + Q)⁻¹`.

    `alpha` is a bound (COFT), no scale: a Q of norm above `alpha / √(number of stored blocks)` is shrunk to it.
    """

    name = "oft-input"
    suffixes = {"blocks": "oft_R"}
    scalars = {"terms": "oft_terms"}
    alpha_bounds = True
    layouts = (frozenset({"blocks"}),)

    blocks: Tensor
    """`(n, b, b)`, or `(1, b, b)` for one block that all groups share: the generators B"""
    terms: float = 0

    @property
    def rank(self) -> int:
        """The block size."""
        return self.blocks.shape[-1]

    @property
    def scale(self) -> float:
        return 1.0

    @property
    def variant(self) -> str:
        bound = f"constraint {self.alpha:g}" if self.alpha else ""
        return ", ".join(filter(None, (f"{self.terms:g} terms" if self.terms else "Cayley", bound)))

    def fit(self, shape: Shape) -> None:
        _, inner, taps = matrix_dims(shape)
        if self.blocks.dim() != 3 or self.blocks.shape[1] != self.blocks.shape[2]:
            raise BadAdapter(f"oft_R is {tuple(self.blocks.shape)}, not a list of square blocks")
        if self.terms not in range(_MOST_TERMS + 1):
            raise BadAdapter(f"oft_terms is {self.terms:g}, not a number of terms")
        count, size, _ = self.blocks.shape
        if inner * taps != count * size and (count > 1 or inner * taps % size):
            raise BadAdapter(f"oft_R has {count} blocks of {size}, the weight {inner * taps} input columns")

    def action(self, strength: Strength) -> Action:
        return Mapped(columns=Blocks(self.turns(strength).transpose(-1, -2)))

    def row_step(self, shape: Shape, at_most: int) -> int:
        return at_most

    def rows(self, start: int, stop: int, shape: Shape) -> Self:
        return self

    def turns(self, strength: Strength) -> Tensor:
        """`I + s · (R - I)`, `(n, b, b)`."""
        turn = skew(self.blocks)
        if self.alpha:
            norm = torch.linalg.vector_norm(turn, dim=(-2, -1), keepdim=True)
            turn = turn * (self.alpha / self.blocks.shape[0] ** 0.5 / norm).clamp(max=1.0)
        return neumann(turn, int(self.terms), strength) if self.terms else cayley(-turn, strength)

    @classmethod
    def factor_shapes(cls, shape: Shape, layout: frozenset[str], rank: int) -> dict[str, tuple[int, ...]]:
        _, inner, taps = matrix_dims(shape)
        columns = inner * taps
        sizes = [size for size in range(2, columns + 1) if columns % size == 0]
        if not sizes:
            raise BadAdapter("a rotation of columns needs more than one input column")
        size = min(sizes, key=lambda each: abs(each - rank))
        return {"blocks": (1 if rank % 4 == 0 else columns // size, size, size)}

    @classmethod
    def random_scalars(cls, rank: int) -> dict[str, float]:
        return {"terms": float((0, 5, 3, 2, 7)[rank % 5])}
