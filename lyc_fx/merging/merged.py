"""The one formula that every road uses: a weight, the adapters of that weight, and their strengths."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lyc_fx.adapters.adapter import Adapter, Strength
from lyc_fx.errors import BadAdapter
from lyc_fx.numerics.rounding import Rounding, nearest


class Change(NamedTuple):
    """One adapter, how strongly it acts, and on which rows of the logical weight `(out, in, *kernel)`."""

    adapter: Adapter
    strength: Strength
    rows: tuple[int, int] | None = None
    """None: on all"""


def compute_dtype(device: torch.device) -> torch.dtype:
    """The dtype of factors, products and sums: float64, where the device has it.

    float32 is not enough for a correctly rounded result: where W and its change cancel, the error of a float32
    sum is several units of the small bfloat16 or float16 number that remains.
    """
    return torch.float32 if device.type == "mps" else torch.float64


def sums_dtype(asked: torch.dtype | None, device: torch.device) -> torch.dtype:
    """What is asked for, or `compute_dtype`. Raises BadAdapter for one that is not floating-point."""
    dtype = asked or compute_dtype(device)
    if not dtype.is_floating_point:
        raise BadAdapter(f"compute={dtype}: sums need a floating-point dtype")
    return dtype


def merged(
    weight: Tensor,
    stack: Sequence[Change],
    *,
    transposed: bool = False,
    compute: torch.dtype | None = None,
    sequential: bool = False,
    result: torch.dtype | None = None,
    rounding: Rounding = nearest,
) -> Tensor:
    """`round(W + Σ change_i(W, strength_i))`: every change relative to the base, one rounding at the end.

    `sequential`: each adapter is applied to what the ones before it left, still with one rounding at the end.

    `transposed` is for weights that are stored `(in, out)`, as in Conv1D of GPT-2. `compute` (default
    `compute_dtype`) is the dtype of factors, products and sums. The result has the weight's shape, and its dtype or
    `result`.
    """
    dtype = sums_dtype(compute, weight.device)
    base = weight if weight.dtype == dtype else weight.to(dtype)
    base = base.t() if transposed else base
    total = base
    for adapter, strength, rows in stack:
        ready, part = adapter.to(dtype), _rows(total, rows)
        if sequential or len(stack) == 1:
            part = ready.apply(part, strength)
        else:
            part = part + ready.change(_rows(base, rows), strength)
        total = part if rows is None else total.slice_scatter(part, 0, *rows)
    total = total.t() if transposed else total
    return rounding(total, result or weight.dtype)


def _rows(weight: Tensor, rows: tuple[int, int] | None) -> Tensor:
    return weight if rows is None else weight[rows[0] : rows[1]]
