"""What a change of a weight is made of: an expression of factors, of which each form is said once."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lyc_fx.algebra.shapes import Shape
from lyc_fx.algebra.tensors import matrix, shaped


@dataclass(frozen=True, eq=False)
class Structure(ABC):
    """Abstract: a tensor in the shape of a weight, `(out, in/groups, *kernel)`, as an expression of smaller ones."""

    @abstractmethod
    def value(self, shape: Shape) -> Tensor:
        """The tensor itself, in operators that the passes know."""

    @abstractmethod
    def pair(self) -> tuple[Tensor, Tensor]:
        """`(out, r)` and `(r, in/groups · kernel)` whose product it is, exactly where the dtype holds products."""

    def add_to(self, weight: Tensor, scale: float) -> None:
        """`weight ← weight + scale · value`, in place; `weight` is contiguous, in the dtype of the factors."""
        weight += self.value(weight.shape).mul_(scale)


@final
@dataclass(frozen=True, eq=False)
class Dense(Structure):
    """A tensor that is stored as it is, perhaps flattened."""

    tensor: Tensor

    def value(self, shape: Shape) -> Tensor:
        return shaped(self.tensor, shape)

    def pair(self) -> tuple[Tensor, Tensor]:
        """One of the two is the identity, whichever gives the lower rank."""
        full = matrix(self.tensor)
        one = torch.eye(min(full.shape)).to(full)
        return (one, full) if full.shape[0] <= full.shape[1] else (full, one)

    def add_to(self, weight: Tensor, scale: float) -> None:
        weight += self.value(weight.shape) * scale
