"""LoHa: Hadamard product of two low-rank products (FedPara, arXiv:2108.06098; Tucker as in LyCORIS)."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from lyc_fx.adapters.decomposed import DORA, Decomposable
from lyc_fx.algebra import Hadamard, Low, Structure, Tucker
from lyc_fx.algebra.tensors import matrix


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class LoHa(Decomposable):
    """`ΔW = alpha/r · (w1_a @ w1_b) ⊙ (w2_a @ w2_b)`; with Tucker cores
    `ΔW = alpha/r · T1 ⊙ T2`, `Tx[o,i,κ] = Σ_pq tx[p,q,κ] · wx_a[p,o] · wx_b[q,i]`.

    The effect on activations is a layer with that *weight*: a product of two activation chains would be
    quadratic in x.
    """

    name = "loha"
    suffixes = {
        "w1_a": "hada_w1_a",
        "w1_b": "hada_w1_b",
        "w2_a": "hada_w2_a",
        "w2_b": "hada_w2_b",
        "t1": "hada_t1",
        "t2": "hada_t2",
        **DORA,
    }
    variants = {
        "": {"w1_a": "out r1", "w1_b": "r1 in*kernel", "w2_a": "out r2", "w2_b": "r2 in*kernel"},
        "tucker": {"w1_a": "p1 out", "w1_b": "q1 in", "t1": "p1 q1 kernel",
                   "w2_a": "p2 out", "w2_b": "q2 in", "t2": "p2 q2 kernel"},
    }  # fmt: skip

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    t1: Tensor | None = None
    t2: Tensor | None = None

    def expression(self) -> Structure:
        if self.t1 is None or self.t2 is None:
            return Hadamard(Low(self.w1_a, self.w1_b), Low(self.w2_a, self.w2_b))
        sides = ((self.t1, self.w1_a, self.w1_b), (self.t2, self.w2_a, self.w2_b))
        return Hadamard(*(Tucker(core, matrix(left).t(), matrix(right)) for core, left, right in sides))
