"""`aten.bmm` with one matrix `(in, out)` for all of a batch: a product with a weight in decomposed programs.

There the weight is expanded: `bmm(x, view(expand(W)))`.
"""

from typing import final

import torch
from torch import Tensor
from torch.fx import Node

from lyc_fx.graph.layers.kind import Arguments
from lyc_fx.graph.layers.matmul import Matmul

aten = torch.ops.aten
REPEATS = (aten.expand.default, aten.view.default, aten._unsafe_view.default, aten.reshape.default)
"""Operators that repeat one matrix for a batch"""


@final
class Bmm(Matmul):
    ops = (aten.bmm.default,)
    weight = "mat2"

    def matrix(self, weight: Node) -> Node | None:
        node = weight
        while node.op == "call_function" and node.target in REPEATS:
            source = node.args[0]
            assert isinstance(source, Node)
            size = tuple(node.meta["val"].shape[-2:])
            if tuple(source.meta["val"].shape[-2:]) != size:
                return None
            node = source
            if node.meta["val"].dim() == 2:
                return node
        return None

    def fault(self, node: Node) -> str | None:
        return None

    def base(self, call: Arguments, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.matmul(x, weight)
