"""canonicalize: remove what means nothing, so that the other rules see one form.

`x·1 → x`, `x.to(its own dtype) → x`, no-op reshapes and those that undo each other → x, `xᵀᵀ → x`, a widening cast
that is narrowed back → x, reshape of a reshape → one reshape, and casts outside of reshapes and transposes. It touches
only nodes that lyc-fx inserted, never the model's own.
"""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from lyc_fx.graph.pipeline import done
from lyc_fx.graph.program import holds
from lyc_fx.graph.rewrite import EMITTED, RESHAPES, Bindings, Emit, Miss, Op, Rule, Var, rewrite
from lyc_fx.graph.symbolic import difference

aten = torch.ops.aten


@final
@dataclass(frozen=True)
class Canonicalize(PassBase):
    """No options."""

    def call(self, gm: GraphModule) -> PassResult:
        fired = rewrite(gm, RULES, wanted=lambda node: bool(node.meta.get(EMITTED)))
        return done(gm, "canonicalize", fired.count, rules=fired.rules)


def _shape(node: Node) -> tuple[Any, ...]:
    return tuple(node.meta["val"].shape)


def _dtype(node: Node) -> torch.dtype:
    dtype = node.meta["val"].dtype
    assert isinstance(dtype, torch.dtype)
    return dtype


def _same_shape(emit: Emit, m: Bindings) -> Node | Miss:
    return m["x"] if difference(_shape(m["x"]), _shape(m["node"])) is None else Miss("the shape changes", 1)


def _reshape_again(emit: Emit, m: Bindings) -> Node | Miss:
    shape = list(_shape(m["node"]))
    if not all(isinstance(size, int) for size in shape):
        return Miss("a size may vary", 1)  # a graph has symbols as nodes alone
    return emit(aten.reshape.default, m["x"], shape)


def _cast_outside(emit: Emit, m: Bindings) -> Node:
    moved = emit(m["node"].target, m["x"], *m["node"].args[1:])
    return emit(aten.to.dtype, moved, m["dtype"])


def _widened(emit: Emit, m: Bindings) -> Node | Miss:
    x, wide, dtype = m["x"], m["wide"], m["dtype"]
    if not (wide.is_floating_point and dtype.is_floating_point and _dtype(x).is_floating_point):
        return Miss("not between floating-point types", 1)
    if not holds(wide, _dtype(x)):
        return Miss("the inner cast loses digits", 1)
    return x if dtype == _dtype(x) else emit(aten.to.dtype, x, dtype)


X = Var("x", lambda value: None if isinstance(value, Node) else "not a node")
ONE = Var("one", lambda value: None if isinstance(value, (int, float)) and value == 1 else "not 1")
_CAST = Op(aten.to.dtype, X, Var("dtype"))

RULES = (
    Rule(
        "x·1",
        Op((aten.mul.Tensor, aten.mul.Scalar), X, ONE, name="node"),
        lambda emit, m: m["x"] if _dtype(m["x"]) == _dtype(m["node"]) else Miss("the dtype changes", 1),
    ),
    Rule(
        "cast to own dtype",
        Op(aten.to.dtype, X, Var("dtype")),
        lambda emit, m: m["x"] if _dtype(m["x"]) == m["dtype"] else Miss("the dtype changes", 1),
    ),
    Rule("no-op reshape", Op(RESHAPES, X, ..., name="node"), _same_shape),
    Rule(
        "unflattened again",
        Op(aten.unflatten.int, Op(aten.flatten.using_ints, X, ...), ..., name="node"),
        _same_shape,
    ),
    Rule("transpose of transpose", Op(aten.t.default, Op(aten.t.default, X)), lambda emit, m: m["x"]),
    Rule("reshape of reshape", Op(RESHAPES, Op(RESHAPES, X, ...), ..., name="node"), _reshape_again),
    Rule("cast outside", Op((*RESHAPES, aten.t.default), _CAST, ..., name="node"), _cast_outside),
    Rule("widened", Op(aten.to.dtype, Op(aten.to.dtype, X, Var("wide")), Var("dtype")), _widened),
)
