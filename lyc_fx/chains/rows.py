"""What is done to the rows of a weight is done to the layer's outputs before its bias: `T·W·x + b = T·(W·x) + b`.

Where x meets the rows, the transpose of T is done to x.

T is a product of steps: a factor per row, a rotation of blocks of rows, a permutation `(c, a, b) → (c, b, a)`
(Diag-OFT: blocks; BOFT: permutation, blocks, permutation for each stage; IA3 and rescaling: factors).
In a grouped convolution a step must not mix rows of two groups: their outputs do not see the same inputs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch.fx import Node

from lyc_fx.chains.columns import REASON
from lyc_fx.chains.layer import Layer
from lyc_fx.chains.parts import DEEPEST, Viewed, factors_only, shape, stripped, whole
from lyc_fx.rewrite import EMITTED, Bindings, Miss, Op, Var

aten = torch.ops.aten


@final
@dataclass(frozen=True)
class _Step:
    """One step of a transformation of rows."""

    rest: Node
    """The weight before the step: its rows in their order, in any shape"""
    span: int
    """How many rows, one after the other, it mixes with each other"""
    act: Callable[[Layer, Node], Node]
    """The same on a layer's outputs, or its transpose on the inputs"""


def _rows(layer: Layer, m: Bindings) -> Node | Miss:
    steps: list[_Step] = []
    rest = m["total"]
    while not isinstance(step := _step(layer, rest), Miss):
        steps.append(step)
        rest = step.rest
    if not steps or step.depth == DEEPEST:
        return step
    rows = layer.shape[0] // layer.groups
    for step in steps:
        if rows % step.span:
            return Miss(f"{step.span} rows are mixed at a time, across the layer's groups of {rows} outputs", DEEPEST)
    base = layer.shaped(stripped(rest), list(layer.shape))
    if layer.x_first:
        x = layer.x
        for step in steps:
            x = step.act(layer, x)
        return layer.again(base, x)
    y = layer.again(base, bias=False)
    for step in reversed(steps):
        y = step.act(layer, y)
    return layer.biased(y)


def _step(layer: Layer, node: Node) -> _Step | Miss:
    node, miss = stripped(node), Miss("no change of rows", 0)
    if not node.meta.get(EMITTED):
        return miss
    for pattern, made in _STEPS:
        m = pattern.match(node, {})
        found = m if isinstance(m, Miss) else made(layer.shape[0], m)
        if isinstance(found, _Step):
            return found
        miss = max(miss, found, key=lambda each: each.depth)
    return miss


def _scale(out: int, m: Bindings) -> _Step | Miss:
    factor = m["factor"]
    if not isinstance(factor, Node) or shape(factor) != (out, *(1 for _ in shape(m["rest"])[1:])):
        return Miss(f"{factor} is not one factor per row", 2)
    if not factors_only(factor):
        return Miss(REASON, DEEPEST)

    def act(layer: Layer, y: Node) -> Node:
        factors = layer.shaped(factor, [-1, *[1] * layer.spatial])
        return layer.emit(aten.mul.Tensor, y, layer.fitted(factors))

    return _Step(m["rest"], 1, act)


def _turn(out: int, m: Bindings) -> _Step | Miss:
    rotation, blocks = m["rotation"], shape(m["rotation"])
    if len(blocks) != 3 or blocks[0] * blocks[1] != out or shape(m["rest"])[:2] != blocks[:2] or blocks[1] != blocks[2]:
        return Miss(f"a matrix of shape {blocks} does not turn blocks of {out} rows", 2)
    if not factors_only(rotation):
        return Miss("the matrix that turns the rows depends on the weight", DEEPEST)

    def act(layer: Layer, y: Node) -> Node:
        emit, matrices = layer.emit, layer.fitted(rotation)
        if layer.spatial:  # each block is a group
            kernel = emit(aten.reshape.default, matrices, [out, blocks[2], *[1] * layer.spatial])
            return layer.narrow(y, kernel, blocks[0], plain=True)
        parts = emit(aten.unflatten.int, y, -1, list(blocks[:2]))
        rule = "nab,...na->...nb" if layer.x_first else "nab,...nb->...na"
        return emit(aten.flatten.using_ints, emit(aten.einsum.default, rule, [matrices, parts]), -2)

    return _Step(m["rest"], blocks[1], act)


def _swap(out: int, m: Bindings) -> _Step | Miss:
    chunks, first, second = (*shape(m["rest"]), 0, 0)[:3]
    if len(shape(m["rest"])) != 4 or chunks * first * second != out:
        return Miss(f"a transposition of {shape(m['rest'])} does not permute {out} rows", 2)

    def act(layer: Layer, y: Node) -> Node:
        emit, at = layer.emit, layer.channels
        order = [second, first] if layer.x_first else [first, second]
        parts = emit(aten.unflatten.int, y, at, [chunks, *order])
        return emit(aten.flatten.using_ints, emit(aten.transpose.int, parts, at - 1, at), at - 2, at)

    return _Step(m["rest"], first * second, act)


def _is(wanted: int) -> Callable[[Any], str | None]:
    return lambda value: None if value == wanted else f"not {wanted}"


_STEPS: tuple[tuple[Op, Callable[[int, Bindings], _Step | Miss]], ...] = (
    (Op(aten.mul.Tensor, Var("rest"), Var("factor")), _scale),
    (Op(aten.matmul.default, Var("rotation"), Var("rest")), _turn),
    (Op(aten.transpose.int, Var("rest"), Var("1", _is(1)), Var("2", _is(2))), _swap),
)
RULES = whole("rows", Viewed(Var("total")), _rows)
