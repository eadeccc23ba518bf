"""float8 weights in units of a scale: `W = codes · scale`.

The codes are `X.weight`, the scale is `X.scale_weight` (ComfyUI) or `X.weight_scale` (ComfyUI, compressed-tensors): one
float32 number, or one per output row. If a merged weight W' exceeds the range of its scale, and only then, the scale
becomes the smallest that holds it: `max |W'| / largest code`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from lyc_fx.binding.fitting import Weight, scale_beside
from lyc_fx.errors import BadAdapter, Unsupported
from lyc_fx.merging.blocks import Rows
from lyc_fx.numerics.widen import widened

_LEAVES = ("scale_weight", "weight_scale")


def with_scales(weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """Return the weights, each with the name of its scale if it has one of a supported form."""
    found = dict(weights)
    for name, weight in weights.items():
        scale = _scale(name, weights) if weight.dtype.itemsize == 1 else None
        if scale is not None and weights[scale].dtype == torch.float32:
            shape, rows = weights[scale].shape, weight.shape[:1]
            if set(shape) <= {1} or shape in (rows, (*rows, *(1 for _ in weight.shape[1:]))):
                found[name] = replace(weight, scale=scale)
    return found


def refuse_conversion(weights: Mapping[str, Weight], dtype: torch.dtype | None) -> None:
    """Raise Unsupported if `dtype` is given and weights have scales: codes and scales would be converted separately."""
    for name, weight in weights.items():
        if dtype is not None and weight.dtype.itemsize == 1 and weight.dtype.is_floating_point:
            scale = scale_beside(name, weights)
            if scale is not None:
                raise Unsupported(f"{name} is stored in units of {scale}: fold it without converting the dtype")


@final
@dataclass(frozen=True)
class Scale:
    """The scale of one weight before and after the merge: float32, in its stored shape."""

    name: str
    old: Tensor
    new: Tensor

    @property
    def changed(self) -> bool:
        """Whether the merge changes the scale."""
        return not torch.equal(self.old, self.new)


def fit_scale(name: str, old: Tensor, parts: Sequence[Tensor], dtype: torch.dtype) -> Scale:
    """Compute the scale `name` of a merged weight: the old one, enlarged where merged values exceed its range.

    `parts` are the results of `max_abs` for consecutive blocks of rows; `dtype` is that of the codes. Raises BadAdapter
    for an old scale that is negative or not finite, and for merged values beyond the range of any scale.
    """
    if not bool((torch.isfinite(old) & (old >= 0)).all()):
        raise BadAdapter(f"{name}: holds a scale that is not a positive number: is the checkpoint broken?")
    limit = torch.finfo(dtype).max
    every = torch.cat(list(parts)).double()
    wanted = (every.max() if old.numel() == 1 else every).reshape(old.shape)
    needed = (wanted / limit).float()
    needed = torch.where(needed.double() * limit < wanted, needed.nextafter(torch.tensor(torch.inf)), needed)
    if not bool(torch.isfinite(needed).all()):
        raise BadAdapter(f"{name}: the merged weight is beyond the range of {old.dtype} scales: lower the strength")
    return Scale(name, old, torch.where(wanted > old.double() * limit, needed, old))


def scale_of_rows(scale: Tensor, start: int, stop: int, rows: Tensor) -> Tensor:
    """Return the scale of the rows `start:stop`, in the dtype of `rows` and broadcastable to them."""
    part = scale.reshape(-1)
    part = part if part.numel() == 1 else part[start:stop]
    return part.to(rows.dtype).reshape([-1, *(1 for _ in rows.shape[1:])] if rows.dim() else [])


def unscaled(codes: Tensor, scale: Tensor, block: Rows, dtype: torch.dtype) -> Tensor:
    """Return some rows of codes multiplied by their scale, in memory of their own."""
    rows = widened(codes, dtype)
    rows *= scale_of_rows(scale, *block, rows)
    return rows


def max_abs(rows: Tensor, scale: Tensor) -> Tensor:
    """Return the largest finite absolute value of some rows: `(1)`, or `(n)` for n rows if each row has a scale."""
    flat = rows.reshape(1 if scale.numel() == 1 else len(rows), -1)
    least, most = flat.aminmax(dim=1)
    if not bool(torch.isfinite(least + most).all()):
        least, most = torch.where(torch.isfinite(flat), flat, 0.0).aminmax(dim=1)
    return torch.maximum(-least, most)


def _scale(name: str, weights: Mapping[str, Weight]) -> str | None:
    module, _, leaf = name.rpartition(".")
    beside = (f"{module}.{scale}" if module else scale for scale in _LEAVES)
    return next((scale for scale in beside if leaf == "weight" and scale in weights), None)
