"""narrow: formulas that stay in weight space are computed in float32 rather than float64.

Splice writes them in float64, for a fold that is correctly rounded. A program that rebuilds its weights at every
call (a Hadamard product in training, say) wants speed. Weights that are float64 themselves are left alone.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.utils import _pytree as pytree

from lyc_fx.graph.pipeline import done
from lyc_fx.graph.program import fake_mode
from lyc_fx.graph.propagation import propagate
from lyc_fx.graph.rewrite import EMITTED

aten = torch.ops.aten


@final
@dataclass(frozen=True)
class Narrow(PassBase):
    """No options."""

    def call(self, gm: GraphModule) -> PassResult:
        wide: set[Node] = set()
        changed: set[Node] = set()
        for node in reversed(gm.graph.nodes):
            if torch.float64 in _dtypes(node) and any(user in wide or not _inner(user) for user in node.users):
                wide.add(node)
            elif _inner(node) and node.target is aten.to.dtype and node.args[1] is torch.float64:
                node.update_arg(1, torch.float32)
                changed.add(node)
        fired, mode = len(changed), fake_mode(gm)
        for node in gm.graph.nodes:
            if node in changed or (_inner(node) and not changed.isdisjoint(node.all_input_nodes)):
                before = _dtypes(node)
                propagate(node, mode)
                if _dtypes(node) != before:
                    changed.add(node)
        return done(gm, "narrow", fired)


def _inner(node: Node) -> bool:
    """A node that lyc-fx inserted: what it reads may become narrower, for it ends in a cast to the weight's dtype."""
    return bool(node.meta.get(EMITTED))


def _dtypes(node: Node) -> list[torch.dtype]:
    """Of what a node gives, numbers apart: strengths keep their digits."""
    leaves = pytree.tree_leaves(node.meta.get("val"))
    return [leaf.dtype for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.dim()]
