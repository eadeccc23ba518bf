"""From float64 by way of float32 to a narrower dtype, without rounding twice.

torch casts so, and is wrong for one value in some 100,000: where the float32 lies exactly between two values of the
narrower dtype and the float64 does not, float32 no longer knows which is nearer. Only such a float32 matters, and its
low bits show it: 0x8000 of 16 for bfloat16, and at least twelve zeros for float16 and float8.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

_STRETCH = 1024
"""Elements whose least half is found at once: of 65,536 one is a tie of bfloat16"""
_ERROR = 2.0**-46
"""Of float64 sums, relative: what is so near a tie is one, whichever way its sum went. Factors of few digits at a
strength such as 0.5 give many ties, and all roads must decide them alike."""
_INFINITY = np.float32(np.inf)


def single(values: Tensor, dtype: torch.dtype) -> Tensor:
    """float64 values as float32, contiguous, such that the cast to `dtype` gives the nearest, ties to even."""
    found = values.to(torch.float32).contiguous()
    flat = found.view(-1)
    if flat.device.type != "cpu":
        at = (flat.view(torch.int32) & _mask(dtype)).eq(_low(dtype)).nonzero().view(-1)
        if at.numel():
            exact, near = values.reshape(-1)[at], flat[at]
            aside = near.nextafter(torch.where(exact > near, torch.inf, -torch.inf).to(near))
            flat[at] = torch.where((exact - near).abs() <= _ERROR * near.abs(), near, aside)
        return found
    singles = flat.detach().numpy()
    places = _ties(singles, dtype)
    if len(places):
        singles[places] = _decided(values.detach().reshape(-1).numpy()[places], singles[places])
    return found


def _decided(exact: Any, near: Any) -> Any:
    """The float32 beside a tie, on the exact value's side. (numpy: a tenth of the time of calls to torch.)"""
    with np.errstate(invalid="ignore"):  # infinity is near to itself
        beside = np.nextafter(near, np.where(exact > near, _INFINITY, -_INFINITY))
        return np.where(abs(exact - near) <= _ERROR * abs(near), near, beside)


def _mask(dtype: torch.dtype) -> int:
    return 0xFFFF if dtype == torch.bfloat16 else 0xFFF


def _low(dtype: torch.dtype) -> int:
    return 0x8000 if dtype == torch.bfloat16 else 0


def _ties(singles: Any, dtype: torch.dtype) -> Any:
    """Where float32 numbers may lie between two values of a dtype: all such places, and few others."""
    mask, low = _mask(dtype), _low(dtype)
    bits = singles.view(np.uint32)  # numpy compares integers six times as fast as torch
    whole = len(bits) // _STRETCH * _STRETCH
    if not low or not whole:
        return np.flatnonzero((bits & mask) == low)
    least = torch.from_numpy(singles[:whole].view(np.int16)).view(-1, 2 * _STRETCH).amin(dim=1).numpy()
    rows = np.flatnonzero(least == -0x8000)  # a low half of 0x8000 is the least int16; few stretches have one
    row, column = divmod(np.flatnonzero((bits[:whole].reshape(-1, _STRETCH)[rows] & mask) == low), _STRETCH)
    rest = whole + np.flatnonzero((bits[whole:] & mask) == low)
    return np.concatenate([rows[row] * _STRETCH + column, rest])
