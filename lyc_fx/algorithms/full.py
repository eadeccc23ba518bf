"""Full: the whole difference of a weight or a bias (LyCORIS "full", ComfyUI `diff`, `diff_b`)."""

from dataclasses import dataclass
from math import prod
from typing import final

from torch import Tensor

from lyc_fx.adapters.shaped import Additive
from lyc_fx.algebra import Dense, Shape, Structure


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Full(Additive):
    """`ΔW = diff`, for a weight of any shape; `diff_b` likewise for the bias."""

    name = "full"
    suffixes = {"diff": "diff"}
    bias_suffixes = {"diff": "diff_b"}
    variants = {"": {"diff": "weight"}}

    diff: Tensor

    def fit(self, shape: Shape) -> None:
        flat = (shape[0], prod(shape[1:])) if shape else ()
        if tuple(self.diff.shape) != flat:  # an extraction's residual is stored as a matrix
            super().fit(shape)

    def expression(self) -> Structure:
        return Dense(self.diff)
