"""`aten.conv_transpose1d` to `3d`: a weight `(in, out/groups, *kernel)`, and adapters for it as it is stored."""

from typing import final

import torch
from torch.fx import Node

from lyc_fx.graph.layers.convolution import Convolution

aten = torch.ops.aten


@final
class TransposedConvolution(Convolution):
    ops = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
    conventional = False

    def x_first(self, node: Node) -> bool:
        return True
