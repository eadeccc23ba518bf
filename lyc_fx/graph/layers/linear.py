"""`aten.linear`: a weight `(out, in)` on the last dimension of x."""

import torch
from torch import Tensor
from torch.fx import Node

from lyc_fx.graph.layers.kind import Arguments, LayerKind

aten = torch.ops.aten


class Linear(LayerKind):
    """Also the base of what is a linear layer in other words."""

    ops = (aten.linear.default,)

    def x_first(self, node: Node) -> bool:
        return False

    def narrow(self, call: Arguments, x: Tensor, weight: Tensor, *, x_first: bool, groups: int, plain: bool) -> Tensor:
        return torch.matmul(x, weight) if x_first else torch.nn.functional.linear(x, weight)
