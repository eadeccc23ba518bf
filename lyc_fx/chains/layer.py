"""The layer whose weight a rule takes apart, and the few layers that chains are made of."""

from dataclasses import dataclass
from math import prod
from typing import Any, final

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.fx import Node

from lyc_fx.layers import KINDS, LayerKind, named, position
from lyc_fx.rewrite import Emit

aten = torch.ops.aten
PEELED = "lyc_fx_peeled"
"""Marks, in `node.meta`, a layer that a firing left with what remains of its weight."""


@final
@dataclass(frozen=True)
class Factor:
    """One matrix of a product of matrices that is a layer's weight."""

    matrix: Node
    whole: bool = False
    """Whether it has the kernel, and with it the layer's stride, padding and dilation"""
    shared: bool = True
    """Whether each of the layer's groups has all of it; else each has its own rows"""
    transposed: bool = False


@final
@dataclass(frozen=True)
class Layer:
    """A layer of the table, and the means to insert nodes before it."""

    emit: Emit
    node: Node
    transposed: bool = False
    """Whether the layer reads the transpose of the weight that is taken apart"""

    @property
    def kind(self) -> LayerKind:
        return KINDS[self.node.target]  # type: ignore[index]  # rules match operators of the table

    @property
    def x(self) -> Node:
        return self._argument(self.kind.x)  # type: ignore[no-any-return]

    @property
    def bias(self) -> Node | None:
        return self._argument(self.kind.bias) if self.kind.bias is not None else None

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's; `(out, in/groups, *kernel)`, or `(in, out/groups, *kernel)` where x meets the first."""
        shape = tuple(self._stored.meta["val"].shape)
        return shape[::-1] if self.transposed else shape

    @property
    def x_first(self) -> bool:
        """Whether x meets the first dimension of the weight; else its second."""
        return self.kind.x_first(self.node) != self.transposed

    @property
    def spatial(self) -> int:
        """Kernel dimensions."""
        return len(self.shape) - 2

    @property
    def groups(self) -> int:
        return self.kind.groups(self.node)

    @property
    def mapped(self) -> bool:
        """Whether `torch.func` transforms it: fake values, and so new nodes, exist only while it does."""
        values = (node.meta.get("val") for node in self.node.all_input_nodes)
        return any(isinstance(value, Tensor) and is_functorch_wrapped_tensor(value) for value in values)

    @property
    def channels(self) -> int:
        """The dimension of channels in activations, from the end."""
        return -1 - self.spatial

    @property
    def _stored(self) -> Node:
        return self._argument(self.kind.weight)  # type: ignore[no-any-return]

    def _argument(self, name: str) -> Any:
        return named(self.node)[name]

    def _at(self, name: str) -> int:
        return position(self.node.target, name)

    def again(self, weight: Node, x: Node | None = None, *, bias: bool = True) -> Node:
        """The layer itself with another weight, which rules may take apart in turn."""
        kind, dtype, x = self.kind, self._stored.meta["val"].dtype, self.x if x is None else x
        if kind.needs_bias and not bias:
            node = self.narrow(x, cast(self.emit, weight, dtype))
        else:
            args = list(self.node.args)
            if self.transposed:
                weight = self.emit(aten.t.default, weight)
            args[self._at(kind.weight)], args[self._at(kind.x)] = cast(self.emit, weight, dtype), x
            if not bias and kind.bias is not None and len(args) > self._at(kind.bias):
                args[self._at(kind.bias)] = None
            while args[-1] is None:
                args.pop()
            node = self.emit(self.node.target, *args)
        node.meta[PEELED] = True
        return node

    def biased(self, y: Node) -> Node:
        """Outputs with the layer's bias."""
        if self.bias is None:
            return y
        bias = self.shaped(self.bias, [-1, *[1] * self.spatial]) if self.spatial else self.bias
        return self.emit(aten.add.Tensor, y, bias)

    def product(self, x: Node, *factors: Factor, scale: Node | None = None) -> Node:
        """`layer(x, the matrix product of the factors · scale)` without bias: one narrow layer for each."""
        order = factors if self.x_first else factors[::-1]
        for factor in order:
            x = self._applied(x, factor, scale if factor is order[0] else None)
        return x

    def _applied(self, x: Node, factor: Factor, scale: Node | None) -> Node:
        late = self.kind.looks_up and not x.meta["val"].dtype.is_floating_point  # what is looked up is smaller
        matrix = factor.matrix if scale is None or late else self.scaled(factor.matrix, scale)
        matrix = self.emit(aten.t.default, matrix) if factor.transposed else matrix
        if late:
            found = self.narrow(x, matrix)
            return self.fitted(found if scale is None else self.scaled(found, scale))
        if not self.spatial:
            return self.narrow(x, self.fitted(matrix))
        kernel = list(self.shape[2:]) if factor.whole else [1] * self.spatial
        weight = self._copies(matrix, kernel, self.groups if factor.shared else 1)
        return self.narrow(x, weight, self.groups, plain=not factor.whole)

    def narrow(self, x: Node, weight: Node, groups: int = 1, *, plain: bool = False) -> Node:
        """The layer without bias on a narrow weight, all of it or, if `plain`, only between channels."""
        return self.kind.narrow(self.emit, self.node, x, weight, x_first=self.x_first, groups=groups, plain=plain)

    def fitted(self, factor: Node) -> Node:
        """A factor in the activations' dtype."""
        activations = self.node if self.kind.looks_up else self.x
        return cast(self.emit, factor, activations.meta["val"].dtype)

    def scaled(self, factor: Node, scale: Node) -> Node:
        """A factor times a scalar, in the dtype of the factor."""
        return self.emit(aten.mul.Tensor, factor, scale)

    def shaped(self, node: Node, shape: list[int]) -> Node:
        """A reshape, where it changes something."""
        same = list(node.meta["val"].shape) == shape
        return node if same else self.emit(aten.reshape.default, node, shape)

    def _copies(self, matrix: Node, kernel: list[int], copies: int) -> Node:
        rows, columns = matrix.meta["val"].shape
        weight = self.emit(aten.reshape.default, matrix, [rows, columns // prod(kernel), *kernel])
        weight = self.fitted(weight)
        return self.emit(aten.repeat.default, weight, [copies] + [1] * (len(kernel) + 1)) if copies != 1 else weight


def cast(emit: Emit, node: Node, dtype: torch.dtype) -> Node:
    """A cast, where it changes something."""
    return node if node.meta["val"].dtype == dtype else emit(aten.to.dtype, node, dtype)
