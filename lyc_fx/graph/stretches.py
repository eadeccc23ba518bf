"""Stretches of a program in which nothing is written, and nothing changes how operators run."""

import operator

import torch
from torch.fx import Graph, Node


def stretches(graph: Graph) -> dict[Node, int]:
    """The number of each node's stretch: equal calls in one stretch have equal values.

    A new one begins at an operator that writes to a tensor, and at whatever is no operator of torch, such as the start
    of an autocast block.
    """
    found, count = {}, 0
    for node in graph.nodes:
        plain = isinstance(node.target, torch._ops.OpOverload) and not node.target._schema.is_mutable
        if node.op.startswith("call") and not plain and node.target is not operator.getitem:
            count += 1
        found[node] = count
    return found
