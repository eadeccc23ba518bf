"""A Tucker core on a convolution: 1×1 with the factor that x meets, the core's k×k, 1×1 with the other factor."""

import torch
from torch.fx import Node

from lyc_fx.chains.layer import Factor, Layer
from lyc_fx.chains.parts import CONVS, DEEPEST, RESHAPES, Viewed, matrix, shape, term
from lyc_fx.rewrite import Bindings, Miss, Op, Pattern, Var

aten = torch.ops.aten


def product(side: str = "") -> Pattern:
    """`columns (I, q) @ (left (O, p) @ taps (p, q·κ)).reshape(O, q, κ)`; `side` is appended to the names."""
    inner = Op(aten.matmul.default, Var(f"left{side}", matrix), Var(f"taps{side}", matrix))
    outer = Op(RESHAPES, inner, ..., name=f"inner{side}")
    return Viewed(Op(aten.matmul.default, Var(f"columns{side}", matrix), outer))


def fault(layer: Layer, m: Bindings, side: str = "") -> Miss | None:
    """Why the reshapes of a match are not those of a Tucker product."""
    columns, inner = shape(m[f"columns{side}"]), shape(m[f"inner{side}"])
    out, inputs = layer.shape[:2]
    if len(inner) == 3 and columns == (inputs, inner[1]) and inner[0] == shape(m[f"left{side}"])[0] == out:
        return None
    return Miss(f"a product of {columns} and {inner} is no Tucker product for a weight {layer.shape}", DEEPEST)


def chain(layer: Layer, left: Node, taps: Node, columns: Node, scale: Node) -> Node:
    """The three convolutions."""
    core, last = Factor(taps, whole=True), Factor(columns, transposed=True)
    return layer.product(layer.x, Factor(left, shared=False), core, last, scale=scale)


def _tucker(layer: Layer, m: Bindings) -> Node | Miss:
    return fault(layer, m) or chain(layer, m["left"], m["taps"], m["columns"], m["scale"])


RULES = term("Tucker", product(), _tucker, CONVS)
