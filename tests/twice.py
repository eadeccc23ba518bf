"""A family from outside, and factors of it for a layer `fc` of 5 inputs and 4 outputs."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lyc_fx.adapters.shaped import Additive, layouts_of
from lyc_fx.algebra import Low, Structure


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Twice(Additive):
    """`ΔW = 2 · B · A`."""

    name = "twice"
    suffixes = {"a": "twice_A", "b": "twice_B"}
    variants = {"": {"a": "r in kernel", "b": "out r 1"}}
    layouts = layouts_of(variants)
    rank = property(lambda self: self.a.shape[0])

    a: Tensor
    b: Tensor

    def expression(self) -> Structure:
        return Low(2 * self.b, self.a)


FACTORS = {"fc.twice_A": torch.randn(2, 5), "fc.twice_B": torch.randn(4, 2)}
