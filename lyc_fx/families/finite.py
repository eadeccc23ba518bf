"""Whether all numbers of a tensor are finite, in one pass without a temporary of its size."""

import math

import torch
from torch import Tensor


def all_finite(tensor: Tensor) -> bool:
    """Whether no element is infinite or NaN."""
    if tensor.dtype.itemsize == 1 or not tensor.numel():
        return bool(finite(tensor).all())
    # A sum with such a term is none. One that overflows by itself costs a second look.
    total = tensor.sum(dtype=torch.float32 if tensor.dtype == torch.float16 else None)
    return math.isfinite(total.item()) or bool(finite(tensor).all())


def finite(tensor: Tensor) -> Tensor:
    """Of each element, whether it is finite."""
    return torch.isfinite(tensor if tensor.dtype.itemsize > 1 else tensor.float())  # not there for every float8
