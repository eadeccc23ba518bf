"""Families that say the shapes of their factors in words, and those whose effect is an expression of the algebra."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor

from lyc_fx.adapters.adapter import Adapter, Strength
from lyc_fx.algebra import Dims, Shape, Structure, cuts, factor_shapes
from lyc_fx.algebra.action import Action
from lyc_fx.algebra.added import Added
from lyc_fx.algebra.new import new_shapes

if TYPE_CHECKING:
    from lyc_fx.algorithms.locon import LoCon


@dataclass(frozen=True, eq=False, kw_only=True)
class Shaped(Adapter):
    """A family that declares `variants`: for each layout, by its name, the shapes of its factors in the words of
    `lyc_fx.algebra.factor_shapes`. From these follow `layouts`, `vectors`, `rank`, `uses_alpha` (which may be declared
    as False where there is a rank) and all about shapes.
    """

    variants: ClassVar[Mapping[str, Dims]]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        declared = vars(cls)
        if "variants" in declared and "layouts" not in declared:
            cls.layouts = layouts_of(cls.variants)
        if "variants" in declared and "vectors" not in declared:
            named = [each for shapes in cls.variants.values() for each in shapes.items()]
            cls.vectors |= {name for name, words in named if factor_shapes.is_vector(words.split())}

    @property
    def kind(self) -> str:
        """Which of the variants this is, by the factors that are present."""
        present = self.factors().keys()
        held = (name for name, shapes in self.variants.items() if shapes.keys() <= present)
        return max(held, key=lambda name: len(self.variants[name]))

    @property
    def shapes(self) -> Dims:
        """Of the factors that are present."""
        return self.variants[self.kind]

    @property
    def variant(self) -> str:
        return self.kind

    @property
    def rank(self) -> int | None:
        return factor_shapes.rank(self.shapes, self.factors())

    @property
    def uses_alpha(self) -> bool:
        return self.rank is not None

    def fit(self, shape: Shape) -> None:
        factor_shapes.fit(self.shapes, self.suffixes, self.factors(), shape)

    def weight_shape(self) -> tuple[int, ...] | None:
        return factor_shapes.weight_shape(self.shapes, self.factors())

    def mixes_rows(self, shape: Shape) -> bool:
        """Whether rows depend on each other, or differ, otherwise than the words say."""
        return False

    def row_step(self, shape: Shape, at_most: int) -> int | None:
        return None if self.mixes_rows(shape) else cuts.row_step(self.shapes, self.factors(), at_most)

    def rows(self, start: int, stop: int, shape: Shape) -> Adapter:
        cut = None if self.mixes_rows(shape) else cuts.of_rows(self.shapes, self.factors(), start, stop, shape)
        return super().rows(start, stop, shape) if cut is None else self.with_factors(cut)

    @classmethod
    def factor_shapes(cls, shape: Shape, layout: frozenset[str], rank: int) -> dict[str, tuple[int, ...]]:
        shapes = next(shapes for shapes in cls.variants.values() if shapes.keys() == layout)
        made = new_shapes(shapes, shape, rank)
        return {name: made[name] for name in cls.suffixes if name in made}


def layouts_of(variants: Mapping[str, Dims]) -> tuple[frozenset[str], ...]:
    """The sets of factors of these variants."""
    return tuple(dict.fromkeys(frozenset(shapes) for shapes in variants.values()))


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

    def rows(self, start: int, stop: int, shape: Shape) -> Adapter:
        """Of the low-rank form, where no cut of the factors describes exactly these rows."""
        if cuts.of_rows(self.shapes, self.factors(), start, stop, shape) is None:
            return self.low_rank(shape).rows(start, stop, shape)
        return super().rows(start, stop, shape)

    def low_rank(self, shape: Shape) -> "LoCon":
        """In float64: `lyc_fx.algebra.Structure.pair`."""
        from lyc_fx.algorithms.locon import LoCon  # which is such a family itself

        expression = self.to(torch.float64).expression()
        return super().low_rank(shape) if expression.full else LoCon.of(*expression.pair(), shape, like=self)
