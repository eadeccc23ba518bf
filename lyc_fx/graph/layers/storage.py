"""How the layers that read a weight store it, for adapters that are made for a weight `(out, in)`."""

import torch
from torch.fx import Node

from lyc_fx.base.conv1d import is_conv1d
from lyc_fx.graph.layers.kind import LayerKind
from lyc_fx.graph.layers.sites import weight_of
from lyc_fx.graph.layers.table import kinds
from lyc_fx.graph.program import owner


def stored_transposed(weight: Node) -> bool:
    """Whether every layer that reads this weight has it as `(in, out)` by the layer's own convention.

    True for Conv1D of transformers (and for a bare addmm whose module capture did not record); a bare
    `torch.addmm` in a module's forward has no such convention. Adapters for a transposed convolution are for its weight
    as it is stored.
    """
    layers = [(kind, user) for kind, user in _layers(weight) if kind.conventional and not kind.spatial]
    return bool(layers) and all(
        kind.x_first(user) and (not owner(user)[1] or is_conv1d(owner(user)[1])) for kind, user in layers
    )


def read_by_linear(weight: Node) -> bool:
    """Whether a layer of the table has this weight as `(out, in)`."""
    return any(kind.conventional and not kind.x_first(user) for kind, user in _layers(weight))


def read_by_transposed_conv(weight: Node) -> bool:
    """Whether a transposed convolution has this weight, `(in, out/groups, *kernel)`."""
    return any(kind.spatial and kind.x_first(user) for kind, user in _layers(weight))


def _layers(weight: Node) -> list[tuple[LayerKind, Node]]:
    users = [user for user in weight.users if isinstance(user.target, torch._ops.OpOverload)]
    known = kinds()
    return [(known[user.target], user) for user in users if weight_of(user) is weight]  # type: ignore[index]
