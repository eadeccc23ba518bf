"""The weights that a captured program reads, by the names that adapters use for them."""

from collections.abc import Collection, Mapping

from torch import Tensor
from torch.fx import GraphModule, Node

from lyc_fx.binding.fitting import Weight
from lyc_fx.graph.layers import COMPUTED, read_by_linear, read_by_transposed_conv, stored_transposed
from lyc_fx.graph.program import facts, owner, weights
from lyc_fx.naming import is_projection

_PARTS = ("weight_v", "parametrizations.weight.original1")
"""The direction from which weight norm computes a weight, in torch's two forms"""


def targets(gm: GraphModule) -> dict[str, list[Node]]:
    """Find the nodes that produce each weight, by the weight's name.

    A weight that the program computes, as under weight norm, has the name of its module's weight.
    """
    found = {str(node.target): [node] for node in weights(gm)}
    same = facts(gm).aliases
    for node in gm.graph.nodes:
        if node.op == "call_function" and node.target in COMPUTED:
            paths = dict.fromkeys(_registered(owner(user)[0], same) for user in node.users)
            for path in paths:
                found.setdefault(f"{path}.weight" if path else "weight", []).append(node)
    return found


def known_as(gm: GraphModule) -> dict[str, str]:
    """Return further names of the program's weights, including computed ones, each with the name in `targets`."""
    same = facts(gm).aliases
    computed = {
        f"{alias.removesuffix(part)}weight": f"{first.removesuffix(part)}weight"
        for alias, first in same.items()
        for part in _PARTS
        if alias.endswith(part)
    }
    return {**same, **computed}


def _registered(path: str, same: Mapping[str, str]) -> str:
    """Return the first path of a module that is registered under several paths."""
    for alias, first in same.items():
        inside = alias.removeprefix(f"{path}.")
        if inside != alias:
            return first.removesuffix(f".{inside}")
    return path


def stored(gm: GraphModule) -> dict[str, Weight]:
    """Describe all parameters, even those that no node reads, so that an adapter for one is not an unknown name."""
    known = facts(gm).aliases
    return {
        name: Weight(tuple(parameter.shape), parameter.dtype)
        for name, parameter in gm.named_parameters(remove_duplicate=False)
        if name not in known
    }


def described(name: str, node: Node, names: Collection[str]) -> Weight:
    """Describe the weight that `node` produces. `names` are those of all weights of the program."""
    value: Tensor = node.meta["val"]
    transposed = stored_transposed(node) or (
        value.dim() == 2 and is_projection(name, names) and not read_by_linear(node)
    )
    return Weight(tuple(map(int, value.shape)), value.dtype, transposed, read_by_transposed_conv(node))
