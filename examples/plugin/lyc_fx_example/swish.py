"""swish: `x · sigmoid(x)`, as many models write it, is one operator."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from lyc_fx.graph.pipeline import done
from lyc_fx.graph.rewrite import Bindings, Emit, Op, Rule, Var, rewrite

aten = torch.ops.aten


def _floating(x: object) -> str | None:
    return None if isinstance(x, Node) and x.meta["val"].is_floating_point() else "no floating-point numbers"


def _silu(emit: Emit, m: Bindings) -> Node:
    return emit(aten.silu.default, m["x"])


_X = Var("x", _floating)
_SIGMOID = Op(aten.sigmoid.default, _X)
_RULES = (
    Rule("x · sigmoid(x)", Op(aten.mul.Tensor, _X, _SIGMOID), _silu),
    Rule("sigmoid(x) · x", Op(aten.mul.Tensor, _SIGMOID, _X), _silu),
)


@final
@dataclass(frozen=True)
class Swish(PassBase):
    """`lyc_fx.lower(adapted, passes=["swish"])`."""

    name: ClassVar[str] = "swish"

    def call(self, gm: GraphModule) -> PassResult:
        fired = rewrite(gm, _RULES)
        return done(gm, self.name, fired.count, rules=fired.rules)
