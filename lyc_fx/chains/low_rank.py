"""`Δ = U @ D`: a narrow layer with D, which has stride, padding and dilation, and a 1×1 layer with U.

First comes the one that x meets: D, or U where x meets the first dimension of the weight.
"""

import torch
from torch.fx import Node

from lyc_fx.chains.layer import Factor, Layer
from lyc_fx.chains.parts import DEEPEST, Viewed, matrix, shape, term
from lyc_fx.rewrite import Bindings, Miss, Op, Var

PRODUCT = Viewed(Op(torch.ops.aten.matmul.default, Var("left", matrix), Var("right", matrix)))


def low_rank(layer: Layer, m: Bindings) -> Node | Miss:
    """`layer(x, left @ right) · scale`"""
    if shape(m["left"])[0] != layer.shape[0]:
        side = "inputs" if layer.x_first else "outputs"
        return Miss(f"the product has {shape(m['left'])[0]} rows, the layer {layer.shape[0]} {side}", DEEPEST)
    return layer.product(layer.x, Factor(m["left"], shared=False), Factor(m["right"], whole=True), scale=m["scale"])


RULES = term("low rank", PRODUCT, low_rank)
