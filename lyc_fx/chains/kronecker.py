"""`Δ = A ⊗ B`, A `(l, m)`, B `(k, n, *kernel)`: channels as `(m, n)`, B on n, A on m. Never the dense product.

Where x meets the first dimension of the weight, its channels are `(l, k)`, B acts on k and A on l.

On a convolution m joins the batch while B is applied with the layer's stride, padding and dilation. With g groups
the rows of A fall into g equal parts, one for each group, where g divides l; else a group would need a part of
a row of blocks, for which there is no such chain.
"""

import torch
from torch.fx import Node

from lyc_fx.chains.layer import Layer
from lyc_fx.chains.parts import CONVS, DEEPEST, LINEARS, Viewed, shape, term
from lyc_fx.rewrite import Bindings, Miss, Op, Var

aten = torch.ops.aten
_KRON = Op(aten.kron.default, Viewed(Var("left")), Var("right"), name="product")


def _linear(layer: Layer, m: Bindings) -> Node | Miss:
    emit, left, right = layer.emit, layer.fitted(m["left"]), layer.fitted(layer.scaled(m["right"], m["scale"]))
    side = 0 if layer.x_first else 1
    split = emit(aten.unflatten.int, layer.x, -1, [shape(left)[side], shape(right)[side]])
    inner = layer.narrow(split, right)  # (…, m, k)
    outer = layer.narrow(emit(aten.transpose.int, inner, -1, -2), left)  # (…, k, l)
    return emit(aten.flatten.using_ints, emit(aten.transpose.int, outer, -1, -2), -2)


def _conv(layer: Layer, m: Bindings) -> Node | Miss:
    emit, groups, at = layer.emit, layer.groups, layer.channels
    if any(size != 1 for size in shape(m["product"].args[0])[2:]) or len(shape(m["left"])) != 2:
        return Miss("both factors have the kernel", DEEPEST)
    (rows, inner), (k, n, *_) = shape(m["left"]), shape(m["right"])
    if rows % groups:
        return Miss(f"the {rows} rows of the left factor do not fall into the layer's {groups} groups", DEEPEST)
    left, right = layer.fitted(m["left"]), layer.fitted(layer.scaled(m["right"], m["scale"]))
    split, fine = (rows // groups, k) if layer.x_first else (inner, n)
    batch, group = ("b" if len(shape(layer.x)) > layer.spatial + 1 else ""), ("g" if groups > 1 else "")
    parts = [groups, split] if group else [split]
    x = emit(aten.unflatten.int, layer.x, at, [*parts, fine])
    flat = emit(aten.flatten.using_ints, x, 0, at - 1)
    narrow = layer.narrow(flat, right)  # (b·g·m, k, …)
    narrow = emit(aten.unflatten.int, narrow, 0, [-1, *parts] if batch else parts)
    if group:
        left = emit(aten.unflatten.int, left, 0, [groups, -1])
    of, to = "lm" if layer.x_first else "ml"
    mixed = emit(aten.einsum.default, f"{group}lm,{batch}{group}{of}...->{batch}{group}{to}...", [left, narrow])
    return emit(aten.flatten.using_ints, mixed, at - 1 - len(group), at)


RULES = [*term("Kronecker", _KRON, _linear, LINEARS), *term("Kronecker", _KRON, _conv, CONVS)]
