"""The contract of a layer kind: how operators use a weight, in the argument names of their schema."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.fx import Node

from lyc_fx.graph.rewrite import arguments


class LayerKind(ABC):
    """Abstract: what a chain must know of a layer. A subclass is a row of the table (`layers.table`)."""

    ops: ClassVar[tuple[torch._ops.OpOverload, ...]]
    x: ClassVar[str] = "input"
    weight: ClassVar[str] = "weight"
    bias: ClassVar[str | None] = "bias"
    """None for operators that have no bias"""
    spatial: ClassVar[bool] = False
    """Whether the weight has a kernel: `(…, …, *kernel)`"""
    looks_up: ClassVar[bool] = False
    """Whether x are indices of the weight's rows"""
    conventional: ClassVar[bool] = True
    """Whether adapter files have factors `(out, in)` for this layer, however the model stores the weight"""
    of_any_two: ClassVar[bool] = False
    """Whether the operator also takes two activations: it is a layer where its weight depends on no input"""

    @abstractmethod
    def x_first(self, node: Node) -> bool:
        """Whether the stored weight's first dimension meets x: `(in, out/groups, …)`; else its second does."""

    @abstractmethod
    def narrow(
        self, call: "Arguments", x: Tensor, weight: Tensor, *, x_first: bool, groups: int, plain: bool
    ) -> Tensor:
        """The operator without bias on a smaller weight; `plain`: as a 1×1 convolution of stride 1 without padding."""

    def base(self, call: "Arguments", x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The operator itself on a weight as it reads it; without a bias where that is None."""
        given: dict[str, Any] = {self.x: x, self.weight: weight}
        return call.call(given if self.bias is None else given | {self.bias: bias})

    def matrix(self, weight: Node) -> Node | None:
        """The weight of the layer, from the argument; None where that is none."""
        return weight

    def groups(self, node: Node) -> int:
        """The number of the convolution's groups; 1 for other layers."""
        return 1

    def fault(self, node: Node) -> str | None:
        """Why this call has no chain, whatever its weight's structure."""
        dims = len(named(node)[self.weight].meta["val"].shape)
        return None if self.spatial or dims == 2 else f"its weight has {dims} dimensions"

    def finish(self, call: "Arguments", x: Tensor, y: Tensor) -> Tensor:
        """What must happen to the outputs of a chain that stands for this call."""
        return y


@final
@dataclass(frozen=True)
class Arguments:
    """An operator, and its arguments by the names in its schema; those that are tensors are placeholders."""

    op: torch._ops.OpOverload
    named: Mapping[str, Any]

    def call(self, others: Mapping[str, Any]) -> Tensor:
        """The operator with other values for some arguments."""
        result = self.op(*{**self.named, **others}.values())
        assert isinstance(result, Tensor)
        return result


def named(node: Node) -> dict[str, Any]:
    """A call's arguments by their names in the schema, in its order, with defaults filled in."""
    assert isinstance(node.target, torch._ops.OpOverload)
    names = [argument.name for argument in node.target._schema.arguments]
    return dict(zip(names, arguments(node), strict=True))
