"""One narrow layer on each of several groups of channels."""

from dataclasses import dataclass
from typing import Self, final

from torch import Tensor

from lyc_fx.algebra.layer import Layer


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Repeated(Layer):
    """A layer on some channels, called on `count` times as many, of which each part is treated alike."""

    part: Layer
    count: int

    @classmethod
    def of(cls, part: Layer, count: int) -> Self:
        """As a structure in the shape of the part sees it, it is the part."""
        return cls(
            part=part, count=count, shape=part.shape, x_first=part.x_first, spatial=part.spatial, dtype=part.dtype
        )

    def narrow(self, x: Tensor, weight: Tensor, groups: int = 1, *, plain: bool = False) -> Tensor:
        each = weight.repeat([self.count] + [1] * (weight.dim() - 1))
        return self.part.narrow(x, each, self.count * groups, plain=plain)
