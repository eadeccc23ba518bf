"""Where a graph's layers are."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from torch.fx import Graph, GraphModule, Node

from lyc_fx.graph.layers.kind import LayerKind, named
from lyc_fx.graph.layers.table import kinds
from lyc_fx.graph.program import owner


@final
@dataclass(frozen=True)
class Site:
    """One place where a layer kind meets a weight."""

    kind: LayerKind
    node: Node

    @property
    def weight(self) -> Node:
        weight = weight_of(self.node)
        assert weight is not None
        return weight

    @property
    def module(self) -> str:
        """Path of the module that was called here."""
        return owner(self.node)[0]


def sites(graph: Graph) -> Iterator[Site]:
    """The layers of one graph, in its order."""
    known = kinds()
    varying: set[Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or not varying.isdisjoint(node.all_input_nodes):
            varying.add(node)
        kind = known.get(node.target) if node.op == "call_function" else None
        if kind is None:
            continue
        x, weight = named(node)[kind.x], weight_of(node)
        if weight is not None and (not kind.of_any_two or (x in varying and weight not in varying)):
            yield Site(kind, node)


def weight_of(node: Node) -> Node | None:
    """What a call has in the place of a layer's weight."""
    kind = kinds().get(node.target) if node.op == "call_function" else None  # type: ignore[call-overload]
    weight = named(node)[kind.weight] if kind is not None else None
    return kind.matrix(weight) if kind is not None and isinstance(weight, Node) else None


def graphs(gm: GraphModule) -> Iterator[Graph]:
    """The program's graph and those of its control-flow and autocast blocks."""
    for module in gm.modules():
        if isinstance(module, GraphModule):
            yield module.graph
