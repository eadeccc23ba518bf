"""float8 weights in units of a scale: W = codes · scale, with `X.scale_weight` (ComfyUI) or `X.weight_scale` beside
`X.weight` (ComfyUI, compressed-tensors): one float32 number, or one per output row.

A merged weight may exceed what its scale can hold. Then, and only then, the scale becomes what the greatest merged
value needs: `max |W'| / greatest code`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from lyc_fx.errors import BadAdapter, Unsupported
from lyc_fx.fitting import Weight, scale_beside

_LEAVES = ("scale_weight", "weight_scale")


def with_scales(weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """The weights, with the scale's name for each that has one of a kind that can be read."""
    found = dict(weights)
    for name, weight in weights.items():
        scale = _scale(name, weights) if weight.dtype.itemsize == 1 else None
        if scale is not None and weights[scale].dtype == torch.float32:
            shape, rows = weights[scale].shape, weight.shape[:1]
            if set(shape) <= {1} or shape in (rows, (*rows, *(1 for _ in weight.shape[1:]))):
                found[name] = replace(weight, scale=scale)
    return found


def refuse_conversion(weights: Mapping[str, Weight], dtype: torch.dtype | None) -> None:
    """Raise Unsupported where another dtype is asked for: codes and scales would be converted apart."""
    for name, weight in weights.items():
        if dtype is not None and weight.dtype.itemsize == 1 and weight.dtype.is_floating_point:
            scale = scale_beside(name, weights)
            if scale is not None:
                raise Unsupported(f"{name} is stored in units of {scale}: fold it without another dtype")


@final
@dataclass(frozen=True)
class Scale:
    """Of one weight, before and after the merge; float32, in the shape in which it is stored."""

    name: str
    old: Tensor
    new: Tensor

    @property
    def changed(self) -> bool:
        return not torch.equal(self.old, self.new)


def rescaled(name: str, old: Tensor, parts: Sequence[Tensor], dtype: torch.dtype) -> Scale:
    """The scale for merged values up to the `greatest` of each part. Raises BadAdapter for one that is broken."""
    if not bool((torch.isfinite(old) & (old >= 0)).all()):
        raise BadAdapter(f"{name}: holds a scale that is no positive number")
    limit = torch.finfo(dtype).max
    every = torch.cat(list(parts)).double()
    wanted = (every.max() if old.numel() == 1 else every).reshape(old.shape)
    needed = (wanted / limit).float()
    needed = torch.where(needed.double() * limit < wanted, needed.nextafter(torch.tensor(torch.inf)), needed)
    if not bool(torch.isfinite(needed).all()):
        raise BadAdapter(f"{name}: the merged weight is beyond the range of {old.dtype} scales: lower the strength")
    return Scale(name, old, torch.where(wanted > old.double() * limit, needed, old))


def for_rows(scale: Tensor, start: int, stop: int, rows: Tensor) -> Tensor:
    """What some rows are multiplied by, in their dtype."""
    part = scale.reshape(-1)
    part = part if part.numel() == 1 else part[start:stop]
    return part.to(rows.dtype).reshape([-1, *(1 for _ in rows.shape[1:])] if rows.dim() else [])


def greatest(rows: Tensor, scale: Tensor) -> Tensor:
    """Of some merged rows, the greatest finite absolute value, or where each row has a scale that of each: `(n)`."""
    flat = rows.reshape(1 if scale.numel() == 1 else len(rows), -1)
    least, most = flat.aminmax(dim=1)
    if not bool(torch.isfinite(least + most).all()):
        least, most = torch.where(torch.isfinite(flat), flat, 0.0).aminmax(dim=1)
    return torch.maximum(-least, most)


def _scale(name: str, weights: Mapping[str, Weight]) -> str | None:
    module, _, leaf = name.rpartition(".")
    beside = (f"{module}.{scale}" if module else scale for scale in _LEAVES)
    return next((scale for scale in beside if leaf == "weight" and scale in weights), None)
