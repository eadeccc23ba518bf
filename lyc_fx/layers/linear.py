"""`aten.linear`: a weight `(out, in)` on the last dimension of x."""

import torch
from torch.fx import Node

from lyc_fx.layers.kind import LayerKind
from lyc_fx.rewrite import Emit

aten = torch.ops.aten


class Linear(LayerKind):
    """Also the base of what is a linear layer in other words."""

    ops = (aten.linear.default,)

    def x_first(self, node: Node) -> bool:
        return False

    def narrow(self, emit: Emit, node: Node, x: Node, weight: Node, *, x_first: bool, groups: int, plain: bool) -> Node:
        return emit(aten.matmul.default if x_first else aten.linear.default, x, weight)
