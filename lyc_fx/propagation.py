"""Fake values of nodes: what an operator gives for the fake values of its arguments.

This is most of a rewrite's time, so that what is propagated is marked, and `lyc_fx.verify` does not do it again.
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
    """Give a call its fake value. Raises what the operator's shape rule raises."""
    node.meta["val"] = value(node, mode)
    mark(node)


def value(node: Node, mode: FakeTensorMode) -> Any:
    """What a call gives. (The dispatcher context keeps symbols symbolic on torch 2.11 and 2.12.)"""
    args: Any = map_arg(node.args, lambda n: n.meta["val"])
    kwargs: Any = map_arg(node.kwargs, lambda n: n.meta["val"])
    fresh = mode.shape_env.ignore_fresh_unbacked_symbols() if mode.shape_env is not None else nullcontext()
    assert callable(node.target)
    with mode, enable_python_dispatcher(), torch.no_grad(), fresh:
        return node.target(*args, **kwargs)


def mark(node: Node) -> None:
    """Note that the fake value is what this operator gives for the fake values that its arguments have now."""
    node.meta[_MARK] = _call(node)


def unmark(node: Node) -> bool:
    """Whether a node is marked and nothing that its value hangs on has changed since. It is marked no more."""
    marked = node.meta.pop(_MARK, None)
    if marked is None:
        return False
    target, args, kwargs, values = _call(node)
    same = len(values) == len(marked[3]) and all(a is b for a, b in zip(values, marked[3], strict=True))
    return same and marked[:3] == (target, args, kwargs)


def _call(node: Node) -> tuple[Any, Any, Any, list[Any]]:
    return node.target, node.args, node.kwargs, [each.meta.get("val") for each in (node, *node.all_input_nodes)]
