"""Replace: another weight or bias in the place of the model's (ComfyUI `set_weight`, PEFT `modules_to_save`)."""

from dataclasses import dataclass, replace
from typing import Self, final

from torch import Tensor

from lyc_fx.adapters.adapter import Strength
from lyc_fx.adapters.shaped import Shaped
from lyc_fx.algebra import Shape
from lyc_fx.algebra.action import Action, Whole


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Replace(Shaped):
    """`W' = (1 - s) · W + s · V`, for a parameter of any shape.

    This is W + s (V - W) with another rounding: at strength 1 it is V itself, also where V - W has no exact
    float. Files hold V as the model stores its weight; where that is `(in, out)`, V is turned like the weight.
    """

    name = "replace"
    suffixes = {"value": "set_weight"}
    bias_suffixes = {"value": "set_bias"}
    variants = {"": {"value": "weight"}}

    value: Tensor
    """V, in the shape of the parameter"""

    def oriented(self, stored: Shape, transposed: bool) -> Self:
        return replace(self, value=self.value.t()) if transposed and self.value.shape == tuple(stored) else self

    def weight_shape(self) -> None:
        """Whether V lies `(out, in)`, only the model tells."""

    def action(self, strength: Strength) -> Action:
        return Whole(
            lambda weight: weight * (1 - strength) + self.value * strength, "another weight is as large as the first"
        )
