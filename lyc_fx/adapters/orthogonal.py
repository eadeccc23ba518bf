"""What Diag-OFT and BOFT share: orthogonal blocks from skew ones, a bound on them, and a rescaling of rows."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from lyc_fx.adapters.adapter import Adapter, Strength
from lyc_fx.algebra.action import Action
from lyc_fx.algebra.mapped import Mapped
from lyc_fx.algebra.maps import Compose, Diagonal, Map
from lyc_fx.algebra.rotations import cayley, skew
from lyc_fx.algebra.shapes import Shape, matrix_dims
from lyc_fx.errors import BadAdapter


@dataclass(frozen=True, eq=False, kw_only=True)
class Orthogonal(Adapter):
    """A family that rotates the output rows of the weight, and then rescales them.

    The rotation follows the reference at every strength. The rescaling is `1 + s · (rescale - 1)`; convention
    "lycoris" has `rescale` at every strength, also at 0. `alpha` is a bound (COFT), no scale: 0 is none.
    """

    alpha_bounds = True
    vectors = frozenset({"rescale"})

    blocks: Tensor
    rescale: Tensor | None = None
    """`(out, 1…)`"""

    @abstractmethod
    def rotation(self, strength: Strength) -> tuple[Map, ...]:
        """What is done to the rows, in this order."""

    @abstractmethod
    def fit_blocks(self, out: int) -> None:
        """Raise BadAdapter unless the blocks fit this many output rows."""

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
        return ", ".join(filter(None, (bound, "rescale" if self.rescale is not None else "")))

    @final
    def inert(self, strength: float) -> bool:
        return strength == 0 and (self.rescale is None or self.convention == "interpolate")

    @final
    def fit(self, shape: Shape) -> None:
        matrix_dims(shape)
        if self.blocks.shape[-1] != self.blocks.shape[-2]:
            raise BadAdapter(f"oft_blocks is {tuple(self.blocks.shape)}, its blocks are not square")
        self.fit_blocks(shape[0])
        if self.rescale is not None and self.rescale.numel() != shape[0]:
            raise BadAdapter(f"rescale is {tuple(self.rescale.shape)}, the weight has {shape[0]} output rows")

    @final
    def columns(self, start: int, stop: int, shape: Shape) -> Self:
        return self

    @final
    def action(self, strength: Strength) -> Action:
        rotation = self.rotation(strength)
        if self.rescale is None:
            return Mapped(rows=Compose(rotation))
        rescale = self.rescale.reshape(-1)
        factors = rescale if self.convention == "lycoris" else 1 + strength * (rescale - 1)
        return Mapped(rows=Compose((*rotation, Diagonal(factors))))

    @final
    def turns(self, out: int, strength: Strength) -> Tensor:
        """`I + s · (R - I)` for each block, with Cayley's `R = (I + Q)(I - Q)⁻¹`, `Q = B - Bᵀ`.

        With a constraint c, Q is shrunk to the norm `c · out` (over all blocks) where it exceeds that.
        """
        turn = skew(self.blocks)
        if self.alpha:
            norm = torch.linalg.vector_norm(turn) + 1e-8
            turn = turn * (self.alpha * out / norm).clamp(max=1.0)
        return cayley(turn, strength)
