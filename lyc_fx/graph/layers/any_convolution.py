"""`aten.convolution`: what every convolution, transposed or not, is in a decomposed program."""

from typing import final

import torch
from torch.fx import Node

from lyc_fx.graph.layers.convolution import Convolution
from lyc_fx.graph.layers.kind import named


@final
class AnyConvolution(Convolution):
    ops = (torch.ops.aten.convolution.default,)

    def x_first(self, node: Node) -> bool:
        return bool(named(node)["transposed"])
