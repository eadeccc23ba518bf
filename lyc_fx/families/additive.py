"""Families whose effect is a sum, whatever the weight's values are."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import final

from torch import Tensor

from lyc_fx.families.adapter import Adapter, Strength
from lyc_fx.families.shapes import Shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Additive(Adapter):
    """A family whose effect is a sum: `W + strength · scale · product`, with no use of W's values."""

    @abstractmethod
    def product(self, shape: Shape) -> Tensor:
        """The product of the factors before scale and strength, in the weight's shape."""

    @property
    def additive(self) -> bool:
        return True

    @final
    def delta(self, shape: Shape) -> Tensor:
        """ΔW at strength 1."""
        return self.product(shape) * self.scale

    def change(self, weight: Tensor, strength: Strength) -> Tensor:
        return self.product(weight.shape) * (strength * self.scale)

    def apply(self, weight: Tensor, strength: Strength) -> Tensor:
        return weight + self.change(weight, strength)

    def apply_to(self, weight: Tensor, strength: float) -> None:
        self.add_to(weight, strength * self.scale)

    def add_to(self, weight: Tensor, scale: float) -> None:
        """`weight ← weight + scale · product`, in place: in one operator, where torch has one."""
        product = self.product(weight.shape)
        own = all(product.data_ptr() != factor.data_ptr() for factor in self.factors().values())
        weight += product.mul_(scale) if own else product * scale
