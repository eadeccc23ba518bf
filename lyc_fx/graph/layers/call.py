"""A layer kind's call as the algebra sees it: the weight in the adapters' layout, and what takes a narrow one."""

from dataclasses import dataclass
from typing import Any, Self, final

import torch
from torch import Tensor
from torch.fx import Node

from lyc_fx.algebra.layer import Layer
from lyc_fx.graph.layers.kind import Arguments, LayerKind, named


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Call(Layer):
    """A call of an operator of the table."""

    kind: LayerKind
    arguments: Arguments

    @classmethod
    def of(cls, kind: LayerKind, node: Node, shape: tuple[int, ...], *, transposed: bool) -> Self:
        """Of a node. `shape` is that of the weight in the adapters' layout, and `transposed` says whether the operator
        reads the transpose of it.
        """
        assert isinstance(node.target, torch._ops.OpOverload)
        schema = {argument.name: argument.kwarg_only for argument in node.target._schema.arguments}
        given = {name: value for name, value in named(node).items() if not schema[name]}
        constants = {name: None if isinstance(value, Node) else value for name, value in given.items()}
        return cls(
            kind=kind,
            arguments=Arguments(node.target, constants),
            shape=shape,
            x_first=kind.x_first(node) != transposed,
            groups=kind.groups(node),
            looks_up=kind.looks_up,
            spatial=kind.spatial,
            dtype=node.meta["val"].dtype,
        )

    @property
    def key(self) -> tuple[Any, ...]:
        """All that a chain's operators depend on, besides the shapes of tensors."""
        return self.arguments.op, repr(self.arguments.named), self.shape, self.x_first, self.groups, self.dtype

    def narrow(self, x: Tensor, weight: Tensor, groups: int = 1, *, plain: bool = False) -> Tensor:
        return self.kind.narrow(self.arguments, x, weight, x_first=self.x_first, groups=groups, plain=plain)

    def base(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The call itself, on the weight as the operator reads it; without a bias where that is None."""
        return self.kind.base(self.arguments, x, weight, bias)

    def biased(self, y: Tensor, bias: Tensor | None) -> Tensor:
        """Outputs with the layer's bias."""
        return y if bias is None else y + (bias.reshape([-1, *[1] * self.dims]) if self.dims else bias)
