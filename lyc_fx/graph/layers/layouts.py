"""How kernels of convolutions lie in memory."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import Node

from lyc_fx.algebra.tensors import channels_last
from lyc_fx.graph.layers.kind import named
from lyc_fx.graph.layers.sites import weight_of
from lyc_fx.graph.layers.table import kinds

_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def in_layout_of_inputs(kernel: Node, value: Tensor, readers: Sequence[Node]) -> Tensor:
    """A kernel's value in channels last, if all its readers are convolutions of activations that lie so.

    Each call would bring it into that layout otherwise.
    """
    if value.dim() not in _LAST or not readers or not all(weight_of(reader) is kernel for reader in readers):
        return value
    if not all(_channels_last(reader) for reader in readers):
        return value
    return value.contiguous(memory_format=_LAST[value.dim()])


def _channels_last(convolution: Node) -> bool:
    """Whether the activations of a layer lie so."""
    kind = kinds()[convolution.target]  # type: ignore[index]  # of an operator of the table
    return kind.spatial and channels_last(named(convolution)[kind.x].meta["val"])
