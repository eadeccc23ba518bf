"""What a merge did to a weight: how much it changed, how much of that rounding left, and what is no finite number."""

import sys
from dataclasses import dataclass
from math import prod
from typing import Self, final

import torch
from torch import Tensor

from lyc_fx.errors import BadAdapter
from lyc_fx.merging.kept import NOTHING, Kept, inner, noise
from lyc_fx.numerics.finite import all_finite, finite
from lyc_fx.numerics.widen import widened

_SAMPLE = 4096
"""Elements of a block from which its change is estimated: all of them would cost as much as a merge at a low rank"""
_LEAST = sys.float_info.min
"""The figure of a change that is none in real numbers, such as of 0 to -0"""


@final
@dataclass(frozen=True)
class Effect:
    """Of some rows of a weight; those of all rows are added up."""

    lost: int = 0
    """Finite values that are beyond the range of the dtype after the merge"""
    nonfinite: int = 0
    """Values of the base that are infinite or NaN (counted where the merged rows have some)"""
    changed: bool = False
    """Whether any value is another one in the dtype in which it is stored"""
    delta: float = 0.0
    """Σ (W' - W)² over a sample of the elements"""
    base: float = 0.0
    """Σ W² over the same"""
    kept: Kept = NOTHING
    """What rounding left of the change"""

    def __add__(self, other: Self) -> Self:
        return type(self)(
            self.lost + other.lost,
            self.nonfinite + other.nonfinite,
            self.changed or other.changed,
            self.delta + other.delta,
            self.base + other.base,
            self.kept + other.kept,
        )

    @property
    def relative(self) -> float:
        """‖W' - W‖ / ‖W‖, by the sample; infinite where that of W is zero, and 0 only where nothing changed."""
        if not self.changed:
            return 0.0
        return (self.delta / self.base) ** 0.5 or _LEAST if self.base else float("inf")

    @classmethod
    def of(cls, before: Tensor, after: Tensor, exact: Tensor | None = None) -> Self:
        """Of rows as they were and as they are, in the dtypes in which they are stored.

        `exact` is the result before it was rounded, in the dtype of sums; None: nothing was to change.
        """
        lost = nonfinite = 0
        if not all_finite(after):
            known = finite(before)
            lost, nonfinite = int((known & ~finite(after)).sum()), int((~known).sum())
        old, new = _sample(before), _sample(after)
        moved = new - old
        delta, base, kept = inner(moved, moved), inner(old, old), NOTHING
        changed = delta > 0 or not _same(before.to(after.dtype), after)
        if changed and not delta:  # the sample does not show it
            differences = _differences(before, after)
            delta = inner(differences, differences) * old.numel() / before.numel()
        if exact is not None and old.numel():
            kept = Kept.sums(_sample(exact) - old, moved, noise(exact.dtype, base), before.numel() / old.numel())
            if kept.doubtful and old.numel() < before.numel():
                kept = Kept.of(_all(before), _all(exact), _all(after))
        return cls(lost, nonfinite, changed, delta, base, kept)

    def refuse(self, name: str, dtype: torch.dtype, count: int, *, allow_nonfinite: bool = False) -> None:
        """Raise BadAdapter for a weight of `count` values that overflowed, or that was not finite before."""
        if self.nonfinite and not allow_nonfinite:
            raise BadAdapter(
                f"{name}: {self.nonfinite} of {count} values of the base are NaN or infinite, so that the merged ones "
                "are as well: is the checkpoint broken? allow_nonfinite=True (command line: --allow-nonfinite) merges "
                "it all the same"
            )
        if self.lost:
            raise BadAdapter(
                f"{name}: {self.lost} of {count} values of the merged weight are beyond the range of {dtype}, "
                f"±{torch.finfo(dtype).max:g}: lower the strength, or merge into a base of a wider dtype"
            )


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether all values are the same, NaN included."""
    if one.dtype.itemsize == 1 and one.dtype.is_floating_point:  # float8 cannot be compared
        return torch.equal(one.view(torch.uint8), other.view(torch.uint8))
    if torch.equal(one, other):
        return True
    broken = one.isnan()
    if not bool(broken.any()) or not torch.equal(broken, other.isnan()):
        return False
    return torch.equal(one.masked_fill(broken, 0), other.masked_fill(broken, 0))


def _differences(before: Tensor, after: Tensor) -> Tensor:
    """The differences that are not zero, in float64."""
    old, new = (rows.float() if rows.dtype.itemsize == 1 else rows for rows in (before, after))
    where = old != new
    return new[where].double() - old[where].double()


def _sample(rows: Tensor) -> Tensor:
    """Some elements in float64, flat, spread over rows and columns."""
    if rows.dim():
        rows = rows[:: max(1, rows.shape[0] * min(prod(rows.shape[1:]), 64) // _SAMPLE)]
    if rows.dim() > 1:
        rows = rows[:, :: max(1, rows.numel() // _SAMPLE)]
    return (rows.float() if rows.dtype.itemsize == 1 else rows).double().reshape(-1)


def _all(rows: Tensor) -> Tensor:
    return widened(rows, torch.float64).reshape(-1)
