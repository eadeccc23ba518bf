"""LoCon: low-rank adaptation of Linear and Conv (LoRA, arXiv:2106.09685; conv and Tucker as in LyCORIS)."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from lyc_fx.errors import BadAdapter
from lyc_fx.families.dora import DORA, Decomposable, decomposed
from lyc_fx.families.shapes import Shape, expect, expect_kernel, flat_shape, matrix_dims
from lyc_fx.families.tensors import low_rank, matrix, tucker


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class LoCon(Decomposable):
    """`ΔW = alpha/r · up @ down`, or with a Tucker core `mid`:
    `ΔW[o,i,κ] = alpha/r · Σ_pq up[o,p] · mid[p,q,κ] · down[q,i]`.

    Trailing dimensions of size 1 are optional (kohya's conv 1×1 on a Linear, DyLoRA's 2-D up on a conv).
    With groups, the r channels are shared by all groups: down sees in/groups channels.
    """

    name = "locon"
    suffixes = {"up": "lora_up.weight", "down": "lora_down.weight", "mid": "lora_mid.weight", **DORA}
    layouts = decomposed(frozenset({"up", "down"}), frozenset({"up", "down", "mid"}))

    up: Tensor
    """`(out, r, 1…)`"""
    down: Tensor
    """`(r, in/groups, *kernel)`; with a core `(r, in/groups, 1…)`"""
    mid: Tensor | None = None
    """`(r, r, *kernel)`: first the rank on the side of up, then that of down"""

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def variant(self) -> str:
        return self.with_dora("" if self.mid is None else "tucker")

    def fit_product(self, shape: Shape) -> None:
        out, inner, taps = matrix_dims(shape)
        if self.mid is None:
            expect("lora_up.weight as a matrix", flat_shape(self.up), (out, self.rank))
            expect("lora_down.weight as a matrix", flat_shape(self.down), (self.rank, inner * taps))
            expect_kernel("lora_down.weight", self.down, shape)
        else:
            if self.mid.dim() != len(shape):
                raise BadAdapter(f"lora_mid.weight is {tuple(self.mid.shape)}, the weight is {tuple(shape)}")
            expect("lora_up.weight as a matrix", flat_shape(self.up), (out, self.mid.shape[0]))
            expect("lora_down.weight as a matrix", flat_shape(self.down), (self.mid.shape[1], inner))
            expect_kernel("lora_mid.weight", self.mid, shape)

    def product(self, shape: Shape) -> Tensor:
        if self.mid is None:
            return low_rank(self.up, self.down, shape)
        return tucker(self.mid, matrix(self.up), matrix(self.down))

    @classmethod
    def product_shapes(cls, shape: Shape, layout: frozenset[str], rank: int) -> dict[str, tuple[int, ...]]:
        matrix_dims(shape)
        out, inner, *kernel = shape
        ones = [1] * len(kernel)
        if "mid" not in layout:
            return {"up": (out, rank, *ones), "down": (rank, inner, *kernel)}
        if not kernel:
            raise BadAdapter("a Tucker core needs a convolution")
        return {"up": (out, rank, *ones), "down": (rank, inner, *ones), "mid": (rank, rank, *kernel)}
