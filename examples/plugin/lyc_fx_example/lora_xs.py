"""LoRA-XS: LoRA whose two factors stay as they are, with a small trained matrix between them (arXiv:2405.17604)."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lyc_fx.adapters.shaped import Additive, layouts_of
from lyc_fx.algebra import Low, Shape, Structure
from lyc_fx.algebra.tensors import matrix
from lyc_fx.algorithms.locon import LoCon


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class LoraXS(Additive):
    """`ΔW = alpha/r · B · R · A`."""

    name = "lora-xs"
    suffixes = {"a": "xs_A", "core": "xs_R", "b": "xs_B"}
    variants = {"": {"a": "q in kernel", "core": "p q", "b": "out p 1"}}
    layouts = layouts_of(variants)
    rank = property(lambda self: self.a.shape[0])

    a: Tensor
    core: Tensor
    b: Tensor

    def expression(self) -> Structure:
        return Low(matrix(self.b) @ self.core, matrix(self.a))

    def low_rank(self, shape: Shape) -> LoCon:
        """Only `lyc-fx convert` asks for it: to write this as LoRA, exactly."""
        return LoCon.of(*self.to(torch.float64).expression().pair(), shape, like=self)
