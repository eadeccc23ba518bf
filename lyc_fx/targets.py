"""Which weights a captured program reads, by the names that adapters have for them."""

from collections.abc import Collection, Mapping

from torch import Tensor
from torch.fx import GraphModule, Node

from lyc_fx.fitting import Weight
from lyc_fx.layers import COMPUTED, read_by_linear, read_by_transposed_conv, stored_transposed
from lyc_fx.naming import projects
from lyc_fx.program import facts, owner, weights

_PARTS = ("weight_v", "parametrizations.weight.original1")
"""What a weight under weight norm is computed from: its direction"""


def targets(gm: GraphModule) -> dict[str, list[Node]]:
    """The nodes that give a weight, by the weight's name; computed ones have the name of what they replace."""
    found = {str(node.target): [node] for node in weights(gm)}
    same = facts(gm).aliases
    for node in gm.graph.nodes:
        if node.op == "call_function" and node.target in COMPUTED:
            paths = dict.fromkeys(_registered(owner(user)[0], same) for user in node.users)
            for path in paths:
                found.setdefault(f"{path}.weight" if path else "weight", []).append(node)
    return found


def known_as(gm: GraphModule) -> dict[str, str]:
    """Further names of the program's weights, also of those that it computes."""
    same = facts(gm).aliases
    computed = {
        f"{alias.removesuffix(part)}weight": f"{first.removesuffix(part)}weight"
        for alias, first in same.items()
        for part in _PARTS
        if alias.endswith(part)
    }
    return {**same, **computed}


def _registered(path: str, same: Mapping[str, str]) -> str:
    """The first path of a module that is registered under several."""
    for alias, first in same.items():
        inside = alias.removeprefix(f"{path}.")
        if inside != alias:
            return first.removesuffix(f".{inside}")
    return path


def stored(gm: GraphModule) -> dict[str, Weight]:
    """All parameters, also those that no node reads: they are known names, so that a key for them is no error."""
    known = facts(gm).aliases
    return {
        name: Weight(tuple(parameter.shape), parameter.dtype)
        for name, parameter in gm.named_parameters(remove_duplicate=False)
        if name not in known
    }


def described(name: str, node: Node, names: Collection[str]) -> Weight:
    value: Tensor = node.meta["val"]
    turned = stored_transposed(node) or (value.dim() == 2 and projects(name, names) and not read_by_linear(node))
    return Weight(tuple(map(int, value.shape)), value.dtype, turned, read_by_transposed_conv(node))
