"""Block-diagonal matrices and permutations: what rotations are made of."""

from dataclasses import dataclass
from math import prod
from typing import final

import torch
from torch import Tensor

from lyc_fx.algebra.layer import Layer, NoChain
from lyc_fx.algebra.maps import Map


@final
@dataclass(frozen=True, eq=False)
class Blocks(Map):
    """A matrix for each block of channels: `(n, b, b)`, or `(1, b, b)` for one that all blocks share."""

    matrices: Tensor

    name = "rotation"

    def rows(self, weight: Tensor) -> Tensor:
        size = self.matrices.shape[1]
        return (self.matrices @ weight.reshape([weight.shape[0] // size, size, -1])).reshape(weight.shape)

    def columns(self, weight: Tensor) -> Tensor:
        blocks = weight.reshape([weight.shape[0], -1, self.matrices.shape[1]]).transpose(0, 1)  # (n, out, b)
        return (blocks @ self.matrices).transpose(0, 1).reshape(weight.shape)

    def act(self, layer: Layer, x: Tensor, *, on_rows: bool, turned: bool) -> Tensor:
        size = self.matrices.shape[1]
        channels = _channels(layer, size, on_rows)
        count = channels // size
        matrices = layer.fitted(self.matrices)
        if matrices.shape[0] != count:  # shared, or the same in each group
            matrices = matrices.repeat([count // matrices.shape[0], 1, 1])
        if not layer.spatial:
            rule = "nab,...na->...nb" if turned else "nab,...nb->...na"
            return torch.einsum(rule, matrices, x.unflatten(-1, [count, size])).flatten(-2)
        if turned != layer.x_first:  # a narrow layer that x meets first is the transpose of its matrix
            matrices = matrices.transpose(-1, -2)
        kernel = matrices.reshape([channels, size, *[1] * layer.dims])
        return layer.narrow(x, kernel, count, plain=True)


@final
@dataclass(frozen=True, eq=False)
class Swap(Map):
    """The permutation that puts channels `(…, first, second, inner)` into the order `(…, second, first, inner)`."""

    first: int
    second: int
    inner: int = 1

    name = "butterfly"

    def rows(self, weight: Tensor) -> Tensor:
        parts = weight.reshape([-1, self.first, self.second, self.inner * prod(weight.shape[1:])])
        return parts.transpose(1, 2).reshape(weight.shape)

    def columns(self, weight: Tensor) -> Tensor:
        """The transpose of what it does to rows: from `(…, second, first, inner)`."""
        parts = weight.reshape([weight.shape[0], -1, self.second, self.first, self.inner])
        return parts.transpose(2, 3).reshape(weight.shape)

    def act(self, layer: Layer, x: Tensor, *, on_rows: bool, turned: bool) -> Tensor:
        span = self.first * self.second * self.inner
        _channels(layer, span, on_rows)
        order = [self.second, self.first] if turned else [self.first, self.second]
        at = layer.channels - 1
        parts = x.unflatten(layer.channels, [-1, *order, self.inner])
        return parts.transpose(at - 1, at).flatten(at - 2, at + 1)


def _channels(layer: Layer, span: int, on_rows: bool) -> int:
    """How many channels there are. Raises NoChain if `span` channels in a row would cross a group or a kernel tap."""
    if on_rows:
        rows = layer.shape[0] // layer.groups
        if rows % span:
            raise NoChain(f"{span} rows are mixed at a time, across the layer's groups of {rows} outputs")
        return layer.shape[0]
    if prod(layer.shape[2:]) != 1:
        raise NoChain("the inputs are mixed across the taps of the kernel")
    if layer.shape[1] % span:
        raise NoChain(f"{span} inputs are mixed at a time, across the layer's groups of {layer.shape[1]} inputs")
    return layer.shape[1] * layer.groups
