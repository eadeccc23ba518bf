"""Replacing `x.numel()` by the product of sizes: dynamo does not support sym_numel, and breaks the graph at it."""

import operator
from functools import reduce

import torch
from torch import Tensor
from torch.fx import Graph, Node

aten = torch.ops.aten


def spell_out_counts(graph: Graph) -> int:
    """Replace each count of elements by a product of sizes. Returns how many were replaced."""
    counts = [n for n in graph.find_nodes(op="call_function", target=aten.sym_numel.default)]
    for count in counts:
        with graph.inserting_before(count):
            product = _product(graph, count)
        count.replace_all_uses_with(product, propagate_meta=False)  # type: ignore[arg-type]  # may be a number
        graph.erase_node(count)
    return len(counts)


def _product(graph: Graph, count: Node) -> Node | int:
    x = count.args[0]
    assert isinstance(x, Node)
    value = x.meta["val"]
    assert isinstance(value, Tensor)
    factors: list[tuple[Node | int, int | torch.SymInt]] = [(1, 1)]
    for position, size in enumerate(value.shape):
        if isinstance(size, int):
            factors.append((size, size))
        else:
            factors.append((_made(graph, count, size, aten.sym_size.int, x, position), size))

    def times(
        left: tuple[Node | int, int | torch.SymInt], right: tuple[Node | int, int | torch.SymInt]
    ) -> tuple[Node | int, int | torch.SymInt]:
        value = left[1] * right[1]
        if isinstance(value, int):
            return value, value
        if left[0] == 1 or right[0] == 1:
            return (left[0] if right[0] == 1 else right[0]), value
        return _made(graph, count, value, operator.mul, left[0], right[0]), value

    return reduce(times, factors)[0]


def _made(graph: Graph, like: Node, value: object, target: object, *args: object) -> Node:
    node = graph.call_function(target, args)  # type: ignore[arg-type]
    node.meta = dict(like.meta) | {"val": value}
    return node
