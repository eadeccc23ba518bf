"""`aten.embedding`: rows of a weight `(rows, channels)`, by their indices."""

from typing import final

import torch
from torch.fx import Node

from lyc_fx.layers.kind import LayerKind, named
from lyc_fx.rewrite import Emit

aten = torch.ops.aten


@final
class Embedding(LayerKind):
    ops = (aten.embedding.default,)
    x = "indices"
    bias = None
    looks_up = True
    conventional = False

    def x_first(self, node: Node) -> bool:
        return True

    def narrow(self, emit: Emit, node: Node, x: Node, weight: Node, *, x_first: bool, groups: int, plain: bool) -> Node:
        if x.meta["val"].dtype.is_floating_point:  # what was looked up
            return emit(aten.matmul.default, x, weight)
        return emit(aten.embedding.default, weight, x)

    def fault(self, node: Node) -> str | None:
        scaled = named(node)["scale_grad_by_freq"]
        return "gradients are scaled by how often an index occurs, which a chain's are not" if scaled else None

    def finish(self, emit: Emit, node: Node, y: Node) -> Node:
        """Where the index is that of padding, nothing has a gradient."""
        if (padding := named(node)["padding_idx"]) < 0:
            return y
        here = emit(aten.unsqueeze.default, emit(aten.eq.Scalar, named(node)[self.x], padding), -1)
        return emit(aten.where.self, here, emit(aten.detach.default, y), y)
