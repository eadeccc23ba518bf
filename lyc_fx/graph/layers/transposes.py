"""The ways to write the transpose of a matrix."""

import torch
from torch.fx import Node

aten = torch.ops.aten
_ALWAYS = (aten.t.default, aten.numpy_T.default, aten.mT.default)


def transpose_of(node: Node) -> Node | None:
    """The matrix of which a node is the transpose."""
    source = node.args[0] if node.op == "call_function" and node.args else None
    value = source.meta.get("val") if isinstance(source, Node) else None
    if not isinstance(value, torch.Tensor) or value.dim() != 2:
        return None
    swaps = node.target in _ALWAYS or (
        (node.target is aten.permute.default and _moved(node.args[1]) == [1, 0])
        or (node.target is aten.transpose.int and sorted(_moved(node.args[1:3])) == [0, 1])
    )
    return source if swaps else None  # type: ignore[return-value]  # a node: it has a value


def _moved(dims: object) -> list[int]:
    return [int(dim) % 2 for dim in dims]  # type: ignore[attr-defined]  # a list by the schema
