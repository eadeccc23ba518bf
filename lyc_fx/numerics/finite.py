"""Whether all numbers of a tensor are finite, in one pass without a temporary of its size."""

import math
from functools import cache

import torch
from torch import Tensor


def all_finite(tensor: Tensor) -> bool:
    """Whether no element is infinite or NaN."""
    if not tensor.numel() or not tensor.dtype.is_floating_point:
        return True
    if tensor.dtype.itemsize == 1:
        codes = tensor.view(torch.uint8)
        return not any(bool((codes == code).any()) for code in _not_finite(tensor.dtype))
    # A sum with such a term is none. One that overflows by itself costs a second look.
    total = tensor.sum(dtype=torch.float32 if tensor.dtype == torch.float16 else None)
    return math.isfinite(total.item()) or bool(finite(tensor).all())


def finite(tensor: Tensor) -> Tensor:
    """Of each element, whether it is finite."""
    return torch.isfinite(tensor if tensor.dtype.itemsize > 1 else tensor.float())  # not there for every float8


@cache
def _not_finite(dtype: torch.dtype) -> tuple[int, ...]:
    """The codes of a float8 that are no finite number: two of e4m3fn, eight of e5m2, one of the others."""
    with torch.inference_mode(False):
        every = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(dtype)
        return tuple((~finite(every)).nonzero().flatten().tolist())
