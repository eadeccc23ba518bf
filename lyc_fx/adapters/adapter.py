"""What an adapter family is: named factors, the shapes that they may have, and one formula."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar, Self, final

import torch
from torch import Tensor

from lyc_fx.adapters.numbers import number, unusable
from lyc_fx.algebra.action import Action
from lyc_fx.algebra.shapes import Shape
from lyc_fx.choices import Convention
from lyc_fx.errors import BadAdapter

if TYPE_CHECKING:
    from lyc_fx.algorithms.locon import LoCon

Strength = float | Tensor
"""The user's multiplier: a Python number, or a 0-dim tensor where a program may change it later."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Adapter(ABC):
    """One adapter of one weight: the factors of its family as tensors, and `apply`.

    A family is a final subclass. It declares:

    - `name`: the algorithm's name;
    - `suffixes`: for each factor (a field), its key suffix in a LyCORIS file;
    - `layouts`: the sets of factors that make a complete adapter;
    - `bias_suffixes`: the same as `suffixes` where the adapter is one of a module's bias;
    - `scalars`: fields that are one number each, with their key suffix;
    - `vectors`: factors that may have fewer than two dimensions;
    - `keeps_zero`: whether zero stays zero, so that it can be skipped for a bias that the model lacks;
    - `uses_alpha`: False where alpha has no effect;
    - `alpha_bounds`: whether `alpha` is a bound (OFT's constraint) rather than a scale's numerator;
    - `factor_shapes`, `fit` and `action`. Subclass `Shaped` to derive these but `action`, and `layouts`, `vectors`,
      `rank` and `uses_alpha`, from `variants`: shapes in words; subclass `Additive` to derive `action` and `low_rank`
      from an `expression` too.
    """

    name: ClassVar[str]
    suffixes: ClassVar[Mapping[str, str]]
    bias_suffixes: ClassVar[Mapping[str, str]] = {}
    scalars: ClassVar[Mapping[str, str]] = {}
    vectors: ClassVar[frozenset[str]] = frozenset()
    alpha_bounds: ClassVar[bool] = False
    keeps_zero: ClassVar[bool] = False
    layouts: ClassVar[tuple[frozenset[str], ...]]

    alpha: float | None = None
    """Numerator of the scale, as stored (LyCORIS: 0-dim float tensor); None where the file has none."""
    convention: Convention = "interpolate"

    @abstractmethod
    def fit(self, shape: Shape) -> None:
        """Raise BadAdapter unless the factors fit a weight of this shape, `(out, in/groups, *kernel)`."""

    @abstractmethod
    def action(self, strength: Strength) -> Action:
        """What this does to a weight, in the algebra. Strength 1 is the trained effect."""

    @final
    def apply(self, weight: Tensor, strength: Strength) -> Tensor:
        """The adapted weight. Factors and weight have one floating dtype."""
        return self.action(strength).value(weight)

    @final
    def change(self, weight: Tensor, strength: Strength) -> Tensor:
        """`apply(weight, strength) - weight`, so that several adapters can be summed relative to the base."""
        return self.action(strength).change(weight)

    @final
    def apply_to(self, weight: Tensor, strength: float) -> None:
        """`weight ← apply(weight, strength)`, in place; `weight` is contiguous and has the factors' dtype."""
        self.action(strength).add_into(weight)

    def oriented(self, stored: Shape, transposed: bool) -> Self:
        """This adapter with its factors for `(out, in)`, given the shape in which the model stores the weight.

        `transposed` says that this is `(in, out)`. Factors lie `(out, in)` in nearly all families.
        """
        return self

    @classmethod
    @abstractmethod
    def factor_shapes(cls, shape: Shape, layout: frozenset[str], rank: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the factors of a new adapter of this layout for a weight of this shape.

        Raises BadAdapter where the layout does not exist for such a weight.
        """

    @property
    def additive(self) -> bool:
        """Whether the effect is `W + strength · ΔW` with a ΔW that does not depend on W's values."""
        return False

    @property
    def rank(self) -> int | None:
        """r, read from the factors' shapes; None where the family (or the layout) has none."""
        return None

    @property
    def variant(self) -> str:
        """The layout in the field's words, such as "tucker"; "" for the plain one."""
        return ""

    def weight_shape(self) -> tuple[int, ...] | None:
        """The shape of the weight that this was made for, where the factors tell it; a kernel may be missing."""
        return None

    @property
    def uses_alpha(self) -> bool:
        """Whether `alpha` has any effect."""
        return True

    @property
    def scale(self) -> float:
        """alpha / rank; 1 where alpha is absent or 0 (LyCORIS stores and reads them so), and where it is a bound."""
        alpha = self.alpha  # in programs whose adapters can be exchanged it is traced, as a tensor
        if alpha is None or (isinstance(alpha, (int, float)) and not alpha):
            return 1.0
        if self.alpha_bounds or not self.uses_alpha or (rank := self.rank) is None:
            return 1.0
        return alpha / rank

    def rows(self, start: int, stop: int, shape: Shape) -> "Adapter":
        """The adapter of some output rows alone: `rows(a, b, W.shape).apply(W[a:b], s) = apply(W, s)[a:b]`, exactly.

        `fit(shape)` has passed. Raises BadAdapter where rows depend on each other.
        """
        raise BadAdapter(
            f"{' '.join(filter(None, (self.name, self.variant)))} changes all rows of a fused weight together, "
            "and the model has them apart"
        )

    def row_step(self, shape: Shape, at_most: int) -> int | None:
        """The largest block height ≤ `at_most` (or the least there is) at whose multiples `rows` can cut.

        None where rows depend on each other.
        """
        return None

    def columns(self, start: int, stop: int, shape: Shape) -> "Adapter | None":
        """The adapter of some inputs (dimension 1 of the weight) alone: `columns(a, b, W.shape).apply(W[:, a:b], s) =
        apply(W, s)[:, a:b]`, exactly; None where they depend on each other.

        It is only used if `row_step` gives None.
        """
        return None

    def low_rank(self, shape: Shape) -> "LoCon":
        """The same effect as plain LoCon, exactly, at every strength; in float64 where products have to be formed.

        Raises BadAdapter for a family whose effect has no such form, or depends on the weight.
        """
        raise BadAdapter(f"{' '.join(filter(None, (self.name, self.variant)))} has no exact low-rank form")

    def inert(self, strength: float) -> bool:
        """Whether this strength leaves every weight as it is."""
        return strength == 0

    def doubt(self, weight: Tensor) -> str | None:
        """Why this may not be the base weight that the adapter was trained on; None where nothing says so.

        Weight and factors have the dtypes in which they are stored.
        """
        return None

    @classmethod
    def random_scalars(cls, rank: int) -> dict[str, float]:
        """Values of `scalars` for a random adapter."""
        return {}

    @final
    def factors(self) -> dict[str, Tensor]:
        """The factors that are present, by field name, in the order of the fields."""
        named = {name: getattr(self, name) for name in self.suffixes}
        return {name: factor for name, factor in named.items() if factor is not None}

    @final
    def with_factors(self, factors: Mapping[str, Tensor]) -> Self:
        """The same adapter with other tensors for its factors."""
        changes: dict[str, Any] = dict(factors)
        return replace(self, **changes)

    @final
    def to(self, dtype: torch.dtype) -> Self:
        """The same adapter with its factors in `dtype`."""
        other = {n: f.to(dtype) for n, f in self.factors().items() if f.dtype != dtype}
        return self.with_factors(other) if other else self

    @final
    def to_device(self, device: torch.device) -> Self:
        """The same adapter with its factors on `device`."""
        other = {n: f.to(device) for n, f in self.factors().items() if f.device != device}
        return self.with_factors(other) if other else self

    @final
    def structure(self) -> tuple[Any, ...]:
        """All that the traced formula depends on besides the factors' values."""
        shapes = tuple((n, tuple(f.shape), f.dtype) for n, f in self.factors().items())
        rest = tuple(getattr(self, f.name) for f in fields(self) if f.name not in self.suffixes)
        return (type(self), shapes, rest)

    @final
    def check(self) -> None:
        """Raise BadAdapter for a factor that is no matrix of real, finite numbers, or a number that is not finite."""
        for name, factor in self.factors().items():
            fault = unusable(factor, least=0 if name in self.vectors else 2)
            if fault is not None:
                raise BadAdapter(f"{self.suffixes[name]} {fault}")
        if self.uses_alpha and self.alpha is not None and not isfinite(self.alpha):
            raise BadAdapter(f"alpha is {self.alpha}")
        for name, suffix in self.scalars.items():
            if not isfinite(getattr(self, name)):
                raise BadAdapter(f"{suffix} is {getattr(self, name)}")

    @final
    def written(self, leaf: str) -> dict[str, Tensor]:
        """The inverse of `read`: tensors by key suffix, of an adapter of a module's `weight` or `bias`."""
        suffixes = self.bias_suffixes if leaf == "bias" else self.suffixes
        tensors = {suffixes[name]: factor for name, factor in self.factors().items()}
        numbers = {suffix: torch.tensor(int(getattr(self, field))) for field, suffix in self.scalars.items()}
        alpha = {} if self.alpha is None else {"alpha": torch.tensor(self.alpha, dtype=torch.float32)}
        return tensors | numbers | alpha

    @classmethod
    @final
    def read(
        cls, tensors: Mapping[str, Tensor], alpha: float | None = None, suffixes: Mapping[str, str] | None = None
    ) -> Self:
        """From tensors by key suffix. Raises BadAdapter, naming the suffixes, unless they are one layout."""
        suffixes = cls.suffixes if suffixes is None else suffixes
        given = frozenset(field for field, suffix in suffixes.items() if suffix in tensors)
        if given not in cls.layouts:
            nearest = min(cls.layouts, key=lambda layout: (len(layout ^ given), sorted(layout)))
            missing = [suffixes[f] for f in suffixes if f in nearest - given]
            extra = [suffixes[f] for f in suffixes if f in given - nearest]
            said = [f"without {', '.join(missing)}"] * bool(missing) + [f"with {', '.join(extra)}"] * bool(extra)
            raise BadAdapter(f"{cls.name} {' and '.join(said)} is not complete")
        numbers = {field: number(tensors[suffix]) for field, suffix in cls.scalars.items() if suffix in tensors}
        made: dict[str, Any] = numbers | {field: tensors[suffixes[field]] for field in given}
        return cls(alpha=alpha, **made)
