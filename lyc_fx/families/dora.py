"""DoRA: weight decomposition into magnitude and direction (arXiv:2402.09353), a modifier of additive families."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from lyc_fx.errors import BadAdapter
from lyc_fx.families.adapter import Adapter, Strength
from lyc_fx.families.additive import Additive
from lyc_fx.families.shapes import Shape

DORA: Mapping[str, str] = {"magnitude": "dora_scale"}
"""The suffix that a family which may be decomposed adds to its own."""
_EPSILON = torch.finfo(torch.float32).eps
"""LyCORIS adds the epsilon of dora_scale's dtype to the norm; it trains and loads that in float32."""


def decomposed(*layouts: frozenset[str]) -> tuple[frozenset[str], ...]:
    """The layouts of a family, each without and with a magnitude."""
    return (*layouts, *(layout | {"magnitude"} for layout in layouts))


@dataclass(frozen=True, eq=False, kw_only=True)
class Decomposable(Additive):
    """An additive family that may carry a magnitude m. With one, at strength 1:

    `W' = m · V / (‖V‖ + ε)`, `V = W + ΔW`, ε = 2⁻²³: the norm is that of the *merged* weight, taken over all
    dimensions but the output (m of shape `(out, 1…)` or `(out)`) or but the input (m of shape `(1, in/groups, 1…)`).

    Strength s: `W + s · (W' - W)`; convention "lycoris": `V · (1 + s · (m / (‖V‖ + ε) - 1))`, which is V, not W,
    at strength 0.
    """

    vectors = frozenset({"magnitude"})

    magnitude: Tensor | None = None

    @abstractmethod
    def fit_product(self, shape: Shape) -> None:
        """Raise BadAdapter unless the factors besides the magnitude fit a weight of this shape."""

    @classmethod
    @abstractmethod
    def product_shapes(cls, shape: Shape, layout: frozenset[str], rank: int) -> dict[str, tuple[int, ...]]:
        """`factor_shapes` besides the magnitude."""

    @property
    @final
    def additive(self) -> bool:
        return self.magnitude is None

    @final
    def with_dora(self, variant: str) -> str:
        """The variant's name with the decomposition named."""
        return ", ".join(filter(None, (variant, "dora" if self.magnitude is not None else "")))

    @final
    def inert(self, strength: float) -> bool:
        return strength == 0 and (self.magnitude is None or self.convention == "interpolate")

    @final
    def fit(self, shape: Shape) -> None:
        self.fit_product(shape)
        if self.magnitude is not None:
            _kept(self.magnitude, shape)

    @final
    def row_step(self, shape: Shape, at_most: int) -> int | None:
        per_input = self.magnitude is not None and _kept(self.magnitude, shape) != 0
        return None if per_input else self.product_step(at_most)

    def product_step(self, at_most: int) -> int:
        """`row_step` besides the magnitude."""
        return at_most

    @final
    def magnitude_rows(self, start: int, stop: int, shape: Shape) -> Tensor | None:
        """The magnitude's part for some output rows. Raises BadAdapter for one per input."""
        if self.magnitude is None:
            return None
        if _kept(self.magnitude, shape) != 0:
            raise BadAdapter(
                "a magnitude per input is taken over all rows of a fused weight, and the model has them apart"
            )
        return self.magnitude[start:stop]

    @final
    def columns(self, start: int, stop: int, shape: Shape) -> "Adapter | None":
        if self.magnitude is None:
            return self.product_columns(start, stop, shape)
        cut = self.product_columns(start, stop, shape) if _kept(self.magnitude, shape) == 1 else None
        return None if cut is None else replace(cut, magnitude=self.magnitude[:, start:stop])

    def product_columns(self, start: int, stop: int, shape: Shape) -> "Decomposable | None":
        """`columns` besides the magnitude."""
        return None

    @final
    def change(self, weight: Tensor, strength: Strength) -> Tensor:
        if self.magnitude is None:
            return super().change(weight, strength)
        return self.apply(weight, strength) - weight

    @final
    def apply(self, weight: Tensor, strength: Strength) -> Tensor:
        if self.magnitude is None:
            return super().apply(weight, strength)
        direction = weight + self.delta(weight.shape)
        ratio = self._ratio(direction)
        if self.convention == "lycoris":
            return direction * (1 + strength * (ratio - 1))
        return weight + strength * (direction * ratio - weight)

    @final
    def apply_to(self, weight: Tensor, strength: float) -> None:
        if self.magnitude is None:
            self.add_to(weight, strength * self.scale)
            return
        before = weight.clone() if self.convention == "interpolate" and strength != 1 else None
        self.add_to(weight, self.scale)
        ratio = self._ratio(weight)
        weight *= ratio * strength if self.convention == "interpolate" else 1 + strength * (ratio - 1)
        if before is not None:
            weight.add_(before, alpha=1 - strength)

    def _ratio(self, direction: Tensor) -> Tensor:
        """m / (‖V‖ + ε)"""
        assert self.magnitude is not None
        kept = _kept(self.magnitude, direction.shape)
        over = [d for d in range(direction.dim()) if d != kept]
        norm = torch.linalg.vector_norm(direction, dim=over, keepdim=True) + _EPSILON
        return self.magnitude.reshape(norm.shape) / norm

    @classmethod
    @final
    def factor_shapes(cls, shape: Shape, layout: frozenset[str], rank: int) -> dict[str, tuple[int, ...]]:
        shapes = cls.product_shapes(shape, layout - {"magnitude"}, rank)
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
