"""Gain: one learned factor per element of a vector, such as the bias of a layer whose output IA3 scales (PEFT)."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from lyc_fx.adapters.adapter import Strength
from lyc_fx.adapters.shaped import Shaped, layouts_of
from lyc_fx.algebra import Shape
from lyc_fx.algebra.action import Action
from lyc_fx.algebra.mapped import Mapped
from lyc_fx.algebra.maps import Diagonal
from lyc_fx.errors import BadAdapter


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Gain(Shaped):
    """`b'[o] = b[o] · (1 + s · g[o])`, for a bias or another vector."""

    name = "gain"
    suffixes = {"gain": "gain"}
    bias_suffixes = {"gain": "gain_b"}
    variants = {"": {"gain": "weight"}}
    layouts = layouts_of(variants)
    uses_alpha = False
    vectors = frozenset({"gain"})
    keeps_zero = True

    gain: Tensor
    """`(channels)`"""

    def fit(self, shape: Shape) -> None:
        if len(shape) != 1:
            raise BadAdapter(f"a gain is for a vector, not for shape {tuple(shape)}")
        super().fit(shape)

    def action(self, strength: Strength) -> Action:
        return Mapped(rows=Diagonal(1 + strength * self.gain))

    @classmethod
    def factor_shapes(cls, shape: Shape, layout: frozenset[str], rank: int) -> dict[str, tuple[int, ...]]:
        if len(shape) != 1:
            raise BadAdapter("a gain is for a vector")
        return super().factor_shapes(shape, layout, rank)
