"""Replace: another weight or bias in the place of the model's (ComfyUI `set_weight`, PEFT `modules_to_save`)."""

from dataclasses import dataclass, replace
from typing import Self, final

from torch import Tensor

from lyc_fx.families.adapter import Adapter, Strength
from lyc_fx.families.shapes import Shape, expect


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Replace(Adapter):
    """`W' = (1 - s) · W + s · V`, for a parameter of any shape.

    This is W + s (V - W) with another rounding: at strength 1 it is V itself, also where V - W has no exact
    float. Files hold V as the model stores its weight; where that is `(in, out)`, V is turned like the weight.
    """

    name = "replace"
    suffixes = {"value": "set_weight"}
    bias_suffixes = {"value": "set_bias"}
    layouts = (frozenset({"value"}),)
    vectors = frozenset({"value"})

    value: Tensor
    """V, in the shape of the parameter"""

    @property
    def uses_alpha(self) -> bool:
        return False

    def oriented(self, stored: Shape, transposed: bool) -> Self:
        return replace(self, value=self.value.t()) if transposed and self.value.shape == tuple(stored) else self

    def fit(self, shape: Shape) -> None:
        expect("the value", self.value.shape, shape)

    def apply(self, weight: Tensor, strength: Strength) -> Tensor:
        return weight * (1 - strength) + self.value * strength

    def row_step(self, shape: Shape, at_most: int) -> int:
        return at_most

    def rows(self, start: int, stop: int, shape: Shape) -> Self:
        return replace(self, value=self.value[start:stop])

    @classmethod
    def factor_shapes(cls, shape: Shape, layout: frozenset[str], rank: int) -> dict[str, tuple[int, ...]]:
        return {"value": tuple(shape)}
