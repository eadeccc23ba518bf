"""`aten.conv1d`, `conv2d` and `conv3d`: a weight `(out, in/groups, *kernel)`."""

import torch
from torch.fx import Node

from lyc_fx.layers.kind import LayerKind, named
from lyc_fx.rewrite import Emit

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

    def narrow(self, emit: Emit, node: Node, x: Node, weight: Node, *, x_first: bool, groups: int, plain: bool) -> Node:
        target, given = node.target, named(node)
        given |= {self.x: x, self.weight: weight, "bias": None, "groups": groups}
        if plain:
            dims = len(weight.meta["val"].shape) - 2
            given |= {name: [value] * dims for name, value in _PLAIN.items() if name in given}
            if target._overloadname == "padding":  # type: ignore[union-attr]  # an overload of the table
                target = target.overloadpacket.default  # type: ignore[union-attr]
        return emit(target, *given.values())
