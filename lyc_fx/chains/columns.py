"""A factor per channel of the weight's second dimension: `layer(x, W·f) = layer(x·f, W)`, where x meets that one.

Else the outputs before the bias are multiplied. In a grouped convolution each group has the same factors, or its own.
"""

import torch
from torch.fx import Node

from lyc_fx.chains.layer import Layer
from lyc_fx.chains.parts import DEEPEST, Viewed, factors_only, shape, stripped, whole
from lyc_fx.rewrite import Bindings, Miss, Op, Var

aten = torch.ops.aten
REASON = "the factor is computed from the merged weight (a weight decomposition, DoRA), which a chain never builds"


def _tensor(value: object) -> str | None:
    return None if isinstance(value, Node) and shape(value) else "not a factor per channel"


_SCALED = Viewed(Op(aten.mul.Tensor, Var("rest"), Var("factor", _tensor), name="scaled"))


def _columns(layer: Layer, m: Bindings) -> Node | Miss:
    groups, inner, factor = layer.groups, layer.shape[1], m["factor"]
    ones = [1] * layer.spatial
    sets = shape(factor)[0]
    shared = shape(m["scaled"]) == layer.shape and shape(factor) == (1, inner, *ones)
    own = len(shape(m["scaled"])) == len(layer.shape) + 1 and shape(factor) == (sets, 1, inner, *ones)
    if not shared and not own:
        return Miss(f"a factor of shape {shape(factor)} is not one per channel", 3)
    if not factors_only(factor):
        return Miss(REASON, DEEPEST)
    if own and sets != groups:
        return Miss(f"the factor is one of {sets} groups, the layer has {groups}", DEEPEST)
    factor = layer.fitted(layer.shaped(factor, [-1, *ones]))
    if shared and groups > 1:
        factor = layer.emit(aten.repeat.default, factor, [groups, *ones])
    rest = layer.shaped(stripped(m["rest"]), list(layer.shape))
    if layer.x_first:
        return layer.biased(layer.emit(aten.mul.Tensor, layer.again(rest, bias=False), factor))
    return layer.again(rest, layer.emit(aten.mul.Tensor, layer.x, factor))


RULES = whole("columns", _SCALED, _columns)
