"""Low-rank changes of one weight, as one of summed rank: two narrow layers for all of them."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Self, final

import torch

from lyc_fx.algebra.action import Action
from lyc_fx.algebra.added import Added
from lyc_fx.algebra.layer import Layer, Scale, scaled
from lyc_fx.algebra.low import Low
from lyc_fx.algebra.of_rows import OfRows


def joined(layer: Layer, actions: Sequence[Action], *, in_order: bool = False) -> list[Action]:
    """The same in fewer actions: sums of low rank, of the same rows, become one, `Σ s_i U_i D_i = [U_i] @ [s_i D_i]`.

    With `in_order`, each action is applied to what the ones before it left, so that only neighbours can be joined. A
    layer that looks up rows keeps its tables: joined, they would be copied.
    """
    if len(actions) < 2 or layer.looks_up:
        return list(actions)
    groups: list[tuple[Action, list[_Narrow]]] = []
    for action in actions:
        narrow = _Narrow.of(layer, action)
        among = groups[-1:] if in_order else groups
        known = next((group for _, group in among if narrow and group and group[0].key == narrow.key), None)
        if known is None or narrow is None:
            groups.append((action, [] if narrow is None else [narrow]))
        else:
            known.append(narrow)
    return [_one(layer, action, group) if len(group) > 1 else action for action, group in groups]


@final
@dataclass(frozen=True, eq=False)
class _Narrow:
    """An action that can be joined with others of the same key."""

    key: Hashable
    low: Low
    scale: Scale

    @classmethod
    def of(cls, layer: Layer, action: Action) -> Self | None:
        part = action if isinstance(action, OfRows) else None
        added = action if part is None else part.action
        low = added.structure.as_low() if isinstance(added, Added) else None
        if low is None or not isinstance(added, Added):
            return None
        low = Low(*low.pair())
        rows = (0, layer.shape[0]) if part is None else (part.start, part.stop)
        if low.left.shape[0] != rows[1] - rows[0]:  # it has no chain, and says so itself
            return None
        key = part is None, rows, low.right.shape[1], low.left.dtype, low.right.dtype
        return cls(key, low, added.scale)


def _one(layer: Layer, first: Action, group: Sequence[_Narrow]) -> Action:
    """The scales go into the factor that meets x, as in `Layer.product`."""
    on_left = layer.x_first
    lefts = [scaled(each.low.left, each.scale) if on_left else each.low.left for each in group]
    rights = [each.low.right if on_left else scaled(each.low.right, each.scale) for each in group]
    total = Added(Low(torch.cat(lefts, 1), torch.cat(rights)), 1.0)
    return replace(first, action=total) if isinstance(first, OfRows) else total
