"""LoRA-XS: LoRA whose two factors stay as they are, with a small trained matrix between them (arXiv:2405.17604)."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from lyc_fx.adapters.shaped import Additive
from lyc_fx.algebra import Low, Structure
from lyc_fx.algebra.tensors import matrix


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class LoraXS(Additive):
    """`ΔW = alpha/r · B · R · A`."""

    name = "lora-xs"
    suffixes = {"a": "xs_A", "core": "xs_R", "b": "xs_B"}
    variants = {"": {"a": "q in kernel", "core": "p q", "b": "out p 1"}}

    a: Tensor
    core: Tensor
    b: Tensor

    def expression(self) -> Structure:
        return Low(matrix(self.b) @ self.core, matrix(self.a))
