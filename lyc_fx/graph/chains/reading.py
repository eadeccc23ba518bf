"""How a layer of a program reads a merged weight."""

from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.fx import Node

from lyc_fx.algebra.layer import NoChain
from lyc_fx.graph.layers import Call, Site, named, transpose_of
from lyc_fx.graph.merged_weight import MergedWeight, base_of, formula_of, tensors_of
from lyc_fx.graph.rewrite import MERGED

_TO = torch.ops.aten.to.dtype


@final
@dataclass(frozen=True)
class Reading:
    """A layer, and the merged weight that it reads."""

    site: Site
    merged: Node
    made: MergedWeight
    base: Node
    """What gives the weight that the merged one is made of"""
    turned: bool
    """Whether the layer reads the transpose of the weight as it is stored"""
    casts: tuple[torch.dtype, ...]
    """What the model itself casts the weight to, one after the other"""

    @classmethod
    def of(cls, site: Site) -> Self:
        """Raises NoChain where the layer reads something else, or in a way for which there is no chain."""
        node, turned, casts = site.weight, False, list[torch.dtype]()
        while MERGED not in node.meta:
            if (source := transpose_of(node)) is not None:
                node, turned = source, not turned
            elif node.target is _TO and isinstance(node.args[0], Node) and _is_cast_of_activations(node.args[1]):
                casts.append(node.meta["val"].dtype)
                node = node.args[0]
            elif node.target is _TO:
                raise NoChain(f"the adapted weight is rounded to {node.args[1]} on its way to the layer")
            else:
                raise NoChain(f"the adapted weight goes through {node.target} on its way to the layer")
        made, base = node.meta[MERGED], base_of(node)
        if base is None or formula_of(node) != made.formula:
            raise NoChain("the formula of the adapted weight was changed after splice")
        found = cls(site, node, made, base, turned, tuple(reversed(casts)))
        found._refuse()
        return found

    def _refuse(self) -> None:
        """Raise NoChain for a call that no chain stands for, whatever the adapters."""
        node, kind = self.site.node, self.site.kind
        if node.kwargs:  # addmm's alpha and beta
            raise NoChain(f"the layer is called with {', '.join(node.kwargs)}")
        if (fault := kind.fault(node)) is not None:
            raise NoChain(fault)
        if kind.looks_up and self.turned:
            raise NoChain("the layer looks up columns of the weight")
        values = (each.meta.get("val") for each in node.all_input_nodes)
        if any(isinstance(value, Tensor) and is_functorch_wrapped_tensor(value) for value in values):
            raise NoChain("the layer is under torch.func.vmap")  # fake values exist only while that transforms it

    @property
    def call(self) -> Call:
        """The layer as the adapters see it."""
        shape = tuple(self.merged.meta["val"].shape)
        transposed = self.made.transposed
        logical = shape[::-1] if transposed else shape
        return Call.of(self.site.kind, self.site.node, logical, transposed=self.turned != transposed)

    @property
    def inputs(self) -> dict[str, Node]:
        """The nodes that a chain reads, the adapters' apart."""
        given = named(self.site.node)
        bias = given.get(self.site.kind.bias) if self.site.kind.bias is not None else None
        return {"x": given[self.site.kind.x], "base": self.base} | ({} if bias is None else {"bias": bias})

    @property
    def tensors(self) -> dict[str, Node]:
        """The nodes that give strengths and factors, by name."""
        return tensors_of(self.merged, self.made)


def _is_cast_of_activations(dtype: object) -> bool:
    """Whether a weight may have this dtype where activations have it: what is rounded further is another weight."""
    return isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1
