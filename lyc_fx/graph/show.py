"""Showing graphs as text, for people to read and for tests to compare."""

from typing import Any

import torch
from torch.fx import GraphModule, Node

from lyc_fx.errors import WrongArgument

_AROUND = 5


def show(gm: GraphModule, *, shapes: bool = False) -> str:
    """Return the graph as text, with one line per node: `linear = aten.linear(x, fc.weight, fc.bias)`.

    Weights are shown by their own names, instead of in lines of their own; `shapes` appends the dtype and shape of each
    result. Raises WrongArgument for anything but a GraphModule.
    """
    if not isinstance(gm, GraphModule):
        raise WrongArgument(f"a captured program is expected, not {type(gm).__name__}: bring it through lyc_fx.capture")
    return "\n".join(_line(node, shapes) for node in gm.graph.nodes if node.op != "get_attr")


def around(gm: GraphModule, culprit: Node) -> str:
    """Return the lines around one node, which is marked with `>>`."""
    nodes = list(gm.graph.nodes)
    index = nodes.index(culprit)
    window = nodes[max(0, index - _AROUND) : index + _AROUND + 1]
    return "\n".join(f"{'>>' if node is culprit else '  '} {_line(node, shapes=True)}" for node in window)


def _line(node: Node, shapes: bool) -> str:
    kind = f"  # {_type(node.meta.get('val'))}" if shapes and node.op != "output" else ""
    if node.op == "placeholder":
        return f"{node.name} = input{kind}"
    if node.op == "output":
        return f"return {_text(node.args[0])}"
    if node.op == "get_attr":
        return f"{node.name} = {node.target}{kind}"
    arguments = [_text(a) for a in node.args] + [f"{k}={_text(v)}" for k, v in node.kwargs.items()]
    return f"{node.name} = {_operator(node.target)}({', '.join(arguments)}){kind}"


def _operator(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        name = str(target)
        return name.removesuffix(".default")
    return str(getattr(target, "__name__", target))


def _text(argument: Any) -> str:
    if isinstance(argument, Node):
        return str(argument.target) if argument.op == "get_attr" else argument.name
    if isinstance(argument, (list, tuple)):
        inner = ", ".join(map(_text, argument))
        return f"[{inner}]" if isinstance(argument, list) else f"({inner})"
    return repr(argument)


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} ({', '.join(map(str, value.shape))})"
    return type(value).__name__
