"""concat: narrow layers of several adapters that read the same activations become one, whose outputs are split.

Queries, keys and values read one input, and so do the first factors of their chains: `x D_qᵀ`, `x D_kᵀ`, `x D_vᵀ` are
parts of `x [D_q; D_k; D_v]ᵀ`. The layers of the model itself are left alone. The joined factor depends on stored
tensors alone, so that `stage` makes it ahead.
"""

import operator
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from lyc_fx.graph.constants import cone, constants, in_bank
from lyc_fx.graph.layers import Site, named, sites
from lyc_fx.graph.pipeline import done
from lyc_fx.graph.rewrite import EMITTED, RESHAPES, Emit, erase_unused
from lyc_fx.graph.stretches import stretches

aten = torch.ops.aten


@final
@dataclass(frozen=True)
class Concat(PassBase):
    """No options."""

    def call(self, gm: GraphModule) -> PassResult:
        constant, stretch = constants(gm), stretches(gm.graph)
        groups: defaultdict[Hashable, list[Site]] = defaultdict(list)
        for site in sites(gm.graph):
            if _is_first_factor(site, constant):
                groups[_alike(site, stretch)].append(site)
        several = [group for group in groups.values() if len(group) > 1]
        for group in several:
            _concatenate(gm, group)
        return done(gm, "concat", sum(len(group) for group in several))


def _is_first_factor(site: Site, constant: set[Node]) -> bool:
    """Whether it is a narrow layer that lower has inserted, on activations of the model, of an adapter's factor."""
    node, kind, given = site.node, site.kind, named(site.node)
    x, weight, bias = given[kind.x], site.weight, given.get(kind.bias) if kind.bias else None
    if not node.meta.get(EMITTED) or x.meta.get(EMITTED) or x in constant or weight not in constant:
        return False
    if kind.looks_up or kind.groups(node) > 1 or bias is not None or given[kind.weight] is not weight:
        return False
    stored = [source for source in cone(weight) if source.op == "get_attr"]
    return (kind.spatial or weight.meta["val"].dim() == 2) and all(map(in_bank, stored))


def _alike(site: Site, stretch: dict[Node, int]) -> Hashable:
    """What is equal for layers that can be one."""
    value, x = site.weight.meta["val"], named(site.node)[site.kind.x]
    others = [repr(a) for a in (*site.node.args, *site.node.kwargs.items()) if a is not site.weight and a is not x]
    apart = [size for dim, size in enumerate(value.shape) if dim != _outputs(site)]
    return site.node.target, _shown(x, stretch), *others, value.dtype, *apart, stretch[site.node]


def _shown(x: Node, stretch: dict[Node, int]) -> Hashable:
    """What is equal for equal activations: a model may reshape them anew for each of its layers."""
    if x.target not in RESHAPES:
        return x
    return x.target, stretch[x], *(_shown(a, stretch) if isinstance(a, Node) else repr(a) for a in x.args)


def _outputs(site: Site) -> int:
    """The dimension of the weight that gives outputs."""
    return 1 if site.kind.x_first(site.node) else 0


def _concatenate(gm: GraphModule, group: Sequence[Site]) -> None:
    first, weights = group[0], [site.weight for site in group]
    order = {node: position for position, node in enumerate(gm.graph.nodes)}
    for node in cone(*weights):  # constants, which may stand earlier
        if order[node] > order[first.node]:
            first.node.prepend(node)
    emit, dim = Emit(gm, at=first.node, like=first.node, by="concat"), _outputs(first)
    weight = emit(aten.cat.default, weights, dim)
    args: list[Any] = [weight if each is first.weight else each for each in first.node.args]
    outputs = emit(first.node.target, *args, **first.node.kwargs)
    sizes = [each.meta["val"].shape[dim] for each in weights]
    channels = 1 - weight.meta["val"].dim() if first.kind.spatial else -1
    parts = emit(aten.split_with_sizes.default, outputs, sizes, channels)
    for position, site in enumerate(group):
        part = Emit(gm, at=first.node, like=site.node, by="concat")(operator.getitem, parts, position)
        site.node.replace_all_uses_with(part, propagate_meta=False)
    erase_unused(gm, [site.node for site in group])
