"""Patterns over FX nodes. A pattern that does not match says why.

A pattern reads like the expression that it matches: `Op(aten.matmul.default, Var("up"), Var("down"))`.
Arguments are matched by position. Those that the graph leaves out have their schema's default, and those that the
pattern leaves out must have it: `add(x, y, alpha=4)` is no `Op(aten.add.Tensor, Var("x"), Var("y"))`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import EllipsisType
from typing import Any, final

import torch
from torch.fx import Node

Bindings = dict[str, Any]
RESHAPES = (
    torch.ops.aten.reshape.default,
    torch.ops.aten.view.default,
    torch.ops.aten._unsafe_view.default,
    torch.ops.aten.flatten.using_ints,
)
"""The operators that only give the numbers of a tensor another shape"""


@final
@dataclass(frozen=True)
class Miss:
    """Why a pattern did not match, how deep the match got, and at which node."""

    reason: str
    depth: int

    def __str__(self) -> str:
        return self.reason


class Pattern(ABC):
    """Abstract: something that an argument of a node can match."""

    @abstractmethod
    def match(self, value: Any, bound: Bindings, depth: int = 0) -> Bindings | Miss:
        """The bindings with this pattern's added, or why not. `bound` is not changed."""


@final
@dataclass(frozen=True)
class Var(Pattern):
    """Matches anything and binds it; the same name twice means the same thing. `where` may refuse with a reason."""

    name: str
    where: Callable[[Any], str | None] | None = None

    def match(self, value: Any, bound: Bindings, depth: int = 0) -> Bindings | Miss:
        if self.name in bound:
            same = bound[self.name] is value or (not isinstance(value, Node) and bound[self.name] == value)
            return bound if same else Miss(f"{self.name} is both {bound[self.name]} and {value}", depth)
        reason = self.where(value) if self.where is not None else None
        return {**bound, self.name: value} if reason is None else Miss(f"{self.name} = {value}: {reason}", depth)


@final
class Op(Pattern):
    """Matches a call of one of some operators; `name`, if given, is bound to the node.

    `...` at the end stands for further arguments, whatever they are.
    """

    def __init__(self, target: Any, *args: Pattern | EllipsisType, name: str | None = None) -> None:
        self.targets = target if isinstance(target, tuple) else (target,)
        self.args = tuple(pattern for pattern in args if isinstance(pattern, Pattern))
        self.open = args[-1:] == (...,)
        self.name = name

    def match(self, value: Any, bound: Bindings, depth: int = 0) -> Bindings | Miss:
        if not isinstance(value, Node) or value.op != "call_function" or value.target not in self.targets:
            found = value.target if isinstance(value, Node) else repr(value)
            return Miss(f"{value} is {found}, not {' or '.join(map(str, self.targets))}", depth)
        if self.name is not None:
            bound = {**bound, self.name: value}
        given = arguments(value)
        if len(given) < len(self.args):
            return Miss(f"{value} has {len(given)} arguments, not {len(self.args)}", depth)
        for pattern, argument in zip(self.args, given, strict=False):
            result = pattern.match(argument, bound, depth + 1)
            if isinstance(result, Miss):
                return result
            bound = result
        return bound if self.open else _unnamed(value, len(self.args), depth) or bound


@final
class Either(Pattern):
    """Matches the first of several patterns that matches; a miss is that which got furthest."""

    def __init__(self, *patterns: Pattern) -> None:
        self.patterns = patterns

    def match(self, value: Any, bound: Bindings, depth: int = 0) -> Bindings | Miss:
        misses = []
        for pattern in self.patterns:
            result = pattern.match(value, bound, depth)
            if not isinstance(result, Miss):
                return result
            misses.append(result)
        return max(misses, key=lambda miss: miss.depth)


def arguments(node: Node) -> tuple[Any, ...]:
    """A node's arguments by the position in its operator's schema, with defaults filled in."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.args
    given = list(node.args)
    for name, default in _parameters(node.target)[len(given) :]:
        given.append(node.kwargs.get(name, default))
    return tuple(given)


def _unnamed(node: Node, count: int, depth: int) -> Miss | None:
    """A miss where an argument after the first `count` is not what the operator's schema has for it."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return Miss(f"{node} has further arguments", depth) if node.kwargs or len(node.args) > count else None
    for (name, default), value in list(zip(_parameters(node.target), arguments(node), strict=True))[count:]:
        if isinstance(value, Node) or value != default:
            return Miss(f"{node} is called with {name} = {value}", depth)
    return None


@cache
def _parameters(op: torch._ops.OpOverload) -> tuple[tuple[str, Any], ...]:
    return tuple((a.name, a.default_value if a.has_default_value() else None) for a in op._schema.arguments)
