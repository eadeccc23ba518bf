"""Adapters with room for more ranks: factors filled up with zeros, so that others fit in their place."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import pad

from lyc_fx.adapters.adapter import Adapter
from lyc_fx.adapters.shaped import Additive
from lyc_fx.algebra.factor_shapes import RANK, parsed
from lyc_fx.errors import BadAdapter, WrongArgument


@final
@dataclass(frozen=True)
class Room:
    """What a program leaves for other adapters in the place of those that it is made with."""

    rank: int | None = None
    """The greatest rank; None for that of each adapter, so that others must have the same"""

    def __post_init__(self) -> None:
        """Raise WrongArgument for what is no rank."""
        if self.rank is not None and (isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1):
            raise WrongArgument(f"rank={self.rank!r}: it must be a number, 1 or more")

    def padded(self, adapter: Adapter) -> Adapter:
        """The same effect, in the shapes of the room, and in float32 at least, which holds what other files store.

        Raises BadAdapter for an adapter of a greater rank.
        """
        wide = {n: f.float() for n, f in adapter.factors().items() if f.is_floating_point() and f.dtype.itemsize < 4}
        adapter = adapter.with_factors(wide)
        return adapter if self.rank is None else padded(adapter, self.rank)

    def form(self, adapter: Adapter) -> Adapter:
        """Adapters of one form can take each other's place: their factors without values, and what cannot vary."""
        empty = {name: torch.empty_like(factor, device="meta") for name, factor in adapter.factors().items()}
        same = adapter if adapter.alpha_bounds else replace(adapter, alpha=None)
        return same.with_factors(empty)

    def numbers(self, adapter: Adapter, share: float) -> dict[str, float]:
        """What else differs between adapters with the same factors' shapes."""
        scaled = adapter.uses_alpha and adapter.rank is not None and not adapter.alpha_bounds
        return ({"alpha": adapter.alpha or float(adapter.rank or 1)} if scaled else {}) | {"share": share}


def padded(adapter: Adapter, rank: int) -> Adapter:
    """The same effect, exactly, with zeros where the rank of a factor is below `rank`.

    Only families whose effect is linear in each factor have such room; others are returned as they are. Raises
    BadAdapter for a greater rank.
    """
    if not isinstance(adapter, Additive):
        return adapter
    shapes = {name: words for name, words in parsed(adapter.shapes) if any(map(RANK.fullmatch, words))}
    if not shapes:
        return adapter
    factors = {name: _padded(adapter.factors()[name], words, rank) for name, words in shapes.items()}
    wide = adapter.with_factors(factors)
    if adapter.alpha and wide.rank != adapter.rank and wide.rank and not adapter.alpha_bounds:
        return replace(wide, alpha=adapter.scale * wide.rank)
    return wide


def _padded(factor: Tensor, words: Sequence[str], rank: int) -> Tensor:
    missing = [0] * (2 * factor.dim())
    for at, word in enumerate(words[: factor.dim()]):
        if RANK.fullmatch(word):
            if factor.shape[at] > rank:
                raise BadAdapter(f"the adapter has rank {factor.shape[at]}, and there is room for {rank}")
            missing[2 * (factor.dim() - 1 - at) + 1] = rank - factor.shape[at]
    return pad(factor, missing)
