"""LoHa: Hadamard product of two low-rank products (FedPara, arXiv:2108.06098; Tucker as in LyCORIS)."""

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from lyc_fx.errors import BadAdapter
from lyc_fx.families.dora import DORA, Decomposable, decomposed
from lyc_fx.families.locon import LoCon
from lyc_fx.families.shapes import Shape, expect, expect_kernel, expect_matrix, matrix_dims
from lyc_fx.families.tensors import low_rank, matrix, some_inputs, tucker, with_core

PIECE = 1 << 17
"""Elements that are added at once, so that both products stay in a core's cache"""


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
    layouts = decomposed(
        frozenset({"w1_a", "w1_b", "w2_a", "w2_b"}),
        frozenset({"w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2"}),
    )

    w1_a: Tensor
    """`(out, r)`; with a core the other way round, `(r, out)`"""
    w1_b: Tensor
    """`(r, in/groups · kernel)`; with a core `(r, in/groups)`"""
    w2_a: Tensor
    w2_b: Tensor
    t1: Tensor | None = None
    """`(r, r, *kernel)`: first the rank on the side of the output"""
    t2: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.w1_b.shape[0]

    @property
    def variant(self) -> str:
        return self.with_dora("" if self.t1 is None else "tucker")

    def fit_product(self, shape: Shape) -> None:
        out, inner, taps = matrix_dims(shape)
        sides = ((1, self.w1_a, self.w1_b, self.t1), (2, self.w2_a, self.w2_b, self.t2))
        for index, left, right, core in sides:
            a, b, t = f"hada_w{index}_a", f"hada_w{index}_b", f"hada_t{index}"
            if core is None:
                expect_matrix(f"{a}", left, (out, right.shape[0]))
                expect_matrix(f"{b}", right, (right.shape[0], inner * taps))
                expect_kernel(b, right, shape)
            else:
                if core.dim() != len(shape):
                    raise BadAdapter(f"{t} is {tuple(core.shape)}, the weight is {tuple(shape)}")
                expect(a, left.shape, (core.shape[0], out))
                expect(b, right.shape, (core.shape[1], inner))
                expect_kernel(t, core, shape)

    def weight_shape(self) -> tuple[int, ...]:
        """Without a core, a convolution's kernel is not told apart from its inputs."""
        if self.t1 is None:
            return self.w1_a.shape[0], *self.w1_b.shape[1:]
        return self.w1_a.shape[1], self.w1_b.shape[1], *self.t1.shape[2:]

    def rows(self, start: int, stop: int, shape: Shape) -> "LoHa":
        at = slice(start, stop) if self.t1 is None else (slice(None), slice(start, stop))
        return replace(self, w1_a=self.w1_a[at], w2_a=self.w2_a[at], magnitude=self.magnitude_rows(start, stop, shape))

    def product_columns(self, start: int, stop: int, shape: Shape) -> "LoHa":
        if self.t1 is not None:
            return replace(self, w1_b=self.w1_b[:, start:stop], w2_b=self.w2_b[:, start:stop])
        first, second = (some_inputs(each, start, stop, shape) for each in (self.w1_b, self.w2_b))
        return replace(self, w1_b=first, w2_b=second)

    def product(self, shape: Shape) -> Tensor:
        left, right = self._sides(shape)
        return left * right

    def add_to(self, weight: Tensor, scale: float) -> None:
        if self.t1 is not None:
            weight.addcmul_(*self._sides(weight.shape), value=scale)
            return
        step = max(1, PIECE // weight[0].numel())
        pieces = zip(*(part.split(step) for part in (weight, self.w1_a, self.w2_a)), strict=True)
        for rows, left, right in pieces:
            both = low_rank(left, self.w1_b, rows.shape), low_rank(right, self.w2_b, rows.shape)
            rows.addcmul_(*both, value=scale)

    def _sides(self, shape: Shape) -> tuple[Tensor, Tensor]:
        """The two matrices whose entries are multiplied, in the shape of the weight."""
        if self.t1 is None or self.t2 is None:
            return low_rank(self.w1_a, self.w1_b, shape), low_rank(self.w2_a, self.w2_b, shape)
        return tucker(self.t1, self.w1_a.t(), self.w1_b), tucker(self.t2, self.w2_a.t(), self.w2_b)

    def low_rank(self, shape: Shape) -> LoCon:
        """The same effect as LoCon of rank r², exactly, in float64: `up[:, i·r+j] = w1_a[:, i] · w2_a[:, j]`,
        `down[i·r+j, :] = w1_b[i, :] · w2_b[j, :]`; with cores, each `b` is the core times it.
        """
        exact = self.to(torch.float64)
        if exact.t1 is None or exact.t2 is None:
            pairs = ((exact.w1_a, matrix(exact.w1_b)), (exact.w2_a, matrix(exact.w2_b)))
        else:
            pairs = (with_core(exact.t1, exact.w1_a, exact.w1_b), with_core(exact.t2, exact.w2_a, exact.w2_b))
        (a1, b1), (a2, b2) = pairs
        up = (a1[:, :, None] * a2[:, None, :]).flatten(1)
        down = (b1[:, None, :] * b2[None, :, :]).flatten(0, 1)
        return LoCon.of(up, down, shape, like=self)

    @classmethod
    def product_shapes(cls, shape: Shape, layout: frozenset[str], rank: int) -> dict[str, tuple[int, ...]]:
        out, inner, taps = matrix_dims(shape)
        if "t1" not in layout:
            left, right = (out, rank), (rank, inner * taps)
            return {"w1_a": left, "w1_b": right, "w2_a": left, "w2_b": right}
        if len(shape) == 2:
            raise BadAdapter("a Tucker core needs a convolution")
        left, right, core = (rank, out), (rank, inner), (rank, rank, *shape[2:])
        return {"w1_a": left, "w1_b": right, "w2_a": left, "w2_b": right, "t1": core, "t2": core}
