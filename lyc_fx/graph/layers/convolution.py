"""`aten.conv1d`, `conv2d` and `conv3d`: a weight `(out, in/groups, *kernel)`."""

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from lyc_fx.graph.layers.kind import Arguments, LayerKind, named

aten = torch.ops.aten
_PLAIN = {"stride": 1, "padding": 0, "dilation": 1, "output_padding": 0}


class Convolution(LayerKind):
    """Also the base of the other convolutions."""

    ops = tuple(op for packet in (aten.conv1d, aten.conv2d, aten.conv3d) for op in (packet.default, packet.padding))
    spatial = True

    def x_first(self, node: Node) -> bool:
        return False

    def groups(self, node: Node) -> int:
        groups = named(node)["groups"]
        assert isinstance(groups, int)
        return groups

    def narrow(self, call: Arguments, x: Tensor, weight: Tensor, *, x_first: bool, groups: int, plain: bool) -> Tensor:
        given: dict[str, Any] = {self.x: x, self.weight: weight, "bias": None, "groups": groups}
        if not plain:
            return call.call(given)
        given |= {name: [value] * (weight.dim() - 2) for name, value in _PLAIN.items() if name in call.named}
        if call.op._overloadname == "padding":
            call = Arguments(call.op.overloadpacket.default, call.named)
        return call.call(given)
