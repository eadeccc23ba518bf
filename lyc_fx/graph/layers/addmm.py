"""`aten.addmm`: a weight `(in, out)`, as in Conv1D of GPT-2; decomposed programs have it for linear layers too."""

from typing import final

import torch
from torch import Tensor
from torch.fx import Node

from lyc_fx.graph.layers.kind import Arguments
from lyc_fx.graph.layers.linear import Linear


@final
class Addmm(Linear):
    ops = (torch.ops.aten.addmm.default,)
    x = "mat1"
    weight = "mat2"
    bias = "self"

    def x_first(self, node: Node) -> bool:
        return True

    def base(self, call: Arguments, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.matmul(x, weight) if bias is None else super().base(call, x, weight, bias)
