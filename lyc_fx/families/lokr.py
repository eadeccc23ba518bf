"""LoKr: Kronecker product of two factors, each full or decomposed (KronA, arXiv:2212.10650, as in LyCORIS)."""

from dataclasses import dataclass, replace
from itertools import product as combinations
from math import isqrt
from typing import final

import torch
from torch import Tensor

from lyc_fx.errors import BadAdapter
from lyc_fx.families.adapter import Adapter
from lyc_fx.families.dora import DORA, Decomposable, decomposed
from lyc_fx.families.locon import LoCon
from lyc_fx.families.shapes import Shape, expect, expect_kernel, expect_matrix, flat_shape, matrix_dims
from lyc_fx.families.tensors import kronecker, low_rank, matrix, tucker, with_core

_LEFT = (frozenset({"w1"}), frozenset({"w1_a", "w1_b"}))
_RIGHT = (frozenset({"w2"}), frozenset({"w2_a", "w2_b"}), frozenset({"w2_a", "w2_b", "t2"}))


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
    layouts = decomposed(*(left | right for left, right in combinations(_LEFT, _RIGHT)))

    w1: Tensor | None = None
    """`(l, m)`"""
    w1_a: Tensor | None = None
    """`(l, r)`"""
    w1_b: Tensor | None = None
    """`(r, m)`"""
    w2: Tensor | None = None
    """`(k, n, *kernel)`"""
    w2_a: Tensor | None = None
    """`(k, r)`; with a core the other way round, `(r, k)`"""
    w2_b: Tensor | None = None
    """`(r, n · kernel)` or `(r, n, *kernel)`; with a core `(r, n)`"""
    t2: Tensor | None = None
    """`(r, r, *kernel)`: first the rank on the side of the output"""

    @property
    def rank(self) -> int | None:
        inner = self.w1_b if self.w1_b is not None else self.w2_b
        return None if inner is None else inner.shape[0]

    @property
    def uses_alpha(self) -> bool:
        return self.rank is not None

    @property
    def variant(self) -> str:
        left = "full w1" if self.w1 is not None else "low-rank w1"
        right = "full w2" if self.w2 is not None else "low-rank w2" if self.t2 is None else "tucker w2"
        return self.with_dora(f"{left}, {right}")

    def weight_shape(self) -> tuple[int, ...]:
        """Where w2 is decomposed without a core, a convolution's kernel is not told apart from its inputs."""
        left, m = self._left_shape()
        right = self.w2.shape if self.w2 is not None else (self._right_rows(), *self.w2_b.shape[1:])  # type: ignore[union-attr]
        kernel = right[2:] if self.t2 is None else self.t2.shape[2:]
        return left * right[0], m * right[1], *kernel

    def rows(self, start: int, stop: int, shape: Shape) -> Adapter:
        """Rows of w1 where the stretch covers whole ones, rows of w2 where it lies within one, else the LoCon's."""
        k, magnitude = self._right_rows(), self.magnitude_rows(start, stop, shape)
        if start % k == 0 and stop % k == 0:
            names, first, last = ("w1", "w1_a"), start // k, stop // k
            cut = {n: f[first:last] for n, f in self.factors().items() if n in names}
            return replace(self.with_factors(cut), magnitude=magnitude)
        if start // k != (stop - 1) // k:
            return self.low_rank(shape).rows(start, stop, shape)
        row, first, last = start // k, start % k, start % k + stop - start
        cut = {n: f[row : row + 1] for n, f in self.factors().items() if n in ("w1", "w1_a")}
        if self.w2 is not None:
            cut["w2"] = self.w2[first:last]
        elif self.w2_a is not None:
            cut["w2_a"] = self.w2_a[first:last] if self.t2 is None else self.w2_a[:, first:last]
        return replace(self.with_factors(cut), magnitude=magnitude)

    def product_step(self, at_most: int) -> int:
        """Whole rows of w1, or a part of one that divides it."""
        k = self._right_rows()
        return at_most // k * k if k <= at_most else max(d for d in range(1, at_most + 1) if k % d == 0)

    def low_rank(self, shape: Shape) -> LoCon:
        """The same effect as LoCon, exactly: `w1 ⊗ (a @ b) = (w1 ⊗ a) @ (I ⊗ b)`, of rank m · r; in float64.

        With a core, `b` is the core times w2_b; a full w2 is `w2 @ I`, or `I @ w2` where that has the lower rank.
        """
        exact = self.to(torch.float64)
        left = exact._left()
        a, b = exact._right_pair()
        down = kronecker(torch.eye(left.shape[1]).to(left), b)  # (m·r, m·n·κ): the order of a weight's inputs and taps
        return LoCon.of(kronecker(left, a), down, shape, like=self)

    def _right_pair(self) -> tuple[Tensor, Tensor]:
        """`(k, r)` and `(r, n · κ)` whose product is w2."""
        if self.w2_a is not None and self.w2_b is not None:
            return (self.w2_a, matrix(self.w2_b)) if self.t2 is None else with_core(self.t2, self.w2_a, self.w2_b)
        assert self.w2 is not None
        full = matrix(self.w2)
        one = torch.eye(min(full.shape)).to(full)
        return (one, full) if full.shape[0] <= full.shape[1] else (full, one)

    def _left_shape(self) -> tuple[int, int]:
        """`(l, m)`"""
        if self.w1 is not None:
            return flat_shape(self.w1)
        assert self.w1_a is not None and self.w1_b is not None
        expect("lokr_w1_b", self.w1_b.shape[:1], self.w1_a.shape[1:2])
        return self.w1_a.shape[0], self.w1_b.shape[1]

    def _right_rows(self) -> int:
        """k"""
        if self.w2 is not None:
            return self.w2.shape[0]
        assert self.w2_a is not None
        return self.w2_a.shape[0 if self.t2 is None else 1]

    def fit_product(self, shape: Shape) -> None:
        out, inner, taps = matrix_dims(shape)
        for name, factor in self.factors().items():
            if (factor.dim() < 2 and name != "magnitude") or (factor.dim() > 2 and name in ("w1_a", "w1_b")):
                raise BadAdapter(f"{self.suffixes[name]} is {tuple(factor.shape)}, not a matrix")
        (left, m), k = self._left_shape(), self._right_rows()
        if left * k != out or inner % m:
            raise BadAdapter(f"factors of {left}·{k} rows and {m}·n columns do not make a weight of {tuple(shape)}")
        n = inner // m
        if self.w2 is not None:
            expect_matrix("lokr_w2", self.w2, (k, n * taps))
            expect_kernel("lokr_w2", self.w2, shape)
            return
        assert self.w2_a is not None and self.w2_b is not None
        if self.t2 is None:
            expect_matrix("lokr_w2_a", self.w2_a, (k, self.w2_b.shape[0]))
            expect_matrix("lokr_w2_b", self.w2_b, (self.w2_b.shape[0], n * taps))
            expect_kernel("lokr_w2_b", self.w2_b, shape)
        else:
            if self.t2.dim() != len(shape):
                raise BadAdapter(f"lokr_t2 is {tuple(self.t2.shape)}, the weight is {tuple(shape)}")
            expect("lokr_w2_a", self.w2_a.shape, (self.t2.shape[0], k))
            expect("lokr_w2_b", self.w2_b.shape, (self.t2.shape[1], n))
            expect_kernel("lokr_t2", self.t2, shape)

    def product(self, shape: Shape) -> Tensor:
        return kronecker(*self._sides(shape))

    def add_to(self, weight: Tensor, scale: float) -> None:
        left, right = self._sides(weight.shape)
        (l, m), (k, n) = left.shape, right.shape[:2]  # noqa: E741
        weight.view(l, k, m, n, -1).addcmul_(left.view(l, 1, m, 1, 1), right.view(1, k, 1, n, -1), value=scale)

    def _sides(self, shape: Shape) -> tuple[Tensor, Tensor]:
        """w1 `(l, m)` and w2 `(k, n, *kernel)` for a weight of this shape."""
        left = self._left()
        return left, self._right((self._right_rows(), shape[1] // left.shape[1], *shape[2:]))

    def _left(self) -> Tensor:
        if self.w1 is not None:
            return self.w1 if self.w1.dim() == 2 else self.w1.flatten(1)
        assert self.w1_a is not None and self.w1_b is not None
        return self.w1_a @ self.w1_b

    def _right(self, block: Shape) -> Tensor:
        if self.w2 is not None:
            return self.w2 if tuple(self.w2.shape) == tuple(block) else self.w2.reshape(list(block))
        assert self.w2_a is not None and self.w2_b is not None
        if self.t2 is None:
            return low_rank(self.w2_a, self.w2_b, block)
        return tucker(self.t2, self.w2_a.t(), self.w2_b)

    @classmethod
    def product_shapes(cls, shape: Shape, layout: frozenset[str], rank: int) -> dict[str, tuple[int, ...]]:
        taps = matrix_dims(shape)[2]
        out, inner, *kernel = shape
        (left, k), (m, n) = factorization(out), factorization(inner)
        shapes: dict[str, tuple[int, ...]] = {
            "w1": (left, m),
            "w1_a": (left, rank),
            "w1_b": (rank, m),
            "w2": (k, n, *kernel),
            "w2_a": (k, rank),
            "w2_b": (rank, n * taps),
        }
        if "t2" in layout:
            if not kernel:
                raise BadAdapter("a Tucker core needs a convolution")
            shapes |= {"w2_a": (rank, k), "w2_b": (rank, n), "t2": (rank, rank, *kernel)}
        return {name: shapes[name] for name in cls.suffixes if name in layout}


def factorization(size: int, factor: int = -1) -> tuple[int, int]:
    """`size = m · n`, m ≤ n, as LyCORIS chooses it for a *new* adapter; one that exists is read by its shapes.

    A factor that divides is taken as it is, also above √size; else m is the greatest divisor up to it and √size.
    """
    if factor > 0 and size % factor == 0:
        low, high = sorted((factor, size // factor))
        return low, high
    bound = isqrt(size) if factor < 0 else max(1, min(factor, isqrt(size)))
    m = next(d for d in range(bound, 0, -1) if size % d == 0)
    return m, size // m
