"""`x @ W`: a weight `(in, out)`; read through a transpose, `(out, in)`."""

from typing import final

import torch
from torch.fx import Node

from lyc_fx.graph.layers.linear import Linear

aten = torch.ops.aten


class Matmul(Linear):
    ops = (aten.matmul.default,)
    x = "self"
    weight = "other"
    bias = None
    conventional = False
    of_any_two = True

    def x_first(self, node: Node) -> bool:
        return True


@final
class Mm(Matmul):
    """As it is called between two matrices."""

    ops = (aten.mm.default,)
    weight = "mat2"
