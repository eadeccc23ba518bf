"""Full: the whole difference of a weight or a bias (LyCORIS "full", ComfyUI `diff`, `diff_b`)."""

from dataclasses import dataclass
from math import prod
from typing import final

from torch import Tensor

from lyc_fx.families.additive import Additive
from lyc_fx.families.shapes import Shape, expect
from lyc_fx.families.tensors import shaped


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Full(Additive):
    """`ΔW = diff`, for a weight of any shape; `diff_b` likewise for the bias."""

    name = "full"
    suffixes = {"diff": "diff"}
    bias_suffixes = {"diff": "diff_b"}
    layouts = (frozenset({"diff"}),)
    vectors = frozenset({"diff"})

    diff: Tensor

    @property
    def uses_alpha(self) -> bool:
        return False

    def fit(self, shape: Shape) -> None:
        flat = (shape[0], prod(shape[1:])) if shape else ()
        if tuple(self.diff.shape) != flat:  # an extraction's residual is stored as a matrix
            expect("the difference", self.diff.shape, shape)

    def weight_shape(self) -> tuple[int, ...]:
        return tuple(self.diff.shape)

    def row_step(self, shape: Shape, at_most: int) -> int:
        return at_most

    def rows(self, start: int, stop: int, shape: Shape) -> "Full":
        return Full(diff=self.diff[start:stop])

    def product(self, shape: Shape) -> Tensor:
        return shaped(self.diff, shape)

    @classmethod
    def factor_shapes(cls, shape: Shape, layout: frozenset[str], rank: int) -> dict[str, tuple[int, ...]]:
        return {"diff": tuple(shape)}
