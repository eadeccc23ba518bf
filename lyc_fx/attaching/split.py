"""A layer's program in three: what adapters do to its input, the layer itself, and what they do to its output."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from lyc_fx.graph.constants import cone
from lyc_fx.graph.program import BANK
from lyc_fx.graph.rewrite import EMITTED

if TYPE_CHECKING:
    from lyc_fx.attaching.layer_program import LayerProgram


@final
@dataclass(frozen=True)
class Split:
    """`run(x, *tensors)` is `after(x, base(before(x, *tensors), *tensors), *tensors)`."""

    before: Callable[..., Tensor] | None
    """None where adapters leave the input alone"""
    base: Callable[..., Tensor]
    after: Callable[..., Tensor]
    biased: bool
    """Whether `base` adds the layer's bias; else `after` does, if there is one"""


def split(program: "LayerProgram") -> Split | None:
    """Find the one call that reads the layer's own weight; None where there is none, or where more happens besides."""
    x, *given = program.graph.find_nodes(op="placeholder")
    own = {node: name for node, name in zip(given, program.reads, strict=True) if not name.startswith(f"{BANK}.")}
    moving = _reached([x], program.graph)
    if not all(node.meta.get(EMITTED) for node in moving - {x}):
        return None
    weights = _only_of([node for node, name in own.items() if name != "bias"], program.graph)
    found = [node for node in moving if weights.intersection(node.all_input_nodes)]
    if len(found) != 1:
        return None
    base = found[0]
    inputs = [node for node in base.all_input_nodes if node in moving]
    if len(inputs) != 1 or not weights.union(own, inputs).issuperset(base.all_input_nodes):
        return None
    changed = inputs[0]
    if changed.meta["val"].shape != x.meta["val"].shape:
        return None
    result: Any = program.graph.output_node().args[0]
    before = None if changed is x else _function([x, *given], changed)
    after = _function([x, base, *given], result)
    biased = any(own.get(node) == "bias" for node in base.all_input_nodes)
    return Split(before, _function([changed, *given], base), after, biased)


def _function(inputs: Sequence[Node], result: Node) -> Callable[..., Tensor]:
    """What computes a node from others."""
    graph, copies = Graph(), dict[Node, Node]()
    for position, node in enumerate(inputs):
        copies[node] = graph.placeholder(f"input_{position}")
    for node in cone(result, within=lambda node: node not in inputs):
        if node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[result])
    return GraphModule(nn.Module(), graph).forward


def _reached(roots: Sequence[Node], graph: Graph) -> set[Node]:
    """What depends on nodes, themselves included."""
    found = set(roots)
    for node in graph.nodes:
        if node.op == "call_function" and found.intersection(node.all_input_nodes):
            found.add(node)
    return found


def _only_of(roots: Sequence[Node], graph: Graph) -> set[Node]:
    """What depends on nodes alone, themselves included."""
    found = set(roots)
    for node in graph.nodes:
        if node.op == "call_function" and node.all_input_nodes and found.issuperset(node.all_input_nodes):
            found.add(node)
    return found
