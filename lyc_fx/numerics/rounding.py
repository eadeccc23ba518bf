"""From the dtype of sums to the dtype of the weight: to the nearest, or to either neighbour by chance."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import final

import torch
from torch import Tensor

from lyc_fx.numerics.double_rounding import single

Rounding = Callable[[Tensor, torch.dtype], Tensor]
"""Values and the dtype that they get"""
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def nearest(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Ties to even. Values beyond the range become infinite, or NaN where the dtype has no infinity."""
    if values.dtype == dtype:
        return values
    rounded = _castable(values, dtype).to(dtype)
    if dtype.itemsize > 1 or not dtype.is_floating_point:
        return rounded
    beyond = values.abs() > _limit(dtype)  # torch clips some float8 at their greatest value
    return torch.where(beyond, torch.full_like(values, float("nan")).to(dtype).float(), rounded.float()).to(dtype)


def cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    """torch's own cast, one operator in a graph; from float64 it is `nearest` but for one value in some 100,000."""
    return values if values.dtype == dtype else values.to(dtype)


def _castable(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values from which torch's cast gives the nearest."""
    twice = values.dtype == torch.float64 and dtype.is_floating_point and dtype.itemsize <= 2
    return single(values, dtype) if twice and values.numel() else values


def round_into(out: Tensor, values: Tensor, rounding: Rounding) -> None:
    """`out ← rounding(values)`, without a copy between where torch's own cast is the rounding."""
    direct = rounding is nearest and (out.dtype.itemsize > 1 or _within(values, out.dtype))
    out.copy_(_castable(values, out.dtype) if direct else rounding(values, out.dtype))


def _within(values: Tensor, dtype: torch.dtype) -> bool:
    """Whether no value rounds to one beyond the range; not for NaN."""
    if not values.numel() or not dtype.is_floating_point:
        return False
    least, greatest = (float(bound) for bound in values.aminmax())
    return -_limit(dtype) <= least and greatest <= _limit(dtype)


@cache
def _limit(dtype: torch.dtype) -> float:
    """The greatest value that rounds to a finite one: half a unit above the greatest finite one."""
    greatest = torch.finfo(dtype).max
    below = float((torch.tensor(greatest, dtype=dtype).view(torch.uint8) - 1).view(dtype).float())
    return greatest + (greatest - below) / 2


@final
@dataclass(frozen=True)
class Stochastic:
    """To one of the two neighbours, each with a probability by its nearness: right on average.

    The draws depend on the seed and the place alone, so that they are the same whatever runs when.
    """

    seed: int
    place: str
    """Such as the name of a weight and its first row"""

    def at(self, place: str) -> "Stochastic":
        """For a part of that place."""
        return Stochastic(self.seed, f"{self.place} {place}")

    def __call__(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        near = nearest(values, dtype)
        if near.dtype == values.dtype or not dtype.is_floating_point:
            return near
        wide = near.to(values.dtype)
        other = _neighbour(near, wide, values)
        chance = (values - wide) / (other.to(values.dtype) - wide)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {self.place}".encode()))
        draw = torch.rand(values.shape, generator=generator, dtype=torch.float64).to(values.device)
        moved = (draw < chance) & torch.isfinite(other.to(values.dtype))
        bits = _BITS[dtype.itemsize]
        return torch.where(moved, other.view(bits), near.view(bits)).view(dtype)


def _neighbour(near: Tensor, wide: Tensor, values: Tensor) -> Tensor:
    """The representable value on the other side of each value; where it is representable itself, any."""
    bits = _BITS[near.dtype.itemsize]
    raw = near.view(bits).to(torch.int64) & ((1 << 8 * near.dtype.itemsize) - 1)
    sign = 1 << (8 * near.dtype.itemsize - 1)
    magnitude = (raw & (sign - 1)) + torch.where(values.abs() > wide.abs(), 1, -1)
    magnitude = magnitude.clamp(min=0)
    signless = magnitude == 0 if str(near.dtype).endswith("fnuz") else torch.zeros_like(magnitude, dtype=torch.bool)
    found = magnitude | torch.where((values < 0) & ~signless, sign, 0)  # what would be -0 is NaN there
    top = 1 << (8 * near.dtype.itemsize)
    signed = found if bits == torch.uint8 else torch.where(found >= sign, found - top, found)
    return signed.to(bits).view(near.dtype)
