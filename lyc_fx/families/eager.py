"""`merged` on values, with the sums in place: the same operations in the same order, and so the same bits.

A fresh tensor of a block's size costs more than the arithmetic on it. (`merged` itself is what graphs are traced
from, where everything must be functional.)
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lyc_fx.families.adapter import Additive
from lyc_fx.families.blocks import BLOCK
from lyc_fx.families.merged import Change, merged, sums_dtype
from lyc_fx.families.rounding import Rounding, nearest


def merged_rows(
    rows: Tensor,
    stack: Sequence[Change],
    *,
    compute: torch.dtype | None = None,
    sequential: bool = False,
    result: torch.dtype | None = None,
    rounding: Rounding = nearest,
) -> Tensor:
    """`merged(rows, stack, …)` for a weight that is stored `(out, in)`."""
    dtype = sums_dtype(compute, rows.device)
    sums = [change for change in stack if isinstance(change.adapter, Additive) and change.adapter.additive]
    if len(sums) < len(stack) or any(change.rows for change in stack):
        options = {"compute": compute, "sequential": sequential, "result": result, "rounding": rounding}
        return merged(rows, stack, **options)  # type: ignore[arg-type]
    total = rows.to(dtype, copy=True)
    for adapter, strength, _ in sums:
        ready = adapter.to(dtype)
        assert isinstance(ready, Additive)
        scale = strength * ready.scale
        product = ready.product(rows.shape)
        own = all(product.data_ptr() != factor.data_ptr() for factor in ready.factors().values())
        total += product.mul_(scale) if own else product * scale
    return rounding(total, result or rows.dtype)


def prepared(change: Change, dtype: torch.dtype) -> Change:
    """Small factors in the dtype of the sums, once for all blocks; large ones follow block by block."""
    small = sum(factor.numel() for factor in change.adapter.factors().values()) <= 4 * BLOCK
    return change._replace(adapter=change.adapter.to(dtype)) if small else change
