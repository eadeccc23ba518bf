"""The formula of a layer on activations, from the actions of its adapters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lyc_fx.algebra.action import Action
from lyc_fx.algebra.added import Added
from lyc_fx.algebra.joined import joined
from lyc_fx.algebra.layer import NoChain
from lyc_fx.algebra.of_rows import OfRows
from lyc_fx.graph.formulas import adapter_of, strength_of
from lyc_fx.graph.layers import Call
from lyc_fx.graph.merged_weight import MergedWeight

Inner = Callable[[Tensor], Tensor]


@final
@dataclass(frozen=True)
class Chain:
    """`layer(x, merged weight, bias)` without the merged weight.

    Called with tensors by name: `x`, `base` (the weight as it is stored), `weight` (that merged with the adapters that
    stay in weight space, if any do), perhaps `bias`, and the strengths and factors of the terms.
    """

    call: Call
    made: MergedWeight
    """With the terms of this chain alone"""
    turned: bool
    """Whether the layer reads the transpose of the weight as it is stored"""
    casts: tuple[torch.dtype, ...]
    """What the model casts the weight to before that"""
    rest: bool
    """Whether other terms stay with the weight, so that `weight` is not `base`"""

    def __call__(self, at: Mapping[str, Tensor]) -> Tensor:
        x, base, bias = at["x"], at["base"], at.get("bias")
        logical = base.t() if self.made.transposed else base
        actions = joined(self.call, self.actions(at), in_order=self.made.sequential)
        after = any(action.after(self.call) for action in actions)
        plain = _once(lambda inputs: self.call.base(inputs, self._read(base), None))
        weight, outer = self._read(at.get("weight", base)), None if after else bias
        main = plain if after and not self.rest else _once(lambda inputs: self.call.base(inputs, weight, outer))
        if self.made.sequential or (len(actions) == 1 and not self.rest):
            y = self._stacked(x, main, None if self.rest else logical, actions)
        else:
            y = self._summed(x, main, plain, logical, actions)
        y = self.call.biased(y, bias) if after else y
        return self.call.kind.finish(self.call.arguments, x, y)

    def _stacked(self, x: Tensor, main: Inner, weight: Tensor | None, actions: Sequence[Action]) -> Tensor:
        """Each on what the ones before it left."""
        inner = main
        for position, action in enumerate(actions):
            inner = _once(_acting(self.call, action, inner, None if position else weight))
        return inner(x)

    def _summed(self, x: Tensor, main: Inner, plain: Inner, weight: Tensor, actions: Sequence[Action]) -> Tensor:
        """All relative to the base. One action that is no sum may use the main call of the layer, unless other adapters
        were merged into its weight.
        """
        maps = sorted((action for action in actions if not _is_sum(action)), key=lambda action: action.own_pass)
        lead = maps[0] if maps and not self.rest else None
        y = main(x) if lead is None else lead.act(self.call, x, main, weight)
        shared = not self.rest and (lead is None or lead.after(self.call))
        others = plain if shared else _refusing(x, plain)
        for action in actions:
            if action is not lead:
                y = y + action.beside(self.call, x, others, weight)
        return y

    def _read(self, weight: Tensor) -> Tensor:
        """A stored weight as the layer has it."""
        weight = weight.t() if self.turned else weight
        for dtype in self.casts:
            weight = weight.to(dtype)
        return weight

    def actions(self, at: Mapping[str, Tensor]) -> list[Action]:
        """Of the terms, in float32, or float64 where the activations are."""
        wide = torch.promote_types(self.call.dtype, torch.float32)
        found = []
        for term in self.made.terms:
            action = adapter_of(term, at).to(wide).action(strength_of(term, at))
            found.append(action if term.rows is None else OfRows(action, *term.rows))
        return found


def _is_sum(action: Action) -> bool:
    return isinstance(action.action if isinstance(action, OfRows) else action, Added)


def _acting(call: Call, action: Action, inner: Inner, weight: Tensor | None) -> Inner:
    return lambda x: action.act(call, x, inner, weight)


def _once(function: Inner) -> Inner:
    """The same, computed once for the same tensor."""
    known: list[tuple[Tensor, Tensor]] = []

    def given(x: Tensor) -> Tensor:
        found = next((y for seen, y in known if seen is x), None)
        if found is None:
            found = function(x)
            known.append((x, found))
        return found

    return given


def _refusing(x: Tensor, plain: Inner) -> Inner:
    """Refuse the unchanged input x, for which the layer would be called a second time; pass other inputs through."""

    def given(inputs: Tensor) -> Tensor:
        if inputs is x:
            raise NoChain("beside another map of the weight: a chain would take a second pass through the layer")
        return plain(inputs)

    return given
