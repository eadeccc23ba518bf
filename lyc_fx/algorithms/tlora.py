"""T-LoRA: a low-rank change measured from the base weight's own singular vectors (LyCORIS 4.1 "tlora")."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lyc_fx.adapters.adapter import Strength
from lyc_fx.adapters.shaped import Shaped
from lyc_fx.algebra.action import Action, Whole
from lyc_fx.algebra.shapes import Shape, matrix_dims
from lyc_fx.algebra.tensors import low_rank, matrix, shaped
from lyc_fx.errors import BadAdapter

_OVERLAP = 0.5
_REASON = "the change is measured from the weight's own singular vectors, which a chain never computes"


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class TLoRA(Shaped):
    """`ΔW = alpha/r · (P · diag(λ) · Q - P₀ · diag(λ₀) · Q₀)`, P₀ λ₀ Q₀ the r greatest singular parts of W.

    The file does not hold P₀, λ₀ and Q₀: it means something on the base weight that it was trained on, and
    on no other. The rank mask, which training sets by timestep, is all ones.
    """

    name = "tlora"
    suffixes = {"q": "q_layer.weight", "p": "p_layer.weight", "lam": "lambda_layer"}
    variants = {"": {"q": "r in 1", "p": "out r 1", "lam": "1 r"}}

    q: Tensor
    p: Tensor
    lam: Tensor

    def fit(self, shape: Shape) -> None:
        _within(self.q.shape[0], shape)
        super().fit(shape)

    def mixes_rows(self, shape: Shape) -> bool:
        return True

    def action(self, strength: Strength) -> Action:
        return Whole(lambda weight: weight + self._change(weight, strength), _REASON)

    def _change(self, weight: Tensor, strength: Strength) -> Tensor:
        u, s, vh = torch.linalg.svd(matrix(weight), full_matrices=False)
        before = (u[:, : self.rank] * s[: self.rank]) @ vh[: self.rank]
        after = low_rank(matrix(self.p) * matrix(self.lam), self.q, before.shape)
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
        _within(rank, shape)
        return super().factor_shapes(shape, layout, rank)


def _within(rank: int, shape: Shape) -> None:
    out, inner, taps = matrix_dims(shape)
    if taps != 1:
        raise BadAdapter("a T-LoRA of a k×k convolution has no defined effect: the reference's own is broken")
    if rank > min(out, inner):
        raise BadAdapter(f"rank {rank} exceeds the weight's {min(out, inner)} singular values")
