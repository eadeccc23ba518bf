"""`W + s · (W·A + B)`, A and B of low rank: `layer(x, W·A) = layer(A·x, W)`, A on the input channels (GLoRA).

Where x meets the first dimension of the weight, A acts on the outputs before the bias.

So one pass through the layer serves both, `layer(x + s·A·x, W, b) + s·layer(x, B)`; beside other adapters, whose
changes the weight of that pass must not see, it takes a second one.
"""

import torch
from torch.fx import Node

from lyc_fx.chains.layer import Factor, Layer
from lyc_fx.chains.low_rank import PRODUCT, low_rank
from lyc_fx.chains.parts import CONVS, DEEPEST, LINEARS, Viewed, matrix, scaled_sum, shape, stripped, whole
from lyc_fx.rewrite import Bindings, Miss, Op, Var

aten = torch.ops.aten
_MAP = Op(aten.matmul.default, Var("a1", matrix), Var("a2", matrix))
_MAPPED = Op(aten.matmul.default, Var("base", matrix), _MAP)
_MAPPED_TAPS = Viewed(Op(aten.matmul.default, Op(aten.t.default, _MAP), Var("base")))


def _chain(layer: Layer, m: Bindings) -> Node | Miss:
    emit, inner = layer.emit, layer.shape[1]
    if shape(m["base"])[:2] != layer.shape[:2] or shape(m["a1"])[0] != inner or shape(m["a2"])[1] != inner:
        return Miss(f"no map of {inner} channels", DEEPEST)
    added = low_rank(layer, m)
    if isinstance(added, Miss):
        return added

    def mapped(x: Node) -> Node:
        return layer.product(x, Factor(m["a1"]), Factor(m["a2"]), scale=m["scale"])

    base = stripped(m["base"])
    alone = base is stripped(m["rest"])
    again = layer.shaped(base, list(layer.shape))
    if layer.x_first and alone:
        y = layer.again(m["rest"], bias=False)
        total = layer.biased(emit(aten.add.Tensor, y, mapped(y)))
    elif layer.x_first:
        total = layer.again(m["rest"])
        added = emit(aten.add.Tensor, mapped(layer.again(again, bias=False)), added)
    elif alone:
        total = layer.again(m["rest"], emit(aten.add.Tensor, layer.x, mapped(layer.x)))
    else:
        turned = mapped(layer.x)
        total = layer.again(m["rest"])
        added = emit(aten.add.Tensor, layer.again(again, turned, bias=False), added)
    return emit(aten.add.Tensor, total, added)


RULES = [
    *whole("input map", scaled_sum(Op(aten.add.Tensor, _MAPPED, PRODUCT)), _chain, LINEARS),
    *whole("input map", scaled_sum(Op(aten.add.Tensor, _MAPPED_TAPS, PRODUCT)), _chain, CONVS),
]
