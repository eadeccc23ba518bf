"""What depends on spliced adapters, and who reads a merged weight."""

import torch
from torch.fx import Node

from lyc_fx.graph.constants import cone, in_bank
from lyc_fx.graph.layers import REPEATS, transpose_of, weight_of
from lyc_fx.graph.rewrite import EMITTED

METADATA = torch.ops.aten._assert_tensor_metadata.default
"""What `Tensor.to` is captured with: it reads the dtype and the device alone"""
_TO = torch.ops.aten.to.dtype


def reads_bank(node: Node) -> bool:
    """Whether a weight depends on a spliced adapter."""
    return any(map(in_bank, cone(node)))


def only_layers_read(weight: Node) -> bool:
    """Whether only layers of the table read a merged weight; else it is computed at every call all the same."""
    sources = [weight]
    while (source := transpose_of(sources[-1])) is not None:
        sources.append(source)
    return all(read_as_weight(source, user) for source in sources for user in source.users)


def read_as_weight(source: Node, user: Node) -> bool:
    """Whether a node reads another as the weight of a layer, perhaps through transposes and copies."""
    if user.target is METADATA:
        return True
    if transpose_of(user) is source or user.target is _TO:
        return all(read_as_weight(user, each) for each in user.users)
    if user.meta.get(EMITTED):  # another layer's formula
        return True
    if user.target in REPEATS:
        return all(read_as_weight(source, each) for each in user.users)
    return weight_of(user) is source
