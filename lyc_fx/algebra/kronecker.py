"""Kronecker products: a matrix of blocks, each the same structure times a number."""

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from lyc_fx.algebra.layer import Layer, NoChain, Scale
from lyc_fx.algebra.repeated import Repeated
from lyc_fx.algebra.shapes import Shape
from lyc_fx.algebra.structure import Structure, over
from lyc_fx.algebra.tensors import channels_last, kronecker, matrix


@final
@dataclass(frozen=True, eq=False)
class Kron(Structure):
    """`K[l·k+k', m·n+n', κ] = left[l,m] · right[k',n',κ]`: `(l, m)`, and a structure `(k, n, *kernel)`."""

    left: Tensor
    right: Structure

    name = "Kronecker"

    def value(self, shape: Shape) -> Tensor:
        return kronecker(self.left, self.right.value(self._block(shape)))

    def pair(self) -> tuple[Tensor, Tensor]:
        """`left ⊗ (a @ b) = (left ⊗ a) @ (I ⊗ b)`, of rank m · r."""
        a, b = self.right.pair()
        down = kronecker(torch.eye(self.left.shape[1]).to(self.left), b)  # (m·r, m·n·κ): a weight's inputs and taps
        return kronecker(self.left, a), down

    def act(self, layer: Layer, x: Tensor, scale: Scale = 1.0) -> Tensor:
        """Channels as `(m, n)`: the right factor, as a layer of its own, on n; the left one on m.

        In whichever order takes fewer multiplications. On a convolution m joins the batch while the right factor is
        applied with the layer's stride, padding and dilation; in channels last, where that would move every number, it
        joins the groups (not for a narrow right factor, of which that would make several slow layers). With g groups
        the rows of the left factor must divide evenly among them: a group that starts in the middle of a block has no
        chain.
        """
        block = self._block(layer.shape)
        fine = replace(layer, shape=block, groups=1)
        if layer.looks_up:
            return self._looked_up(layer, fine, x, scale)
        if self.left.shape[0] % layer.groups:
            raise NoChain(
                f"the {self.left.shape[0]} rows of the left factor do not fall into the layer's {layer.groups} groups"
            )
        if layer.spatial and channels_last(x) and self.right.full:
            return self._convolved_in_groups(layer, fine, x, scale)
        if layer.spatial:
            return self._convolved(layer, fine, x, scale)
        (l, m), (k, n), at = self.left.shape, block, 0 if layer.x_first else 1  # noqa: E741
        left = layer.fitted(self.left)
        y = x.unflatten(-1, [self.left.shape[at], block[at]])  # (…, m, n), or (…, l, k)
        right_first = m * k * (n + l), l * n * (m + k)
        order = right_first if at else right_first[::-1]
        if order[0] <= order[1]:
            y = self.right.act(fine, y, scale).transpose(-1, -2)
            return layer.narrow(y, left).transpose(-1, -2).flatten(-2)
        y = layer.narrow(y.transpose(-1, -2), left).transpose(-1, -2)
        return self.right.act(fine, y, scale).flatten(-2)

    def _convolved(self, layer: Layer, fine: Layer, x: Tensor, scale: Scale) -> Tensor:
        groups, at = layer.groups, layer.channels
        (rows, inner), batched = self.left.shape, x.dim() > layer.dims + 1
        coarse = rows // groups if layer.x_first else inner
        parts = [groups, coarse] if groups > 1 else [coarse]
        y = x.unflatten(at, [*parts, fine.shape[0 if layer.x_first else 1]]).flatten(0, at - 1)
        y = self.right.act(fine, y, scale).unflatten(0, [-1, *parts] if batched else parts)  # (b, g, m, k, …)
        left = layer.fitted(self.left).unflatten(0, [groups, -1]) if groups > 1 else layer.fitted(self.left)
        b, g, (of, to) = "b" * batched, "g" * (groups > 1), "lm" if layer.x_first else "ml"
        mixed = torch.einsum(f"{g}lm,{b}{g}{of}...->{b}{g}{to}...", left, y)
        return mixed.flatten(at - 1 - len(g), at)

    def _convolved_in_groups(self, layer: Layer, fine: Layer, x: Tensor, scale: Scale) -> Tensor:
        """The right factor in each of g · m groups of channels; the left one on the points, of channels `(g, m, k)`."""
        rows, inner = self.left.shape
        coarse = rows // layer.groups if layer.x_first else inner
        y = self.right.act(Repeated.of(fine, layer.groups * coarse), x, scale).movedim(1, -1)
        parts, left = [layer.groups, coarse] if layer.groups > 1 else [coarse], layer.fitted(self.left)
        left = (
            left.unflatten(0, [layer.groups, -1]) if layer.groups > 1 else left
        )  # (g, l, m), or with x first (g, m, l)
        y = (left.transpose(-1, -2) if layer.x_first else left) @ y.unflatten(-1, [*parts, -1])
        return y.flatten(-1 - len(parts)).movedim(-1, 1)

    def _looked_up(self, layer: Layer, fine: Layer, x: Tensor, scale: Scale) -> Tensor:
        """Row `i·k + j` of the product is that of row i of the left factor and row j of the right one."""
        size = fine.shape[0]
        first, second = layer.narrow(x // size, self.left), self.right.act(fine, x % size, scale)
        return layer.fitted((layer.fitted(first).unsqueeze(-1) * second.unsqueeze(-2)).flatten(-2))

    def add_to(self, weight: Tensor, scale: float) -> None:
        (l, m), (k, n, *_) = self.left.shape, self._block(weight.shape)  # noqa: E741
        right = self.right.value(self._block(weight.shape))
        weight.view(l, k, m, n, -1).addcmul_(self.left.view(l, 1, m, 1, 1), right.view(1, k, 1, n, -1), value=scale)

    def dot(self, weight: Tensor, axis: int) -> Tensor:
        (l, m), (k, n, *kernel) = self.left.shape, self._block(weight.shape)  # noqa: E741
        blocks, right = weight.reshape([l, k, m, -1]), matrix(self.right.value((k, n, *kernel)))
        if axis == 0:
            return (torch.einsum("lkmn,lm->lkn", blocks, self.left) * right).sum(2).flatten()
        mixed = torch.einsum("lkmn,lm->mkn", blocks, self.left) * right
        return mixed.sum(1).reshape([m * n, -1]).sum(1)

    def squares(self, shape: Shape, axis: int) -> Tensor:
        """They factorize: `‖K row (l, k)‖² = ‖left row l‖² · ‖right row k‖²`."""
        coarse, fine = over(self.left.square(), axis), self.right.squares(self._block(shape), axis)
        return (coarse[:, None] * fine[None, :]).flatten()

    def _block(self, shape: Shape) -> tuple[int, ...]:
        """`(k, n, *kernel)`, of a weight of this shape."""
        return shape[0] // self.left.shape[0], shape[1] // self.left.shape[1], *shape[2:]
