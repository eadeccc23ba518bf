"""Gain: one learned factor per element of a vector, such as the bias of a layer whose output IA3 scales (PEFT)."""

from dataclasses import dataclass, replace
from typing import Self, final

from torch import Tensor

from lyc_fx.errors import BadAdapter
from lyc_fx.families.adapter import Adapter, Strength
from lyc_fx.families.shapes import Shape, expect


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Gain(Adapter):
    """`b'[o] = b[o] · (1 + s · g[o])`, for a bias or another vector."""

    name = "gain"
    suffixes = {"gain": "gain"}
    bias_suffixes = {"gain": "gain_b"}
    layouts = (frozenset({"gain"}),)
    vectors = frozenset({"gain"})
    keeps_zero = True

    gain: Tensor
    """`(channels)`"""

    @property
    def uses_alpha(self) -> bool:
        return False

    def fit(self, shape: Shape) -> None:
        if len(shape) != 1:
            raise BadAdapter(f"a gain is for a vector, not for shape {tuple(shape)}")
        expect("the gain", self.gain.shape, shape)

    def apply(self, weight: Tensor, strength: Strength) -> Tensor:
        return weight * (1 + strength * self.gain)

    def row_step(self, shape: Shape, at_most: int) -> int:
        return at_most

    def rows(self, start: int, stop: int, shape: Shape) -> Self:
        return replace(self, gain=self.gain[start:stop])

    @classmethod
    def factor_shapes(cls, shape: Shape, layout: frozenset[str], rank: int) -> dict[str, tuple[int, ...]]:
        if len(shape) != 1:
            raise BadAdapter("a gain is for a vector")
        return {"gain": tuple(shape)}
