"""`aten.addmm`: a weight `(in, out)`, as in Conv1D of GPT-2; decomposed programs have it for linear layers too."""

from typing import final

import torch
from torch.fx import Node

from lyc_fx.layers.linear import Linear


@final
class Addmm(Linear):
    ops = (torch.ops.aten.addmm.default,)
    x = "mat1"
    weight = "mat2"
    bias = "self"
    needs_bias = True

    def x_first(self, node: Node) -> bool:
        return True
