"""share: what chains compute twice from the same tensors is computed once.

A layer that is called twice has its rotation twice after `distribute`, a DoRA layer its factors' product, and every
layer of a set the set's strength times alpha / r; a factor that several layers have, as VeRA's, is cast for each. Equal
calls on equal inputs become one node. Only what lower has inserted is touched, and neither merged weights, whose
formulas stay as splice wrote them, nor calls between which something is written.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import final

from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from lyc_fx.graph.constants import cone, constants, is_pure
from lyc_fx.graph.pipeline import done
from lyc_fx.graph.program import get_tensor, same_memory
from lyc_fx.graph.rewrite import EMITTED, MERGED
from lyc_fx.graph.stretches import stretches


@final
@dataclass(frozen=True)
class Share(PassBase):
    """No options."""

    def call(self, gm: GraphModule) -> PassResult:
        constant, stretch = constants(gm), stretches(gm.graph)
        merged = set(cone(*[node for node in gm.graph.nodes if MERGED in node.meta]))
        first: dict[Hashable, Node] = {}
        fired = 0
        for node in list(gm.graph.nodes):
            if not node.meta.get(EMITTED) or node in merged or not (node in constant or is_pure(node)):
                continue
            key = _stored(gm, node) if node.op == "get_attr" else _called(node)
            known = first.setdefault((key, None if node in constant else stretch[node]), node)
            if known is not node:
                node.replace_all_uses_with(known, propagate_meta=False)
                gm.graph.erase_node(node)
                fired += 1
        return done(gm, "share", fired)


def _stored(gm: GraphModule, node: Node) -> Hashable:
    """What is equal for nodes that read one tensor, by whatever name."""
    tensor = get_tensor(gm, str(node.target))
    return same_memory(tensor) or node.target


def _called(node: Node) -> Hashable:
    return node.target, repr(node.args), repr(node.kwargs)  # nodes are shown by their names, which are unique
