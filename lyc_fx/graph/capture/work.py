"""Estimating whether running a captured program once takes little time compared to its capture."""

from math import prod

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from lyc_fx.graph.layers import graphs, sites

_LITTLE = 1e10
"""Multiplications that take about a second on two cores; capturing a program with so many takes several seconds"""


def runs_quickly(gm: GraphModule, inputs: object) -> bool:
    """Return whether all weights and inputs have values, and layers need few multiplications at the example's sizes."""
    given = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    empty = any(tensor.is_meta or isinstance(tensor, FakeTensor) for tensor in (*gm.state_dict().values(), *given))
    return not empty and _multiplications(gm) <= _LITTLE


def _multiplications(gm: GraphModule) -> int:
    """Count the multiplications of linear and convolution layers: weight elements times output positions."""
    found = 0
    for graph in graphs(gm):
        for site in sites(graph):
            weight, output = site.weight.meta.get("val"), site.node.meta.get("val")
            if not site.kind.looks_up and isinstance(weight, Tensor) and isinstance(output, Tensor):
                channels = _captured(weight.shape[site.kind.x_first(site.node)])
                found += prod(map(_captured, (*weight.shape, *output.shape))) // max(1, channels)
    return found


def _captured(size: int | torch.SymInt) -> int:
    """Return a size in the example; 2 for a size that is known only at run time."""
    return size if isinstance(size, int) else int(size.node.hint or 2)
