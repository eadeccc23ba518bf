"""Families that say the shapes of their factors in words, and those whose effect is an expression of the algebra."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from lyc_fx.adapters.adapter import Adapter, Strength
from lyc_fx.algebra import Dims, Shape, Structure, cuts, factor_shapes
from lyc_fx.algebra.action import Action
from lyc_fx.algebra.added import Added
from lyc_fx.algebra.new import new_shapes


@dataclass(frozen=True, eq=False, kw_only=True)
class Shaped(Adapter):
    """A family that declares, besides what every one does, `variants`: for each layout, by its name, the shapes of its
    factors in the words of `lyc_fx.algebra.factor_shapes`. `layouts` are `layouts_of(variants)`.
    """

    variants: ClassVar[Mapping[str, Dims]]

    @property
    def shapes(self) -> Dims:
        """Of the factors that are present."""
        return self._variant[1]

    @property
    def variant(self) -> str:
        return self._variant[0]

    @property
    def _variant(self) -> tuple[str, Dims]:
        present = self.factors().keys()
        held = ((name, shapes) for name, shapes in self.variants.items() if shapes.keys() <= present)
        return max(held, key=lambda variant: len(variant[1]))

    def fit(self, shape: Shape) -> None:
        factor_shapes.fit(self.shapes, self.suffixes, self.factors(), shape)

    def weight_shape(self) -> tuple[int, ...] | None:
        return factor_shapes.weight_shape(self.shapes, self.factors())

    def row_step(self, shape: Shape, at_most: int) -> int | None:
        return cuts.row_step(self.shapes, self.factors(), at_most)

    def rows(self, start: int, stop: int, shape: Shape) -> Adapter:
        cut = cuts.of_rows(self.shapes, self.factors(), start, stop)
        return self.low_rank(shape).rows(start, stop, shape) if cut is None else self.with_factors(cut)

    @classmethod
    def factor_shapes(cls, shape: Shape, layout: frozenset[str], rank: int) -> dict[str, tuple[int, ...]]:
        shapes = next(shapes for shapes in cls.variants.values() if shapes.keys() == layout)
        made = new_shapes(shapes, shape, rank)
        return {name: made[name] for name in cls.suffixes if name in made}


def layouts_of(variants: Mapping[str, Dims]) -> tuple[frozenset[str], ...]:
    """The sets of factors of these variants."""
    return tuple(frozenset(shapes) for shapes in variants.values())


@dataclass(frozen=True, eq=False, kw_only=True)
class Additive(Shaped):
    """A family whose effect is a sum: `W + strength · scale · expression`, with no use of W's values."""

    @abstractmethod
    def expression(self) -> Structure:
        """The change of the weight before scale and strength."""

    @property
    def additive(self) -> bool:
        return True

    @final
    def product(self, shape: Shape) -> Tensor:
        """The expression's value, in the weight's shape."""
        return self.expression().value(shape)

    @final
    def delta(self, shape: Shape) -> Tensor:
        """ΔW at strength 1."""
        return self.product(shape) * self.scale

    def action(self, strength: Strength) -> Action:
        scale = self.scale
        return Added(self.expression(), strength if isinstance(scale, float) and scale == 1 else strength * scale)
