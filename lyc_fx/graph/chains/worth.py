"""Whether a chain saves arithmetic."""

import sympy
from torch.fx import Graph, Node

from lyc_fx.algebra.layer import NoChain
from lyc_fx.graph.costs.arithmetic import flops

_LARGE = 4096
"""What stands for sizes that vary, so that the borders of images do not count"""


def refuse_dear(chain: Graph, own: sympy.Expr) -> None:
    """Raise NoChain for a chain that adds as many operations as the layer itself has, or more.

    Then the layer with a merged weight, which is computed once, is cheaper. What does not depend on the layer's input
    can be computed beforehand, and does not count.
    """
    total, layer = (at_large_sizes(each) for each in (flops(per_call(chain)), own))
    if layer and total - layer >= layer:
        raise NoChain(
            f"a chain takes {(total - layer) / layer:.2f} times the operations of the layer itself, beside it"
        )


def per_call(chain: Graph) -> list[Node]:
    """The nodes that depend on the layer's input."""
    found = {node for node in chain.find_nodes(op="placeholder") if node.target == "x"}
    for node in chain.nodes:
        if not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return [node for node in chain.nodes if node in found]


def at_large_sizes(cost: sympy.Expr) -> float:
    """A cost where every size that varies is large."""
    return float(cost.xreplace({symbol: sympy.Integer(_LARGE) for symbol in cost.free_symbols}))
