"""A Hadamard product of two products of ranks r and r' is one of rank r·r' (Khatri–Rao), exactly:

`up[o,(p,q)] = up₁[o,p] · up₂[o,q]`, `down[(p,q),i] = down₁[p,i] · down₂[q,i]`, and of two Tucker cores
`core[(p,p'),(q,q'),κ] = core₁[p,q,κ] · core₂[p',q',κ]`.

A chain only where it takes fewer multiplications per position than the dense product does.
"""

from math import prod

import torch
from torch.fx import Node

from lyc_fx.chains import low_rank, tucker
from lyc_fx.chains.layer import Layer
from lyc_fx.chains.parts import CONVS, DEEPEST, Viewed, matrix, shape, term
from lyc_fx.rewrite import Bindings, Miss, Op, Var

aten = torch.ops.aten


def _factors(side: int) -> Viewed:
    return Viewed(Op(aten.matmul.default, Var(f"left{side}", matrix), Var(f"right{side}", matrix)))


_PLAIN = Op(aten.mul.Tensor, _factors(1), _factors(2))
_TUCKER = Op(aten.mul.Tensor, tucker.product("1"), tucker.product("2"))


def _chain(layer: Layer, m: Bindings) -> Node | Miss:
    out, columns = layer.shape[0], prod(layer.shape[1:])
    if any(shape(m[f"left{side}"])[0] != out for side in (1, 2)):
        return Miss("the factors' rows are not the layer's outputs", DEEPEST)
    rank = shape(m["left1"])[1] * shape(m["left2"])[1]
    dear = _dear(layer, f"rank {rank}", rank * (out + layer.groups * columns))
    if dear is not None:
        return dear
    right = _pairs(layer, m["right1"], m["right2"], 0)
    return low_rank.low_rank(layer, {"left": _left(layer, m), "right": right, "scale": m["scale"]})


def _tucker(layer: Layer, m: Bindings) -> Node | Miss:
    for side in ("1", "2"):
        fault = tucker.fault(layer, m, side)
        if fault is not None:
            return fault
    (out, inner), taps = layer.shape[:2], prod(layer.shape[2:])
    (p1, q1), (p2, q2) = ((shape(m[f"left{s}"])[1], shape(m[f"columns{s}"])[1]) for s in (1, 2))
    p, q, g = p1 * p2, q1 * q2, layer.groups
    dear = _dear(layer, f"ranks {p} and {q}", g * q * inner + g * p * q * taps + p * out)
    if dear is not None:
        return dear
    emit = layer.emit
    core1 = emit(aten.reshape.default, m["taps1"], [p1, 1, q1, 1, -1])
    core2 = emit(aten.reshape.default, m["taps2"], [1, p2, 1, q2, -1])
    core = emit(aten.reshape.default, emit(aten.mul.Tensor, core1, core2), [p, q * taps])
    columns = _pairs(layer, m["columns1"], m["columns2"], 1)
    return tucker.chain(layer, _left(layer, m), core, columns, m["scale"])


def _left(layer: Layer, m: Bindings) -> Node:
    return _pairs(layer, m["left1"], m["left2"], 1)


def _pairs(layer: Layer, first: Node, second: Node, axis: int) -> Node:
    """The products of each row (axis 0) or column (axis 1) of one matrix with each of another's."""
    emit = layer.emit
    products = emit(
        aten.mul.Tensor, emit(aten.unsqueeze.default, first, axis + 1), emit(aten.unsqueeze.default, second, axis)
    )
    return emit(aten.flatten.using_ints, products, axis, axis + 1)


def _dear(layer: Layer, ranks: str, cost: int) -> Miss | None:
    dense = prod(layer.shape)
    if cost < dense:
        return None
    return Miss(
        f"a Hadamard product as a chain of {ranks} takes {cost} multiplications per position, the dense weight {dense}",
        DEEPEST,
    )


RULES = [*term("Khatri–Rao", _PLAIN, _chain), *term("Khatri–Rao of Tucker", _TUCKER, _tucker, CONVS)]
