"""How much of a change is left once the changed weight is rounded to what it is stored in.

With the base W, the exact change Δ and the weight as it is stored, W', all in the meaning of the weight (codes times
their scale): `kept = ⟨W' - W, Δ⟩ / ⟨Δ, Δ⟩`. It is 1 where nothing was rounded, 0 where all of Δ was rounded away, and
may be above 1. What rounding adds at right angles to Δ, as to a base that was not rounded itself, it does not count.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from typing import Self, final

import torch
from torch import Tensor

ENOUGH = 0.9
"""A merge that keeps less of its changes is warned of"""
LEAST = 0.5
"""A merge that keeps less of them is refused"""
_DOUBT = 0.6
"""Where a sample shows less, all elements are looked at: a few large changes that it lacks may be kept"""
_NOISE = 64
"""Units of the dtype of sums: a change that is smaller than so many of the weight's norm is none"""


@final
@dataclass(frozen=True)
class Kept:
    """Sums over some elements of a weight, or of several; those of parts are added up."""

    left: float = 0.0
    """⟨W' - W, Δ⟩"""
    asked: float = 0.0
    """⟨Δ, Δ⟩"""

    def __add__(self, other: Self) -> Self:
        return type(self)(self.left + other.left, self.asked + other.asked)

    @property
    def share(self) -> float | None:
        """`⟨W' - W, Δ⟩ / ⟨Δ, Δ⟩`; None where there is no Δ."""
        return self.left / self.asked if self.asked else None

    @property
    def doubtful(self) -> bool:
        """Of a sample: whether all elements might tell something else, by which a merge is refused or not."""
        return self.share is None or self.share < _DOUBT

    @classmethod
    def of(cls, base: Tensor, exact: Tensor, stored: Tensor) -> Self:
        """Of the elements of a weight before, the exact result in the dtype of sums, and what is stored of it.

        All are flat; the first and the last are float64. Elements that are not finite do not count.
        """
        return cls.sums(exact - base, stored - base, noise(exact.dtype, inner(base, base)))

    @classmethod
    def sums(cls, change: Tensor, moved: Tensor, least: float, factor: float = 1.0) -> Self:
        """Of an exact change, and of what is stored of it; one whose ⟨Δ, Δ⟩ is not above `least` is none.

        `factor` is how many elements there are for each of these.
        """
        asked = inner(change, change)
        return cls(factor * inner(change, moved), factor * asked) if asked > least else cls()


NOTHING = Kept()
"""Where there is no Δ"""


def noise(dtype: torch.dtype, norm: float) -> float:
    """The ⟨Δ, Δ⟩ of what sums in a dtype leave of changes that cancel, for a weight of this ⟨W, W⟩."""
    return (_NOISE * torch.finfo(dtype).eps) ** 2 * norm


def inner(one: Tensor, other: Tensor) -> float:
    """The sum of the products of two flat tensors, of those that are finite."""
    found = float(torch.dot(one, other))
    return found if isfinite(found) else float((one * other).nan_to_num(0.0, 0.0, 0.0).sum())


def overall(parts: Iterable[Kept]) -> float | None:
    """The share over several weights, each weighted by its ⟨Δ, Δ⟩; None where there is no Δ."""
    return sum(parts, Kept()).share
