"""Propagating fake values: what an operator returns for the fake values of its arguments.

This takes most of the time of a rewrite. So nodes with a propagated value are marked, and
`lyc_fx.graph.verify` skips them.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Node
from torch.fx.node import map_arg

_MARK = "lyc_fx_propagated"


def propagate(node: Node, mode: FakeTensorMode) -> None:
    """Compute the fake value of a call, and store and mark it. Raises what the operator's shape rule raises."""
    node.meta["val"] = value(node, mode)
    mark(node)


def value(node: Node, mode: FakeTensorMode) -> Any:
    """Compute the fake value of a call. (The dispatcher context keeps symbols symbolic on torch 2.11 and 2.12.)"""
    args: Any = map_arg(node.args, lambda n: n.meta["val"])
    kwargs: Any = map_arg(node.kwargs, lambda n: n.meta["val"])
    fresh = mode.shape_env.ignore_fresh_unbacked_symbols() if mode.shape_env is not None else nullcontext()
    assert callable(node.target)
    with mode, enable_python_dispatcher(), torch.no_grad(), fresh:
        return node.target(*args, **kwargs)


def mark(node: Node) -> None:
    """Mark a node: its fake value is what its operator returns for the present fake values of its arguments."""
    node.meta[_MARK] = _call(node)


def unmark(node: Node) -> bool:
    """Remove the mark of a node. Returns whether it was marked, and nothing that its value depends on has changed."""
    marked = node.meta.pop(_MARK, None)
    if marked is None:
        return False
    target, args, kwargs, values = _call(node)
    same = len(values) == len(marked[3]) and all(a is b for a, b in zip(values, marked[3], strict=True))
    return same and marked[:3] == (target, args, kwargs)


def _call(node: Node) -> tuple[Any, Any, Any, list[Any]]:
    return node.target, node.args, node.kwargs, [each.meta.get("val") for each in (node, *node.all_input_nodes)]
