"""Norm: the difference of a normalization layer's weight and bias (LyCORIS `train_norm`)."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from lyc_fx.errors import BadAdapter
from lyc_fx.families.additive import Additive
from lyc_fx.families.shapes import Shape, expect


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Norm(Additive):
    """`ΔW = w_norm`, of LayerNorm, GroupNorm, RMSNorm or batch norm; `b_norm` likewise for the bias."""

    name = "norm"
    suffixes = {"difference": "w_norm"}
    bias_suffixes = {"difference": "b_norm"}
    layouts = (frozenset({"difference"}),)
    vectors = frozenset({"difference"})

    difference: Tensor
    """`(channels)`"""

    @property
    def uses_alpha(self) -> bool:
        return False

    def fit(self, shape: Shape) -> None:
        expect("the difference", self.difference.shape, shape)

    def weight_shape(self) -> tuple[int, ...]:
        return tuple(self.difference.shape)

    def row_step(self, shape: Shape, at_most: int) -> int:
        return at_most

    def rows(self, start: int, stop: int, shape: Shape) -> "Norm":
        return Norm(difference=self.difference[start:stop])

    def product(self, shape: Shape) -> Tensor:
        return self.difference

    @classmethod
    def factor_shapes(cls, shape: Shape, layout: frozenset[str], rank: int) -> dict[str, tuple[int, ...]]:
        if len(shape) != 1:
            raise BadAdapter("a normalization layer's weight has one dimension")
        return {"difference": tuple(shape)}
