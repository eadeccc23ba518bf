"""`Δ = U @ D`: a narrow layer with D, then a 1×1 layer with U. Stride, padding and dilation stay with D."""

import torch
from torch.fx import Node

from lyc_fx.chains.layer import Layer
from lyc_fx.chains.parts import DEEPEST, Viewed, matrix, shape, term
from lyc_fx.rewrite import Bindings, Miss, Op, Var

PRODUCT = Viewed(Op(torch.ops.aten.matmul.default, Var("left", matrix), Var("right", matrix)))


def low_rank(layer: Layer, m: Bindings) -> Node | Miss:
    """`layer(x, left @ right) · scale`"""
    if shape(m["left"])[0] != layer.shape[0]:
        return Miss(f"the product has {shape(m['left'])[0]} rows, the layer {layer.shape[0]} outputs", DEEPEST)
    return layer.point(layer.through(layer.x, layer.scaled(m["right"], m["scale"])), m["left"], shared=False)


RULES = term("low rank", PRODUCT, low_rank)
