"""The layer kinds: which operator, where its weight is, and its exact low-rank form. One row per kind."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from lyc_fx.conv1d import is_conv1d
from lyc_fx.program import owner

aten = torch.ops.aten


@final
@dataclass(frozen=True)
class LayerKind:
    """How one ATen overload uses a weight."""

    op: torch._ops.OpOverload
    input: int
    """Position of the activations"""
    weight: int
    bias: int
    spatial: int = 0
    """Kernel dimensions of the weight `(out, in/groups, *kernel)`"""
    transposed: bool = False
    """The weight is stored `(in, out)`"""


_LINEAR = (
    LayerKind(aten.linear.default, input=0, weight=1, bias=2),
    LayerKind(aten.addmm.default, input=1, weight=2, bias=0, transposed=True),
)
_CONV = tuple(
    LayerKind(overload, input=0, weight=1, bias=2, spatial=spatial)
    for spatial, packet in ((1, aten.conv1d), (2, aten.conv2d), (3, aten.conv3d))
    for overload in (packet.default, packet.padding)
)
KINDS: dict[torch._ops.OpOverload, LayerKind] = {kind.op: kind for kind in (*_LINEAR, *_CONV)}
"""Every layer kind by its operator."""

COMPUTED = (aten._weight_norm.default,)
"""Operators whose result is a weight that the model computes from other parameters; argument 0 is its direction."""


TRANSPOSED_CONVS = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
"""Layers without chains"""


def weight_norm_parts(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Direction and magnitude from which weight norm computes this weight; a zero row has any direction but zero."""
    magnitude = torch.norm_except_dim(weight, 2, dim)
    return torch.where(magnitude == 0, torch.ones_like(weight), weight), magnitude


@final
@dataclass(frozen=True)
class Site:
    """One place where a layer kind meets a weight."""

    kind: LayerKind
    node: Node

    @property
    def weight(self) -> Node:
        weight = self.node.args[self.kind.weight]
        assert isinstance(weight, Node)
        return weight

    @property
    def module(self) -> str:
        """Path of the module that was called here."""
        return owner(self.node)[0]


def sites(graph: Graph) -> Iterator[Site]:
    """The layers of one graph, in its order."""
    for node in graph.nodes:
        kind = KINDS.get(node.target) if node.op == "call_function" else None
        if kind is not None and isinstance(node.args[kind.weight], Node):
            yield Site(kind, node)


def graphs(gm: GraphModule) -> Iterator[Graph]:
    """The program's graph and those of its control-flow and autocast blocks."""
    for module in gm.modules():
        if isinstance(module, GraphModule):
            yield module.graph


def stored_transposed(weight: Node) -> bool:
    """Whether every layer that reads this weight has it as `(in, out)` by the layer's own convention.

    True for Conv1D of transformers (and for a bare addmm whose module capture did not record); a bare
    `torch.addmm` in a module's forward has no such convention.
    """
    layers = _layers(weight)
    return bool(layers) and all(
        kind.transposed and (not owner(user)[1] or is_conv1d(owner(user)[1])) for kind, user in layers
    )


def read_by_linear(weight: Node) -> bool:
    """Whether a layer of the table has this weight as `(out, in)`."""
    return any(not kind.transposed for kind, _ in _layers(weight))


def read_by_transposed_conv(weight: Node) -> bool:
    """Whether a transposed convolution has this weight, `(in, out/groups, *kernel)`."""
    return any(user.target in TRANSPOSED_CONVS and user.args[1] is weight for user in weight.users)


def _layers(weight: Node) -> list[tuple[LayerKind, Node]]:
    kinds = [(KINDS.get(user.target), user) for user in weight.users if isinstance(user.target, torch._ops.OpOverload)]
    return [(kind, user) for kind, user in kinds if kind is not None and user.args[kind.weight] is weight]
