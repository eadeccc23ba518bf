"""What a change of a weight is made of: an expression of factors, of which each form is said once."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

import torch
from torch import Tensor

from lyc_fx.algebra.layer import Layer, Scale, scaled
from lyc_fx.algebra.shapes import Shape
from lyc_fx.algebra.tensors import matrix, shaped

if TYPE_CHECKING:
    from lyc_fx.algebra.low import Low


@dataclass(frozen=True, eq=False)
class Structure(ABC):
    """Abstract: a tensor in the shape of a weight, `(out, in/groups, *kernel)`, as an expression of smaller ones."""

    name: ClassVar[str]
    """In the field's words, for the history of a program"""
    full: ClassVar[bool] = False
    """Whether its factors are as large as the weight, so that a chain of them would save nothing"""

    widens: ClassVar[bool] = False
    """Whether a chain has a greater rank than its factors, so that it may be more work than the weight itself"""

    @abstractmethod
    def value(self, shape: Shape) -> Tensor:
        """The tensor itself."""

    @abstractmethod
    def pair(self) -> tuple[Tensor, Tensor]:
        """`(out, r)` and `(r, in/groups · kernel)` whose product is the tensor, exactly if the dtype can hold products.

        Raises BadAdapter where there are none.
        """

    @abstractmethod
    def act(self, layer: Layer, x: Tensor, scale: Scale = 1.0) -> Tensor:
        """`layer(x, scale · value)`, without the value. Raises NoChain."""

    def as_low(self) -> "Low | None":
        """The product of two narrow matrices that its chain is, if it is one."""
        return None

    def add_to(self, weight: Tensor, scale: float) -> None:
        """`weight ← weight + scale · value`, in place; `weight` is contiguous, in the dtype of the factors."""
        weight += self.value(weight.shape).mul_(scale)

    def dot(self, weight: Tensor, axis: int) -> Tensor:
        """`Σ weight ∘ value` over all dimensions but one, 0 (rows) or 1 (inputs), without the value."""
        return _low(self).dot(weight, axis)

    def squares(self, shape: Shape, axis: int) -> Tensor:
        """`Σ value²` over all dimensions but one, without the value."""
        return _low(self).squares(shape, axis)


@final
@dataclass(frozen=True, eq=False)
class Dense(Structure):
    """A tensor that is stored as it is, perhaps flattened."""

    tensor: Tensor

    name = "full"
    full = True

    def value(self, shape: Shape) -> Tensor:
        return shaped(self.tensor, shape)

    def pair(self) -> tuple[Tensor, Tensor]:
        """One of the two is the identity, whichever gives the lower rank."""
        full = matrix(self.tensor)
        one = torch.eye(min(full.shape)).to(full)
        return (one, full) if full.shape[0] <= full.shape[1] else (full, one)

    def act(self, layer: Layer, x: Tensor, scale: Scale = 1.0) -> Tensor:
        if layer.looks_up:
            return layer.fitted(scaled(layer.narrow(x, self.value(layer.shape)), scale))
        return layer.narrow(x, layer.fitted(scaled(self.value(layer.shape), scale)), layer.groups)

    def add_to(self, weight: Tensor, scale: float) -> None:
        weight += self.value(weight.shape) * scale

    def dot(self, weight: Tensor, axis: int) -> Tensor:
        return over(weight * self.value(weight.shape), axis)

    def squares(self, shape: Shape, axis: int) -> Tensor:
        return over(self.value(shape).square(), axis)


def over(values: Tensor, axis: int) -> Tensor:
    """The sum over all dimensions but one."""
    rest = [dim for dim in range(values.dim()) if dim != axis]
    return values.sum(rest) if rest else values


def _low(structure: Structure) -> Structure:
    from lyc_fx.algebra.low import Low  # which is a structure itself

    return Low(*structure.pair())
