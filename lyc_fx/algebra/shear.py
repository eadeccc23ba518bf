"""The identity plus a matrix of low rank."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from lyc_fx.algebra.layer import Factor, Layer, NoChain, Scale
from lyc_fx.algebra.maps import Map


@final
@dataclass(frozen=True, eq=False)
class Shear(Map):
    """`M = I + scale · left @ right`: `(n, r)` and `(r, n)`.

    For a convolution n is either in/groups (one matrix for all taps) or in/groups · kernel (taps are mixed too).
    """

    left: Tensor
    right: Tensor
    scale: Scale

    name = "input map"

    def rows(self, weight: Tensor) -> Tensor:
        flat = weight.flatten(1)
        return weight + (self.left @ (self.right @ flat)).reshape(weight.shape) * self.scale

    def columns(self, weight: Tensor) -> Tensor:
        return weight + self.change(weight) * self.scale

    def change(self, weight: Tensor) -> Tensor:
        """`W · left @ right`"""
        if self.left.shape[0] == weight.shape[1] and weight.dim() > 2:
            return (self.right.t() @ (self.left.t() @ weight.flatten(2))).reshape(weight.shape)
        return ((weight.flatten(1) @ self.left) @ self.right).reshape(weight.shape)

    def act(self, layer: Layer, x: Tensor, *, on_rows: bool, turned: bool) -> Tensor:
        return x + self.add(layer, x, on_rows=on_rows)

    def add(self, layer: Layer, x: Tensor, *, on_rows: bool) -> Tensor:
        """What it adds to activations."""
        if on_rows and layer.groups > 1:
            raise NoChain("rows are mixed across the layer's groups")
        if not on_rows and self.left.shape[0] != layer.shape[1]:
            raise NoChain("the inputs are mixed across the taps of the kernel")
        return layer.product(x, Factor(self.left), Factor(self.right), scale=self.scale)
