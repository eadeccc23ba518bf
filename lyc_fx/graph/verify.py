"""Verifying a graph after a pass, against a `Snapshot` of it from before the pass."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from lyc_fx.errors import InvalidGraph
from lyc_fx.graph.program import fake_mode, get_tensor
from lyc_fx.graph.propagation import unmark, value
from lyc_fx.graph.show import around
from lyc_fx.graph.symbolic import difference, symbol_names


@final
@dataclass(frozen=True)
class Snapshot:
    """The state of a graph before a pass, by node."""

    inputs: dict[Node, tuple[Node, ...]]
    """The nodes that each node reads"""
    calls: dict[Node, tuple[Any, ...]]
    """Target, arguments and keyword arguments of each node"""
    values: dict[Node, Any]
    """The fake value of each node"""

    @classmethod
    def of(cls, gm: GraphModule) -> Self:
        """Take a snapshot of a program's graph."""
        nodes = list(gm.graph.nodes)
        return cls(
            {node: _flat_inputs(node) for node in nodes},
            {node: (node.target, node.args, node.kwargs) for node in nodes},
            {node: node.meta.get("val") for node in nodes},
        )


def verify(gm: GraphModule, before: Snapshot, name: str) -> None:
    """Check a graph after the pass `name`. Raises InvalidGraph, which shows the graph around the fault, unless

    - the graph is well-formed (`Graph.lint`);
    - each stored weight has the shape and dtype that its node declares;
    - for every node that is new or has other arguments, fake-tensor propagation gives the value that it declares
      (nodes marked as propagated are skipped);
    - wherever a node now reads another node than before, the two have the same dtype and provably the same
      shape. So every layer that was touched keeps its shape, and by induction every output does.
    """
    try:
        gm.graph.lint()
    except RuntimeError as error:
        raise InvalidGraph(f"after pass {name}: {error}") from error
    mode = fake_mode(gm)
    for node in gm.graph.nodes:
        fault = _fault(gm, node, before, mode)
        if fault is not None:
            sizes = ", ".join(f"{symbol} is {where}" for symbol, where in symbol_names(gm).items() if symbol in fault)
            raise InvalidGraph(
                f"after pass {name}, at {node.name}: {fault}{f' ({sizes})' if sizes else ''}\n{around(gm, node)}"
            )


def _fault(gm: GraphModule, node: Node, before: Snapshot, mode: FakeTensorMode) -> str | None:
    declared, propagated = node.meta.get("val"), unmark(node)
    if node.op == "get_attr" and isinstance(declared, Tensor):
        return _differ(declared, get_tensor(gm, str(node.target)), "the stored tensor")
    if node in before.calls:
        for old, new in zip(before.inputs[node], _flat_inputs(node), strict=False):
            if old is not new:
                fault = _differ(before.values[old], new.meta.get("val"), f"{new.name}, which replaces {old.name},")
                if fault is not None:
                    return fault
        if _but_for_nodes(before.calls[node]) == _but_for_nodes((node.target, node.args, node.kwargs)):
            return None
    return None if propagated or node.op != "call_function" else _propagate(node, declared, mode)


def _propagate(node: Node, declared: Any, mode: FakeTensorMode) -> str | None:
    if not isinstance(node.target, torch._ops.OpOverload) or not isinstance(declared, Tensor):
        return None
    try:
        given = value(node, mode)
    except Exception as error:  # whatever an operator's shape rule raises is a fault of the pass
        return f"{node.target} refuses its arguments: {error}"
    return _differ(declared, given, "what the operator gives")


def _differ(old: Any, new: Any, what: str) -> str | None:
    if not isinstance(old, Tensor) or not isinstance(new, Tensor):
        return None
    if old.dtype != new.dtype:
        return f"{what} has dtype {new.dtype}, not {old.dtype}"
    gap = difference(tuple(old.shape), tuple(new.shape))
    return None if gap is None else f"{what} has another shape: {gap}"


def _but_for_nodes(call: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a call without the nodes that it reads. Other nodes of the same shapes and dtypes give the same value."""
    target, args, kwargs = call
    return target, map_arg(args, lambda node: None), map_arg(kwargs, lambda node: None)


def _flat_inputs(node: Node) -> tuple[Node, ...]:
    """Return the nodes that a node reads, one for each argument that is a node."""
    return tuple(_leaves((node.args, node.kwargs)))


def _leaves(argument: Any) -> Iterator[Node]:
    if isinstance(argument, Node):
        yield argument
    elif isinstance(argument, dict):
        for value in argument.values():
            yield from _leaves(value)
    elif isinstance(argument, slice):
        yield from _leaves((argument.start, argument.stop, argument.step))
    elif isinstance(argument, Sequence) and not isinstance(argument, str):
        for value in argument:
            yield from _leaves(value)
