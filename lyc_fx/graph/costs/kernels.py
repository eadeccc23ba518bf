"""The kernels that a compiler makes of a graph's nodes, with their arithmetic and memory traffic.

A matrix product or convolution is a kernel of its own. Other operators that read one another are fused into one, which
reads what comes from outside and writes what is read outside; views cost nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import sympy
import torch
from torch import Tensor
from torch.fx import Node

from lyc_fx.graph.costs.arithmetic import flops, multiplies, size

aten = torch.ops.aten
_VIEWS = {
    aten.t.default, aten.transpose.int, aten.permute.default, aten.unflatten.int, aten.view.default,
    aten.expand.default, aten.slice.Tensor, aten.narrow.default, aten.select.int, aten.unsqueeze.default,
    aten.squeeze.dim, aten.detach.default, aten.alias.default,
}  # fmt: skip
_PERHAPS_VIEWS = {aten.reshape.default, aten.flatten.using_ints, aten.contiguous.default}
"""Those that copy what lies in another order"""


@final
@dataclass(frozen=True)
class Kernel:
    """One launch."""

    flops: sympy.Expr
    traffic: sympy.Expr
    """Bytes read and written"""


def kernels(nodes: Sequence[Node]) -> list[Kernel]:
    """Group nodes into kernels; what they read from outside of the sequence is in memory."""
    work = [node for node in nodes if isinstance(node.meta.get("val"), Tensor) and not _is_view(node)]
    alone = [[node] for node in work if multiplies(node)]
    return [_kernel(group) for group in alone + _fused([node for node in work if not multiplies(node)])]


def nbytes(value: Tensor) -> sympy.Expr:
    """The memory of a tensor."""
    return size(value) * value.dtype.itemsize


def _is_view(node: Node) -> bool:
    if node.op != "call_function" or node.target in _VIEWS:
        return True
    source = node.args[0] if node.args else None
    return node.target in _PERHAPS_VIEWS and isinstance(source, Node) and _lies_in_order(source)


def _lies_in_order(node: Node) -> bool:
    """Whether a value lies in memory as its operator wrote it."""
    while node.target in _VIEWS:
        if node.target in (aten.t.default, aten.transpose.int, aten.permute.default, aten.expand.default):
            return False
        node = node.args[0]  # type: ignore[assignment]  # a view of a node
    return True


def _memory(node: Node) -> Node:
    """The node whose memory a view shows."""
    while node.op == "call_function" and _is_view(node) and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def _fused(work: Sequence[Node]) -> list[list[Node]]:
    groups: dict[Node, list[Node]] = {}
    for node in work:
        own = [node]
        for source in dict.fromkeys(_memory(each) for each in node.all_input_nodes):
            if source in groups and groups[source] is not own:
                own = groups[source] + own
        for member in own:
            groups[member] = own
    return list({id(group): group for group in groups.values()}.values())


def _kernel(group: Sequence[Node]) -> Kernel:
    inside = set(group)
    read = {_memory(source) for node in group for source in node.all_input_nodes} - inside
    written = [node for node in group if any(user not in inside for user in _readers(node))]
    values = [node.meta["val"] for node in (*read, *written)]
    traffic = sum((nbytes(value) for value in values if isinstance(value, Tensor)), sympy.Integer(0))
    return Kernel(flops(group), traffic)


def _readers(node: Node) -> list[Node]:
    """What reads a node's value, through views."""
    found: list[Node] = []
    for user in node.users:
        found += _readers(user) if user.op == "call_function" and _is_view(user) else [user]
    return found
