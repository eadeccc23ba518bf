"""The structures that stay in weight space, and why."""

import torch
from torch.fx import Node

from lyc_fx.chains.columns import REASON
from lyc_fx.chains.parts import Viewed, factors_only, scalar, scaled_sum, stays
from lyc_fx.rewrite import Either, Op, Var

aten = torch.ops.aten


def _stored(value: object) -> str | None:
    return None if isinstance(value, Node) and value.op == "get_attr" else "computed"


def _of_weight(value: object) -> str | None:
    return None if isinstance(value, Node) and not factors_only(value) else "computed from factors alone"


_DENSE = Viewed(Var("dense", _stored))
_INTERPOLATED = Op(
    aten.add.Tensor,
    Var("base"),
    Op(aten.mul.Tensor, Var("strength", scalar), Op(aten.sub.Tensor, Op(aten.mul.Tensor, ...), Var("base"))),
)
_NORMED = Op(aten.mul.Tensor, Var("direction"), Var("ratio", _of_weight))
_SINGULAR = Op(aten.mul.Tensor, Op(aten.sub.Tensor, Op(aten.matmul.default, ...), Op(aten.matmul.default, ...)), ...)

RULES = [
    *stays("full", scaled_sum(_DENSE), "a full difference has no form that is smaller than the weight"),
    *stays("DoRA", _INTERPOLATED, REASON),
    *stays("DoRA", Op(aten.add.Tensor, Var("rest"), Op(aten.sub.Tensor, Either(_INTERPOLATED, _NORMED), ...)), REASON),
    *stays(
        "T-LoRA",
        Op(aten.add.Tensor, Var("rest"), Viewed(_SINGULAR)),
        "the change is measured from the weight's own singular vectors, which a chain never computes",
    ),
    *stays(
        "beside others",
        Op(aten.add.Tensor, Var("rest"), Op(aten.sub.Tensor, ...)),
        "a map of the base weight beside other adapters: a chain would take a second pass through the layer",
    ),
    *stays("Hadamard", scaled_sum(Op(aten.mul.Tensor, ...)), "a product of two full tensors has no chain"),
]
