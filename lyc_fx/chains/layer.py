"""The layer whose weight a rule takes apart, and the few layers that chains are made of."""

from dataclasses import dataclass
from math import prod
from typing import final

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.fx import Node

from lyc_fx.layers import KINDS, LayerKind
from lyc_fx.rewrite import Emit, arguments

aten = torch.ops.aten
PEELED = "lyc_fx_peeled"
"""Marks, in `node.meta`, a layer that a firing left with what remains of its weight."""
_PLAIN = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}


@final
@dataclass(frozen=True)
class Layer:
    """A layer of the table, and the means to insert nodes before it."""

    emit: Emit
    node: Node

    @property
    def kind(self) -> LayerKind:
        return KINDS[self.node.target]  # type: ignore[index]  # rules match operators of the table

    @property
    def x(self) -> Node:
        x = self.node.args[self.kind.input]
        assert isinstance(x, Node)
        return x

    @property
    def bias(self) -> Node | None:
        bias = arguments(self.node)[self.kind.bias]
        assert bias is None or isinstance(bias, Node)
        return bias

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's, `(out, in/groups, *kernel)`."""
        shape = tuple(self._stored.meta["val"].shape)
        return shape[::-1] if self.kind.transposed else shape

    @property
    def groups(self) -> int:
        return arguments(self.node)[6] if self.kind.spatial else 1

    @property
    def mapped(self) -> bool:
        """Whether `torch.func` transforms it: fake values, and so new nodes, exist only while it does."""
        values = (node.meta.get("val") for node in self.node.all_input_nodes)
        return any(isinstance(value, Tensor) and is_functorch_wrapped_tensor(value) for value in values)

    @property
    def channels(self) -> int:
        """The dimension of channels in activations, from the end."""
        return -1 - self.kind.spatial

    @property
    def _stored(self) -> Node:
        weight = self.node.args[self.kind.weight]
        assert isinstance(weight, Node)
        return weight

    def again(self, weight: Node, x: Node | None = None, *, bias: bool = True) -> Node:
        """The layer itself with another weight `(out, in/groups, *kernel)`, which rules may take apart in turn."""
        args, kind = list(self.node.args), self.kind
        target = self.node.target
        if kind.transposed and not bias:
            target, args = aten.linear.default, [self.x, weight]
            kind = KINDS[target]
        elif kind.transposed:
            weight = self.emit(aten.t.default, weight)
        elif not bias and len(args) > kind.bias:
            args[kind.bias] = None
        args[kind.weight] = cast(self.emit, weight, self._stored.meta["val"].dtype)
        args[kind.input] = self.x if x is None else x
        while args[-1] is None:
            args.pop()
        node = self.emit(target, *args)
        node.meta[PEELED] = True
        return node

    def fitted(self, factor: Node) -> Node:
        """A factor in the activations' dtype."""
        return cast(self.emit, factor, self.x.meta["val"].dtype)

    def scaled(self, factor: Node, scale: Node) -> Node:
        """A factor times a scalar, in the dtype of the factor."""
        return self.emit(aten.mul.Tensor, factor, scale)

    def shaped(self, node: Node, shape: list[int]) -> Node:
        """A reshape, where it changes something."""
        same = list(node.meta["val"].shape) == shape
        return node if same else self.emit(aten.reshape.default, node, shape)

    def through(self, x: Node, matrix: Node) -> Node:
        """`layer(x, matrix)` for a matrix `(r, in/groups · kernel)`, without bias. All groups share it."""
        if not self.kind.spatial:
            return self.emit(aten.linear.default, x, self.fitted(matrix))
        return self.convolved(x, self._copies(matrix, list(self.shape[2:]), self.groups), self.groups)

    def point(self, x: Node, matrix: Node, *, shared: bool = True) -> Node:
        """A matrix on the channels of x, in the layer's groups: each has a copy of the whole, or its own rows."""
        if not self.kind.spatial:
            return self.emit(aten.linear.default, x, self.fitted(matrix))
        copies = self.groups if shared else 1
        return self.pointwise(x, self._copies(matrix, [1] * self.kind.spatial, copies), self.groups)

    def convolved(self, x: Node, weight: Node, groups: int) -> Node:
        """The layer's own convolution, with its stride, padding and dilation, on another weight."""
        return self.emit(self.node.target, x, weight, None, *arguments(self.node)[3:6], groups)

    def pointwise(self, x: Node, weight: Node, groups: int) -> Node:
        """A 1×1 convolution."""
        spatial = self.kind.spatial
        return self.emit(_PLAIN[spatial], x, weight, None, [1] * spatial, [0] * spatial, [1] * spatial, groups)

    def _copies(self, matrix: Node, kernel: list[int], copies: int) -> Node:
        rows, columns = matrix.meta["val"].shape
        weight = self.emit(aten.reshape.default, matrix, [rows, columns // prod(kernel), *kernel])
        weight = self.fitted(weight)
        return self.emit(aten.repeat.default, weight, [copies] + [1] * (len(kernel) + 1)) if copies != 1 else weight


def cast(emit: Emit, node: Node, dtype: torch.dtype) -> Node:
    """A cast, where it changes something."""
    return node if node.meta["val"].dtype == dtype else emit(aten.to.dtype, node, dtype)
