"""`aten.embedding`: rows of a weight `(rows, channels)`, by their indices."""

from typing import final

import torch
from torch import Tensor
from torch.fx import Node

from lyc_fx.graph.layers.kind import Arguments, LayerKind, named

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

    def narrow(self, call: Arguments, x: Tensor, weight: Tensor, *, x_first: bool, groups: int, plain: bool) -> Tensor:
        return torch.matmul(x, weight) if x.dtype.is_floating_point else torch.embedding(weight, x)

    def fault(self, node: Node) -> str | None:
        scaled = named(node)["scale_grad_by_freq"]
        return "gradients are scaled by how often an index occurs, which a chain's are not" if scaled else None

    def finish(self, call: Arguments, x: Tensor, y: Tensor) -> Tensor:
        """Where the index is that of padding, nothing has a gradient."""
        padding = call.named["padding_idx"]
        return y if padding < 0 else torch.where((x == padding).unsqueeze(-1), y.detach(), y)
