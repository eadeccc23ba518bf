"""One adapter in one slot of an exported program: converted where that is exact, and filled up to the slot's shapes."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from lyc_fx.adapters.adapter import Adapter
from lyc_fx.adapters.padding import Room
from lyc_fx.adapters.shaped import Additive
from lyc_fx.algebra.factor_shapes import RANK, parsed
from lyc_fx.algorithms.locon import LoCon
from lyc_fx.binding.bound import Bound
from lyc_fx.errors import BadAdapter
from lyc_fx.exporting.form import Slot

_LEAST = 2
"""Of a rank that may vary: a program is made for sizes of two or more"""


def taken(bound: Bound, slots: list[Slot], shape: tuple[int, ...]) -> tuple[Slot, Adapter]:
    """The slot that an adapter of a weight of this shape goes into, and the adapter as that slot takes it.

    Raises BadAdapter, which says what the slots take.
    """
    for slot in slots:
        if (own := _as_it_is(bound.adapter, slot)) is not None:
            return slot, own
    for slot in slots:
        if type(slot.adapter) is LoCon and not slot.adapter.variant and isinstance(bound.adapter, Additive):
            return slot, _filled(bound.adapter.low_rank(shape), slot)
    there = "; ".join(" ".join(filter(None, (s.adapter.name, s.adapter.variant))) for s in slots)
    given = " ".join(filter(None, (bound.adapter.name, bound.adapter.variant)))
    raise BadAdapter(f"{given} does not go into the slots there ({there or 'none'}): export the model with one for it")


def empty(slot: Slot) -> dict[str, Tensor]:
    """Factors by field, of the least rank, for a slot that has block weight 0.

    Zeros, or for what is no sum any numbers that it is defined for: rotations may be made of normalized vectors.
    """
    made = {}
    for field, factor in slot.adapter.factors().items():
        shape = [_LEAST if at in slot.ranks[field] else size for at, size in enumerate(factor.shape)]
        zeros = torch.zeros(shape, dtype=factor.dtype)
        any_ = torch.arange(1.0, 1.0 + zeros.numel(), dtype=torch.float64).sin().reshape(shape).to(factor.dtype)
        made[field] = zeros if isinstance(slot.adapter, Additive) else any_
    return made


def numbers(slot: Slot, adapter: Adapter) -> float:
    """The alpha that gives an adapter its scale in a slot, which divides by the rank that it was exported with."""
    return adapter.scale * (slot.adapter.rank or 1)


def _as_it_is(adapter: Adapter, slot: Slot) -> Adapter | None:
    """The adapter in the slot's shapes; None if it is another family or variant."""
    own = slot.adapter
    if type(adapter) is not type(own) or adapter.factors().keys() != own.factors().keys():
        return None
    if _rest(adapter) != _rest(own):
        return None
    return _filled(adapter, slot)


def _rest(adapter: Adapter) -> object:
    return Room().form(adapter.with_factors({})).structure()[2]


def _filled(adapter: Adapter, slot: Slot) -> Adapter:
    """With zeros where the slot has more room. Raises BadAdapter where it has less, or the shapes differ otherwise."""
    rooms = slot.adapter.factors()
    if adapter.factors().keys() != rooms.keys():
        more = ", ".join(adapter.factors().keys() ^ rooms.keys())
        raise BadAdapter(f"its factors and the slot's differ in {more}: export the model with such an adapter")
    words = dict(parsed(slot.adapter.shapes)) if isinstance(slot.adapter, Additive) else {}
    made = {}
    for field, factor in adapter.factors().items():
        room = rooms[field]
        ranks = {at for at, word in enumerate(words.get(field, ())) if RANK.fullmatch(word)}
        shape = [-1 if at in ranks else size for at, size in enumerate(room.shape)]
        if len(ranks) < 2 and factor.dim() != room.dim():  # kernels may be part of the inputs, and ones left out
            factor = factor.reshape(shape)
        missing = list[int]()
        for at in reversed(range(room.dim())):
            size, there = factor.shape[at], room.shape[at]
            wanted = max(size, _LEAST) if at in slot.ranks[field] else there
            if at in ranks and size > wanted:
                raise BadAdapter(
                    f"it takes rank {size}, and there is room for {there}: export the model with rank={size}, or "
                    "reduce the adapter's rank"
                )
            if at not in ranks and size != wanted:
                raise BadAdapter(f"its {field} is {tuple(factor.shape)}, the slot {tuple(room.shape)}")
            missing += [0, wanted - size]
        made[field] = pad(factor.to(room.dtype), missing)
    filled = adapter.with_factors(made)
    if filled.scale == adapter.scale or not filled.rank:
        return filled
    return replace(filled, alpha=adapter.scale * filled.rank)
