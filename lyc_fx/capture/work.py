"""Whether running a captured program once costs little beside its capture."""

from math import prod

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from lyc_fx.layers import graphs, sites

_LITTLE = 1e10
"""Multiplications: about a second on two cores, where the capture of a program with so many takes several"""


def runs_quickly(gm: GraphModule, inputs: object) -> bool:
    """Whether all weights and inputs have values, and the layers need few multiplications at the example's sizes."""
    given = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    empty = any(tensor.is_meta or isinstance(tensor, FakeTensor) for tensor in (*gm.state_dict().values(), *given))
    return not empty and _multiplications(gm) <= _LITTLE


def _multiplications(gm: GraphModule) -> int:
    """Of linear and convolution layers: each element of a weight once for every position of the output."""
    found = 0
    for graph in graphs(gm):
        for site in sites(graph):
            weight, output = site.weight.meta.get("val"), site.node.meta.get("val")
            if isinstance(weight, Tensor) and isinstance(output, Tensor):
                channels = _captured(weight.shape[site.kind.x_first(site.node)])
                found += prod(map(_captured, (*weight.shape, *output.shape))) // max(1, channels)
    return found


def _captured(size: int | torch.SymInt) -> int:
    """A size in the example; 2 where only a run knows it."""
    return size if isinstance(size, int) else int(size.node.hint or 2)
