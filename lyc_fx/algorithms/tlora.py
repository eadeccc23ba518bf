"""T-LoRA: a low-rank change measured from the base weight's own singular vectors (LyCORIS 4.1 "tlora")."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lyc_fx.adapters.adapter import Adapter, Strength
from lyc_fx.algebra.action import Action, Whole
from lyc_fx.algebra.shapes import Shape, expect, expect_matrix, matrix_dims
from lyc_fx.algebra.tensors import low_rank, matrix, shaped
from lyc_fx.errors import BadAdapter

_OVERLAP = 0.5
_REASON = "the change is measured from the weight's own singular vectors, which a chain never computes"


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class TLoRA(Adapter):
    """`ΔW = alpha/r · (P · diag(λ) · Q - P₀ · diag(λ₀) · Q₀)`, P₀ λ₀ Q₀ the r greatest singular parts of W.

    The file does not hold P₀, λ₀ and Q₀: it means something on the base weight that it was trained on, and
    on no other. The rank mask, which training sets by timestep, is all ones.
    """

    name = "tlora"
    suffixes = {"q": "q_layer.weight", "p": "p_layer.weight", "lam": "lambda_layer"}
    layouts = (frozenset({"q", "p", "lam"}),)

    q: Tensor
    """`(r, in, 1…)`"""
    p: Tensor
    """`(out, r, 1…)`"""
    lam: Tensor
    """`(1, r)`"""

    @property
    def rank(self) -> int:
        return self.q.shape[0]

    def fit(self, shape: Shape) -> None:
        out, inner, taps = matrix_dims(shape)
        if taps != 1:
            raise BadAdapter("a T-LoRA of a k×k convolution has no defined effect: the reference's own is broken")
        expect_matrix("q_layer.weight", self.q, (self.rank, inner))
        expect_matrix("p_layer.weight", self.p, (out, self.rank))
        expect("lambda_layer", self.lam.shape, (1, self.rank))
        if self.rank > min(out, inner):
            raise BadAdapter(f"rank {self.rank} exceeds the weight's {min(out, inner)} singular values")

    def action(self, strength: Strength) -> Action:
        return Whole(lambda weight: weight + self._change(weight, strength), _REASON)

    def _change(self, weight: Tensor, strength: Strength) -> Tensor:
        u, s, vh = torch.linalg.svd(matrix(weight), full_matrices=False)
        before = (u[:, : self.rank] * s[: self.rank]) @ vh[: self.rank]
        after = low_rank(matrix(self.p) * self.lam, self.q, before.shape)
        return shaped((after - before) * (strength * self.scale), weight.shape)

    def doubt(self, weight: Tensor) -> str | None:
        """Training starts from Q = Q₀: where Q has left that space for the most part, the base is another."""
        base = torch.linalg.svd(matrix(weight).to(torch.float32), full_matrices=False)[2][: self.rank]
        own = torch.linalg.qr(matrix(self.q).to(torch.float32).t())[0]
        overlap = float((base @ own).square().sum() / self.rank)
        if overlap >= _OVERLAP:
            return None
        return (
            f"only {overlap:.0%} of the T-LoRA's input space lies in that of this base weight's first {self.rank} "
            "singular vectors: it was probably trained on another base, and then its effect is not the trained one"
        )

    @classmethod
    def factor_shapes(cls, shape: Shape, layout: frozenset[str], rank: int) -> dict[str, tuple[int, ...]]:
        out, inner, taps = matrix_dims(shape)
        if taps != 1 or rank > min(out, inner):
            raise BadAdapter("a T-LoRA needs a Linear or a 1×1 convolution, and a rank within it")
        ones = [1] * (len(shape) - 2)
        return {"q": (rank, inner, *ones), "p": (out, rank, *ones), "lam": (1, rank)}
