"""Fusing adapters for separate projections into one adapter for the fused weight, exactly."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lyc_fx.adapters.adapter import Adapter
from lyc_fx.algebra.tensors import matrix
from lyc_fx.algorithms.full import Full
from lyc_fx.algorithms.locon import LoCon
from lyc_fx.algorithms.loha import LoHa
from lyc_fx.errors import BadAdapter


@final
@dataclass(frozen=True)
class Part:
    """An adapter for the rows `start:stop` of a fused weight."""

    adapter: Adapter
    start: int
    stop: int


def fuse(parts: Sequence[Part], shape: Sequence[int]) -> Adapter:
    """Make one adapter for a weight of this shape that changes the rows of each part as the part does, and no others.

    LoHa stays LoHa, with the sum of the ranks; full differences are concatenated; all others become LoCon, with the sum
    of the ranks and a block-sparse `up`. Raises BadAdapter for an adapter without an exact low-rank form, and for DoRA
    magnitudes that do not cover all rows.
    """
    if all(isinstance(p.adapter, Full) or not p.adapter.additive for p in parts) or len(shape) == 1:
        return _differences(parts, shape)
    if all(isinstance(p.adapter, LoHa) and _plain(p.adapter) for p in parts):
        return _loha(parts, shape)
    return _locon(parts, shape)


def _plain(adapter: LoHa) -> bool:
    return adapter.t1 is None and matrix(adapter.w1_b).shape == matrix(adapter.w2_b).shape


def _differences(parts: Sequence[Part], shape: Sequence[int]) -> Adapter:
    made = []
    for part in parts:
        if not isinstance(part.adapter, Full):
            raise BadAdapter(
                f"{part.adapter.name} of separate projections cannot be converted to one adapter for the fused weight"
            )
        made.append(part.adapter.diff)
    total = torch.zeros(list(shape), dtype=_dtype(made))
    for part, diff in zip(parts, made, strict=True):
        total[part.start : part.stop] = diff.reshape([part.stop - part.start, *shape[1:]])
    return Full(diff=total)


def _loha(parts: Sequence[Part], shape: Sequence[int]) -> LoHa:
    adapters = [p.adapter for p in parts if isinstance(p.adapter, LoHa)]
    both = [torch.cat([matrix(a.w1_b), matrix(a.w2_b)], 1) for a in adapters]  # the same ranks, beside each other
    columns, right = _columns(both)
    scale, lefts = _scaled(adapters, [a.w1_a for a in adapters])
    return LoHa(
        w1_a=_blocks(parts, lefts, columns, shape[0]),
        w1_b=right[:, : right.shape[1] // 2],
        w2_a=_blocks(parts, [a.w2_a for a in adapters], columns, shape[0]),
        w2_b=right[:, right.shape[1] // 2 :],
        magnitude=_magnitude(parts, [a.magnitude for a in adapters], shape),
        alpha=None if scale == 1 else scale * right.shape[0],
    )


def _locon(parts: Sequence[Part], shape: Sequence[int]) -> LoCon:
    adapters = [p.adapter.low_rank((p.stop - p.start, *shape[1:])) for p in parts]
    scale, ups = _scaled(adapters, [matrix(a.up) for a in adapters])
    columns, right = _columns([matrix(a.down) for a in adapters])
    up = _blocks(parts, ups, columns, shape[0])
    return LoCon(
        up=up.reshape([*up.shape, *(1 for _ in shape[2:])]),
        down=right.reshape([-1, *shape[1:]]),
        magnitude=_magnitude(parts, [a.magnitude for a in adapters], shape),
        alpha=None if scale == 1 else scale * right.shape[0],
    )


def _columns(rights: Sequence[Tensor]) -> tuple[list[int], Tensor]:
    """Stack right factors `(r, in · κ)`, equal ones only once. Returns the first row of each, and the stack.

    Parts of one adapter (shift and scale of adaLN, swapped) have equal right factors, so that their rank does not grow.
    """
    first: list[int] = []
    kept: list[Tensor] = []
    for right in rights:
        row = 0
        for other in kept:
            if other.shape == right.shape and torch.equal(other, right):
                break
            row += other.shape[0]
        else:
            kept.append(right)
        first.append(row)
    return first, torch.cat(kept)


def _scaled(adapters: Sequence[LoCon | LoHa], lefts: list[Tensor]) -> tuple[float, list[Tensor]]:
    """Return one scale for all, and the left factors; if the scales differ, 1 and scaled factors in float64."""
    scales = {a.scale for a in adapters}
    if len(scales) == 1:
        return scales.pop(), lefts
    return 1.0, [left.double() * a.scale for a, left in zip(adapters, lefts, strict=True)]


def _blocks(parts: Sequence[Part], lefts: Sequence[Tensor], columns: Sequence[int], rows: int) -> Tensor:
    """Return the left factor `(rows, Σ r)` of all parts, with each part's factor at its own rows and columns."""
    width = max(first + left.shape[1] for first, left in zip(columns, lefts, strict=True))
    total = torch.zeros(rows, width, dtype=_dtype(lefts))
    for part, left, first in zip(parts, lefts, columns, strict=True):
        total[part.start : part.stop, first : first + left.shape[1]] = left
    return total


def _magnitude(parts: Sequence[Part], magnitudes: Sequence[Tensor | None], shape: Sequence[int]) -> Tensor | None:
    given = [m for m in magnitudes if m is not None]
    if not given:
        return None
    covered = sum(p.stop - p.start for p in parts) == shape[0]
    if len(given) < len(parts) or not covered or any(m.dim() > 1 and m.shape[0] == 1 for m in given):
        raise BadAdapter("DoRA of separate projections can be fused only if each of them has a magnitude per output")
    return torch.cat([m.reshape(-1) for m in given]).reshape([-1, *(1 for _ in shape[1:])])


def _dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    found = tensors[0].dtype
    for tensor in tensors[1:]:
        found = torch.promote_types(found, tensor.dtype)
    return found
