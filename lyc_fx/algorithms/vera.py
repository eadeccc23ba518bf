"""VeRA: two matrices that all modules share, and two vectors of each one (arXiv:2310.11454, as in PEFT)."""

from dataclasses import dataclass, replace
from math import prod
from typing import final

from torch import Tensor

from lyc_fx.adapters.shaped import Additive
from lyc_fx.algebra import Shape, Structure, Weighted
from lyc_fx.algebra.tensors import matrix


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class VeRA(Additive):
    """`ΔW = diag(λ_b) · B[:out] · diag(λ_d) · A[:, :in·kernel]`, A and B as large as the largest module asks for."""

    name = "vera"
    suffixes = {"a": "vera_A", "b": "vera_B", "lambda_b": "vera_lambda_b", "lambda_d": "vera_lambda_d"}
    variants = {"": {"a": "r in*kernel", "b": "out r", "lambda_b": "out", "lambda_d": "r"}}
    uses_alpha = False

    a: Tensor
    b: Tensor
    lambda_b: Tensor
    lambda_d: Tensor

    def oriented(self, stored: Shape, transposed: bool) -> "VeRA":
        columns = stored[0] if transposed else prod(stored[1:])
        return replace(self, a=matrix(self.a)[:, :columns], b=self.b[: self.lambda_b.numel()])

    def weight_shape(self) -> None:
        """A may be wider than the weight."""

    def expression(self) -> Structure:
        return Weighted(self.b, self.a, self.lambda_b, self.lambda_d)
