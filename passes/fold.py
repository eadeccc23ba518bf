"""fold: evaluate every cone that depends on constants only and on an adapter, and store it as the base weight.

The result goes back under the base weight's own name; then the cone and its factors are dropped. A model's own
constant tables are left alone. So a folded program has exactly the base's state-dict keys, shapes, dtypes and
operators. A weight that the model computes (weight norm) is stored as parameters that compute to the result.

A tied tensor is written for the uses that were adapted. Where another of its names has an unadapted use, all other
names keep the old tensor (it is untied, and the report says so); else they follow.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import final

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from lyc_fx.binding.report import Report
from lyc_fx.errors import InvalidGraph
from lyc_fx.graph.constants import adapted_roots, cone, evaluated, in_bank
from lyc_fx.graph.copies import set_tensor
from lyc_fx.graph.layers import COMPUTED, weight_norm_parts
from lyc_fx.graph.pipeline import done
from lyc_fx.graph.program import BANK, aliases, facts, get_tensor, remember, tensors
from lyc_fx.graph.rewrite import erase_unused
from lyc_fx.merging.effect import Effect

aten = torch.ops.aten
_ADVICE = "fold what lyc_fx.splice returned (lower moves adapters to the activations, where they are no constants)"


@final
@dataclass(frozen=True)
class Fold(PassBase):
    """Options: whether base weights may hold NaN and infinity, and whether rounding may take most of the changes."""

    allow_nonfinite: bool = False
    lossy: bool = False

    def call(self, gm: GraphModule) -> PassResult:
        roots = adapted_roots(gm)
        names = aliases(gm)
        bases, effects = {root: _base(root) for root in roots}, dict[str, Effect]()
        done_with: set[tuple[Node, ...]] = set()
        for root, base in bases.items():
            read = tuple(base.all_input_nodes) or (base,)
            if read not in done_with:  # each call of a module under weight norm computes its weight anew
                effects |= self._store(gm, root, base, names)
                done_with.add(read)
            base.meta = dict(base.meta)
            root.replace_all_uses_with(base, propagate_meta=False)
            erase_unused(gm, [root])
        left = _drop_unread(gm)
        if left:
            raise InvalidGraph(f"{len(left)} factors cannot be folded, the first is {left[0]}: {_ADVICE}")
        report = (facts(gm).report or Report(())).measured(effects)
        report.refuse_rounded_away(lossy=self.lossy)
        remember(gm, report=report)
        return done(gm, "fold", len(roots))

    def _store(self, gm: GraphModule, root: Node, base: Node, names: dict[int, list[str]]) -> dict[str, Effect]:
        """Put the merged weight in the base's place; the effect on it, by the name of what was stored."""
        unrounded = root.args[0] if root.target is aten.to.dtype else root
        assert isinstance(unrounded, Node)
        values = dict(evaluated(partial(get_tensor, gm), [base, unrounded, root]))
        value = values[root]
        stores = _stores(base, value)
        effect, name = Effect.of(values[base], value, values[unrounded]), ", ".join(str(n.target) for n in stores)
        effect.refuse(name, value.dtype, value.numel(), allow_nonfinite=self.allow_nonfinite)
        for node, tensor in stores.items():
            _store(gm, node, tensor, names)
        return {name: effect}


def _base(root: Node) -> Node:
    """The node that gave the weight before splice."""
    inputs = cone(root)
    computed = [n for n in inputs if n.target in COMPUTED]
    read = [n for n in inputs if n.op == "get_attr" and not in_bank(n)]
    bases = computed or read
    if len(bases) != 1 or bases[0].meta["val"].shape != root.meta["val"].shape:
        raise InvalidGraph(f"{root.name} reads an adapter, but is no adapted weight: {_ADVICE}")
    return bases[0]


def _stores(base: Node, value: Tensor) -> dict[Node, Tensor]:
    """What to store where, so that `base` gives `value`."""
    if base.op == "get_attr":
        return {base: value}
    direction, magnitude = base.args[0], base.args[1]
    dim = base.args[2] if len(base.args) > 2 else 0
    assert isinstance(direction, Node) and isinstance(magnitude, Node) and isinstance(dim, int)
    return dict(zip((direction, magnitude), weight_norm_parts(value, dim), strict=True))


def _store(gm: GraphModule, node: Node, value: Tensor, names: dict[int, list[str]]) -> None:
    name = str(node.target)
    old = get_tensor(gm, name)
    value = value.detach().contiguous()
    new = nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
    live = {str(n.target) for n in gm.graph.find_nodes(op="get_attr") if n.users}
    same = facts(gm).aliases
    tied = {name, *names.get(id(old), ()), *(alias for alias, first in same.items() if first == name)}
    others = [alias for alias in sorted(tied) if same.get(alias, alias) != name]
    kept = others if live.intersection(others) else []
    for alias in tied.difference(kept):
        set_tensor(gm, alias, new)
    report = facts(gm).report
    if kept and report is not None:
        note = f"{name} was tied to {', '.join(kept)}, which other uses read: it is untied"
        remember(gm, report=replace(report, notes=(*report.notes, note)))


def _drop_unread(gm: GraphModule) -> list[str]:
    """Remove the bank unless something reads it still; the names of what is still read."""
    stored = [name for name in tensors(gm) if name.startswith(f"{BANK}.")]
    erase_unused(gm, [n for n in gm.graph.nodes if in_bank(n) or (n.meta.get(BANK) and not n.users)])
    read = _read(gm)
    left = [name for name in stored if name in read]
    if stored and not left:
        gm.delete_submodule(BANK)
    return left


def _read(gm: GraphModule) -> Collection[str]:
    return {str(n.target) for n in gm.graph.find_nodes(op="get_attr")}
