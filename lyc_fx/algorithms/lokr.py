"""LoKr: Kronecker product of two factors, each full or decomposed (KronA, arXiv:2212.10650, as in LyCORIS)."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from lyc_fx.adapters.decomposed import DORA, Decomposable
from lyc_fx.algebra import Dense, Dims, Kron, Low, Structure, Tucker
from lyc_fx.algebra.tensors import matrix

_LEFT: dict[str, Dims] = {"full w1": {"w1": "out1 in1"}, "low-rank w1": {"w1_b": "r1 in1", "w1_a": "out1 r1"}}
_RIGHT: dict[str, Dims] = {
    "full w2": {"w2": "out2 in2 kernel"},
    "low-rank w2": {"w2_a": "out2 r2", "w2_b": "r2 in2*kernel"},
    "tucker w2": {"w2_a": "p out2", "w2_b": "q in2", "t2": "p q kernel"},
}


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class LoKr(Decomposable):
    """`ΔW = s · w1 ⊗ w2`: `ΔW[l·k+k', m·n+n', κ] = s · w1[l,m] · w2[k',n',κ]`, out = l·k, in/groups = m·n.

    w1 is full or `w1_a @ w1_b`; w2 is full, `w2_a @ w2_b`, or a Tucker product
    `w2[k',n',κ] = Σ_pq t2[p,q,κ] · w2_a[p,k'] · w2_b[q,n']`.
    s is 1 when both are full, whatever alpha says, and alpha/r otherwise.
    """

    name = "lokr"
    suffixes = {
        "w1": "lokr_w1",
        "w1_a": "lokr_w1_a",
        "w1_b": "lokr_w1_b",
        "w2": "lokr_w2",
        "w2_a": "lokr_w2_a",
        "w2_b": "lokr_w2_b",
        "t2": "lokr_t2",
        **DORA,
    }
    variants = {f"{one}, {two}": {**left, **right} for one, left in _LEFT.items() for two, right in _RIGHT.items()}

    w1: Tensor | None = None
    w1_a: Tensor | None = None
    w1_b: Tensor | None = None
    w2: Tensor | None = None
    w2_a: Tensor | None = None
    w2_b: Tensor | None = None
    t2: Tensor | None = None

    def expression(self) -> Structure:
        return Kron(self._left(), self._right())

    def _left(self) -> Tensor:
        if self.w1 is not None:
            return matrix(self.w1)
        assert self.w1_a is not None and self.w1_b is not None
        return matrix(self.w1_a) @ matrix(self.w1_b)

    def _right(self) -> Structure:
        if self.w2 is not None:
            return Dense(self.w2)
        assert self.w2_a is not None and self.w2_b is not None
        if self.t2 is None:
            return Low(self.w2_a, self.w2_b)
        return Tucker(self.t2, matrix(self.w2_a).t(), matrix(self.w2_b))
