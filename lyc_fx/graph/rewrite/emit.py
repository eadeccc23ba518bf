"""Inserting nodes that look as if capture had made them: same dialect, own fake value, owner of the layer."""

import operator
from collections.abc import Mapping
from typing import Any, final

from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node

from lyc_fx.graph.copies import set_tensor
from lyc_fx.graph.program import fake, fake_mode
from lyc_fx.graph.propagation import mark, propagate

_KEPT = ("nn_module_stack", "custom")
EMITTED = "lyc_fx"
"""Marks, in `node.meta`, the nodes that capture did not make, with the rule or pass that did."""
MERGED = "lyc_fx_merged"
"""The key of `node.meta` under which splice notes what a merged weight is made of (`lyc_fx.graph.merged_weight`)"""


@final
class Emit:
    """Emits nodes into a graph before `at`, with the provenance of the layer `like`, and in the name of a rule."""

    def __init__(self, gm: GraphModule, *, at: Node, like: Node, by: str) -> None:
        self._gm = gm
        self._mode = fake_mode(gm)
        self._at = at
        self._provenance = {key: like.meta[key] for key in _KEPT if key in like.meta} | {EMITTED: by}

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """A call of an operator on nodes and constants; its fake value is what the operator gives."""
        with self._gm.graph.inserting_before(self._at):
            name = target._opname if isinstance(target, OpOverload) else None  # "linear", as capture names it
            node = self._gm.graph.create_node("call_function", target, args, kwargs, name=name)
        node.meta |= self._provenance
        propagate(node, self._mode)
        return node

    def tensor(self, name: str, tensor: Tensor, *, persistent: bool = True) -> Node:
        """A node that reads a new parameter or buffer, which is stored under `name`."""
        set_tensor(self._gm, name, tensor, persistent=None if isinstance(tensor, nn.Parameter) else persistent)
        with self._gm.graph.inserting_before(self._at):
            node = self._gm.graph.get_attr(name)
        node.meta |= self._provenance | {"val": fake(self._gm, tensor)}
        return node

    def inline(self, graph: Graph, inputs: Mapping[str, Node]) -> Node:
        """A copy of a traced formula of one result, its placeholders replaced by name."""
        values: dict[Node, Any] = {p: inputs[str(p.target)] for p in graph.find_nodes(op="placeholder")}
        other = {p for p, node in values.items() if _layout(p) != _layout(node)}
        with self._gm.graph.inserting_before(self._at):
            result = self._gm.graph.graph_copy(graph, val_map=values)
        for old, new in values.items():
            if old.op == "placeholder":
                continue
            new.meta = {"val": old.meta["val"]} | self._provenance
            if other.isdisjoint(old.all_input_nodes):
                mark(new)
            else:
                other.add(old)
                propagate(new, self._mode)
        assert isinstance(result, Node)
        return result


def _layout(node: Node) -> str:
    """Of a node's value, as text: a comparison of symbols would add conditions to them."""
    value = node.meta["val"]
    return f"{value.dtype} {value.device} {tuple(value.shape)} {value.stride()}"


def erase_unused(gm: GraphModule, nodes: list[Node]) -> None:
    """Erase those of the nodes (and, through them, their inputs) that nobody reads; leave all others alone."""
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node.users or node.op in ("output", "placeholder") or node._erased:
            continue
        if node.op == "call_function" and node.target is not operator.getitem and node.is_impure():
            continue
        inputs = list(node.all_input_nodes)
        gm.graph.erase_node(node)
        pending += [source for source in inputs if source.op != "placeholder"]
