"""DoRA: weight decomposition into magnitude and direction (arXiv:2402.09353), a modifier of additive families.

It is computed by `lyc_fx.algebra.normed`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from lyc_fx.adapters.adapter import Adapter, Strength
from lyc_fx.adapters.shaped import Additive
from lyc_fx.algebra import Shape, cuts
from lyc_fx.algebra.action import Action
from lyc_fx.algebra.normed import Normed
from lyc_fx.errors import BadAdapter

DORA: Mapping[str, str] = {"magnitude": "dora_scale"}
"""The suffix that a family which may be decomposed adds to its own."""
_EPSILON = torch.finfo(torch.float32).eps
"""LyCORIS adds the epsilon of dora_scale's dtype to the norm; it trains and loads that in float32."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Decomposable(Additive):
    """An additive family of which each layout may carry a magnitude m. With one, at strength 1:

    `W' = m · V / (‖V‖ + ε)`, `V = W + ΔW`, ε = 2⁻²³: the norm is that of the *merged* weight, taken over all
    dimensions but the output (m of shape `(out, 1…)` or `(out)`) or but the input (m of shape `(1, in/groups, 1…)`).

    Strength s: `W + s · (W' - W)`; convention "lycoris": `V · (1 + s · (m / (‖V‖ + ε) - 1))`, which is V, not W,
    at strength 0.
    """

    vectors = frozenset({"magnitude"})

    magnitude: Tensor | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.layouts = (*cls.layouts, *(layout | {"magnitude"} for layout in cls.layouts))

    @property
    @final
    def additive(self) -> bool:
        return self.magnitude is None

    @property
    @final
    def variant(self) -> str:
        return ", ".join(filter(None, (super().variant, "dora" if self.magnitude is not None else "")))

    @final
    def inert(self, strength: float) -> bool:
        return strength == 0 and (self.magnitude is None or self.convention == "interpolate")

    def fit(self, shape: Shape) -> None:
        super().fit(shape)
        if self.magnitude is not None:
            _kept(self.magnitude, shape)

    @final
    def row_step(self, shape: Shape, at_most: int) -> int | None:
        return None if self._axis(shape) == 1 else super().row_step(shape, at_most)

    @final
    def rows(self, start: int, stop: int, shape: Shape) -> Adapter:
        if self._axis(shape) == 1:
            raise BadAdapter(
                "a magnitude per input is taken over all rows of a fused weight, and the model has them apart"
            )
        cut = super().rows(start, stop, shape)
        if self.magnitude is None or not isinstance(cut, type(self)):  # else it was cut with the factors
            return cut
        return replace(cut, magnitude=self.magnitude[start:stop])

    @final
    def columns(self, start: int, stop: int, shape: Shape) -> Adapter | None:
        if self._axis(shape) == 0:
            return None
        cut = cuts.of_columns(self.shapes, self.factors(), start, stop, shape)
        if cut is not None and self.magnitude is not None:
            cut["magnitude"] = self.magnitude[:, start:stop]
        return None if cut is None else self.with_factors(cut)

    @final
    def action(self, strength: Strength) -> Action:
        if self.magnitude is None:
            return super().action(strength)
        return Normed(
            structure=self.expression(),
            scale=self.scale,
            magnitude=self.magnitude,
            strength=strength,
            epsilon=_EPSILON,
            from_changed=self.convention == "lycoris",
        )

    def _axis(self, shape: Shape) -> int | None:
        """The dimension that has a magnitude per index; None without one."""
        return None if self.magnitude is None else _kept(self.magnitude, shape)

    @classmethod
    @final
    def factor_shapes(cls, shape: Shape, layout: frozenset[str], rank: int) -> dict[str, tuple[int, ...]]:
        shapes = super().factor_shapes(shape, layout - {"magnitude"}, rank)
        if "magnitude" not in layout:
            return shapes
        axis = rank % 2  # so that random adapters come with both axes
        return shapes | {"magnitude": tuple(size if d == axis else 1 for d, size in enumerate(shape))}


def _kept(magnitude: Tensor, shape: Shape) -> int:
    """The weight's dimension that has a magnitude per index: 0 for the output, 1 for the input."""
    given = tuple(magnitude.shape)
    ones = (1,) * (len(shape) - 2)
    if given in ((shape[0],), (shape[0], 1, *ones)):
        return 0
    if given == (1, shape[1], *ones):
        return 1
    raise BadAdapter(
        f"dora_scale is {given}, the weight asks for {(shape[0], 1, *ones)} (output) or {(1, shape[1], *ones)} (input)"
    )
