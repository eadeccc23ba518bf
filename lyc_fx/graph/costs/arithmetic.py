"""Floating-point operations of matrix products and convolutions, from the shapes of a call."""

from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.fx import Node

from lyc_fx.graph.rewrite import arguments

aten = torch.ops.aten
Shapes = Sequence[Sequence[sympy.Expr]]
"""Of the operator's tensors, in order"""


def flops(nodes: Iterable[Node]) -> sympy.Expr:
    """The operations of a graph's nodes: two for each multiplication that is summed, none for all other operators."""
    return sum((_flops(node) for node in nodes), sympy.Integer(0))


def multiplies(node: Node) -> bool:
    """Whether a node is a matrix product or a convolution, which runs as a kernel of its own."""
    return node.target in _RULES


def size(value: Tensor) -> sympy.Expr:
    """The number of a tensor's elements."""
    return prod(expressions(value), start=sympy.Integer(1))


def expressions(value: Tensor) -> list[sympy.Expr]:
    """The sizes of a tensor."""
    return [sympy.Integer(s) if isinstance(s, int) else s.node.expr for s in value.shape]


def _flops(node: Node) -> sympy.Expr:
    rule = _RULES.get(node.target)
    return sympy.Integer(0) if rule is None else 2 * rule(node)


def _inputs(node: Node) -> list[list[sympy.Expr]]:
    return [expressions(each.meta["val"]) for each in arguments(node) if isinstance(each, Node)]


def _product(node: Node) -> sympy.Expr:
    """Of `(…, k)` and `(k, n)`."""
    return size(node.meta["val"]) * _inputs(node)[0][-1]


def _sum_of_product(node: Node) -> sympy.Expr:
    return size(node.meta["val"]) * _inputs(node)[1][-1]


def _convolution(node: Node) -> sympy.Expr:
    """Every output sums over `in/groups · kernel` inputs."""
    return size(node.meta["val"]) * prod(_inputs(node)[1][1:], start=sympy.Integer(1))


def _transposed(node: Node) -> sympy.Expr:
    """Every input is spread over `out/groups · kernel` outputs."""
    x, weight = _inputs(node)[:2]
    return prod(x, start=sympy.Integer(1)) * prod(weight[1:], start=sympy.Integer(1))


def _either(node: Node) -> sympy.Expr:
    transposed: Any = arguments(node)[6]
    return _transposed(node) if transposed else _convolution(node)


def _einsum(node: Node) -> sympy.Expr:
    """Over all indices; `…` stands for dimensions of one operand that the result has too."""
    equation, operands = str(node.args[0]), node.args[1]
    assert isinstance(operands, (list, tuple))
    sides, result = equation.split("->")
    summed: dict[str, sympy.Expr] = {}
    for text, operand in zip(sides.split(","), operands, strict=True):
        shape = expressions(operand.meta["val"])  # type: ignore[union-attr]  # a node
        first, _, last = text.partition("...")
        pairs = [*zip(first, shape, strict=False), *zip(reversed(last), reversed(shape), strict=False)]
        summed |= {letter: each for letter, each in pairs if letter not in result}
    return size(node.meta["val"]) * prod(summed.values(), start=sympy.Integer(1))


_RULES: dict[Any, Callable[[Node], sympy.Expr]] = {
    aten.linear.default: _product,
    aten.mm.default: _product,
    aten.bmm.default: _product,
    aten.matmul.default: _product,
    aten.addmm.default: _sum_of_product,
    aten.einsum.default: _einsum,
    aten.conv1d.default: _convolution,
    aten.conv2d.default: _convolution,
    aten.conv3d.default: _convolution,
    aten.conv1d.padding: _convolution,
    aten.conv2d.padding: _convolution,
    aten.conv3d.padding: _convolution,
    aten.conv_transpose1d.default: _transposed,
    aten.conv_transpose2d.input: _transposed,
    aten.conv_transpose3d.input: _transposed,
    aten.convolution.default: _either,
}
