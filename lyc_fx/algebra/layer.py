"""A layer as a change of its weight sees it: linear in the weight, and able to take a narrow one."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

Scale = float | Tensor
"""A number, or a tensor of no dimensions"""


class NoChain(Exception):
    """There is no exact form of a change on this layer's activations, or none that is cheaper; the message says why."""


@final
@dataclass(frozen=True)
class Factor:
    """One matrix of a product of matrices that is a layer's weight."""

    matrix: Tensor
    whole: bool = False
    """Whether it carries the convolution's kernel, `(r, n · kernel)`, and so runs with the layer's stride, padding and
    dilation; the others run as 1×1"""
    shared: bool = True
    """Whether every group of the layer uses the whole factor; else its rows are divided among the groups"""


@dataclass(frozen=True, eq=False, kw_only=True)
class Layer(ABC):
    """Abstract: a call of a layer, without its bias."""

    shape: tuple[int, ...]
    """The weight's, as adapters see it: `(out, in/groups, *kernel)`"""
    x_first: bool
    """Whether x meets, that is, is summed over with, the first dimension of that shape, as in an embedding or a
    transposed convolution; else the second"""
    groups: int = 1
    looks_up: bool = False
    """Whether x are indices of the weight's rows"""
    spatial: bool = False
    """Whether the weight has a kernel, and x dimensions after its channels"""
    dtype: torch.dtype
    """Of the activations"""

    @abstractmethod
    def narrow(self, x: Tensor, weight: Tensor, groups: int = 1, *, plain: bool = False) -> Tensor:
        """Call the layer with a smaller weight; `plain`: as a 1×1 convolution of stride 1 without padding."""

    @property
    def dims(self) -> int:
        """Of the kernel."""
        return len(self.shape) - 2 if self.spatial else 0

    @property
    def channels(self) -> int:
        """The dimension of channels in activations, from the end."""
        return -1 - self.dims

    def product(self, x: Tensor, *factors: Factor, scale: Scale = 1.0) -> Tensor:
        """`layer(x, the matrix product of the factors · scale)`: one narrow layer for each.

        The scale goes into the factor that meets x: alpha / r comes early, so that float16 does not overflow on the way
        to a result that fits.
        """
        order = factors if self.x_first else factors[::-1]
        for factor in order:
            x = self._applied(x, factor, scale if factor is order[0] else 1.0)
        return x

    def fitted(self, factor: Tensor) -> Tensor:
        """A factor in the activations' dtype."""
        return factor if factor.dtype == self.dtype else factor.to(self.dtype)

    def _applied(self, x: Tensor, factor: Factor, scale: Scale) -> Tensor:
        if self.looks_up and not x.dtype.is_floating_point:  # scale the rows that are looked up, not the table
            return self.fitted(scaled(self.narrow(x, factor.matrix), scale))
        matrix = scaled(factor.matrix, scale)
        if not self.spatial:
            return self.narrow(x, self.fitted(matrix))
        kernel = list(self.shape[2:]) if factor.whole else [1] * self.dims
        weight = self.fitted(matrix.unflatten(1, [-1, *kernel]))  # which says no rank: exported, it may vary
        if factor.shared and self.groups > 1:
            weight = weight.repeat([self.groups] + [1] * (weight.dim() - 1))
        return self.narrow(x, weight, self.groups, plain=not factor.whole)


def scaled(factor: Tensor, scale: Scale) -> Tensor:
    """A factor times a scale, in the dtype of the factor."""
    return factor if isinstance(scale, (int, float)) and scale == 1 else factor * scale
