"""`merged` on values, in place where the last bits of the sums do not show.

A fresh tensor of a block's size costs more than the arithmetic on it, and so do two operators where torch has one. But
`merged`, which graphs are traced from, must be functional, and made of operators that the passes know: the float64 sums
differ in the last bit. A result of 16 bits or fewer is the same on every road all the same; a wider one is left to
`merged`, so that it is too.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lyc_fx.adapters.shaped import Additive
from lyc_fx.merging.blocks import BLOCK, on_columns, on_rows, pieces
from lyc_fx.merging.effect import Effect
from lyc_fx.merging.merged import Change, merged, sums_dtype
from lyc_fx.numerics.rounding import Rounding, Stochastic, nearest, round_into
from lyc_fx.numerics.widen import widened


def merged_rows(
    rows: Tensor,
    stack: Sequence[Change],
    out: Tensor,
    *,
    compute: torch.dtype | None = None,
    sequential: bool = False,
    rounding: Rounding = nearest,
    stored: torch.dtype | None = None,
) -> Effect:
    """`out ← merged(rows, stack, …)` for a weight that is stored `(out, in)`, in the dtype of `out`.

    Many rows are computed piece by piece, where the adapters can be cut. `stored` is the dtype that `out` is rounded
    to later, where that is another; then `out` may be `rows`.

    Returns the effect on these rows, which nobody knows yet where `stored` is given.
    """
    cut = pieces(rows.shape, stack, rows.device)
    if len(cut) > 1:
        effect = Effect()
        for dim, (start, stop) in cut:
            part = (on_columns if dim else on_rows)(stack, start, stop, rows.shape)
            before, after = (each.narrow(dim, start, stop - start) for each in (rows, out))
            apart = rounding.at(f"{dim} {start}") if isinstance(rounding, Stochastic) else rounding
            effect += merged_rows(
                before, part, after, compute=compute, sequential=sequential, rounding=apart, stored=stored
            )
        return effect
    dtype = sums_dtype(compute, rows.device)
    independent = len(stack) == 1 or sequential or all(_additive(change) for change in stack)
    if independent and (stored or out.dtype).itemsize <= 2 < dtype.itemsize:
        total = widened(rows, dtype)
        for adapter, strength, at in stack:
            adapter.to(dtype).apply_to(total if at is None else total[slice(*at)], float(strength))
    else:
        total = merged(rows, stack, compute=dtype, sequential=sequential, result=dtype)
    round_into(out, total, rounding)
    return Effect() if stored else Effect.of(rows, out, total if stack else None)


def _additive(change: Change) -> bool:
    return isinstance(change.adapter, Additive) and change.adapter.additive


def prepared(change: Change, dtype: torch.dtype) -> Change:
    """Small factors in the dtype of the sums, once for all blocks; large ones follow block by block."""
    small = sum(factor.numel() for factor in change.adapter.factors().values()) <= 2 * BLOCK
    return change._replace(adapter=change.adapter.to(dtype)) if small else change
