"""From the dtype of a weight to the dtype of sums."""

from functools import cache

import torch
from torch import Tensor


def widened(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The same values in a wider dtype, in contiguous memory of their own.

    torch takes apart float8 bit by bit on the CPU, which costs more than all else in a merge: 256 values are looked up.
    """
    if values.dtype.itemsize > 1 or not values.dtype.is_floating_point or values.device.type != "cpu":
        return values.to(dtype, copy=True, memory_format=torch.contiguous_format)
    codes = values.view(torch.uint8).reshape(-1).to(torch.int32)
    return _table(values.dtype, dtype).index_select(0, codes).reshape(values.shape)


@cache
def _table(dtype: torch.dtype, wide: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return torch.arange(256, dtype=torch.int32).to(torch.uint8).view(dtype).to(wide)
