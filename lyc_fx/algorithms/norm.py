"""Norm: the difference of a normalization layer's weight and bias (LyCORIS `train_norm`)."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from lyc_fx.adapters.shaped import Additive
from lyc_fx.algebra import Dense, Shape, Structure
from lyc_fx.errors import BadAdapter


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Norm(Additive):
    """`ΔW = w_norm`, of LayerNorm, GroupNorm, RMSNorm or batch norm; `b_norm` likewise for the bias."""

    name = "norm"
    suffixes = {"difference": "w_norm"}
    bias_suffixes = {"difference": "b_norm"}
    variants = {"": {"difference": "weight"}}

    difference: Tensor

    def expression(self) -> Structure:
        return Dense(self.difference)

    @classmethod
    def factor_shapes(cls, shape: Shape, layout: frozenset[str], rank: int) -> dict[str, tuple[int, ...]]:
        if len(shape) != 1:
            raise BadAdapter("a normalization layer's weight has one dimension")
        return super().factor_shapes(shape, layout, rank)
