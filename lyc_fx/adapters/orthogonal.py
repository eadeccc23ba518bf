"""Rotations by orthogonal blocks from skew ones, with a bound on these; and what Diag-OFT and BOFT share besides."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from lyc_fx.adapters.adapter import Strength
from lyc_fx.adapters.shaped import Shaped
from lyc_fx.algebra.action import Action
from lyc_fx.algebra.mapped import Mapped
from lyc_fx.algebra.maps import Compose, Diagonal, Map
from lyc_fx.algebra.rotations import cayley, skew
from lyc_fx.algebra.shapes import Shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Bounded(Shaped):
    """A family whose `alpha` is a bound on its generators (COFT), no scale: 0 is none."""

    alpha_bounds = True

    blocks: Tensor
    """The generators B, before they are made skew"""

    @property
    def variant(self) -> str:
        return ", ".join(filter(None, (f"constraint {self.alpha:g}" if self.alpha else "", self.kind)))

    @final
    def bounded(self, turn: Tensor, norm: Tensor, bound: float) -> Tensor:
        """A skew matrix that is shrunk to a norm where its own is above that."""
        return turn * (bound / norm).clamp(max=1.0)


@dataclass(frozen=True, eq=False, kw_only=True)
class Orthogonal(Bounded):
    """A family that rotates the output rows of the weight, and then rescales them.

    The rotation follows the reference at every strength. The rescaling is `1 + s · (rescale - 1)`; convention
    "lycoris" has `rescale` at every strength, also at 0.
    """

    rescale: Tensor | None = None

    @abstractmethod
    def rotation(self, strength: Strength) -> tuple[Map, ...]:
        """What is done to the rows, in this order."""

    @final
    def inert(self, strength: float) -> bool:
        return strength == 0 and (self.rescale is None or self.convention == "interpolate")

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
            turn = self.bounded(turn, torch.linalg.vector_norm(turn) + 1e-8, self.alpha * out)
        return cayley(turn, strength)
