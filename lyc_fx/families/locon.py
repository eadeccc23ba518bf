"""LoCon: low-rank adaptation of Linear and Conv (LoRA, arXiv:2106.09685; conv and Tucker as in LyCORIS)."""

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from lyc_fx.errors import BadAdapter
from lyc_fx.families.dora import DORA, Decomposable, decomposed
from lyc_fx.families.shapes import Shape, expect_kernel, expect_matrix, matrix_dims
from lyc_fx.families.tensors import low_rank, matrix, some_inputs, tucker, with_core


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
            self._refuse_grouped(shape)
            expect_matrix("lora_up.weight", self.up, (out, self.rank))
            expect_matrix("lora_down.weight", self.down, (self.rank, inner * taps))
            expect_kernel("lora_down.weight", self.down, shape)
        else:
            if self.mid.dim() != len(shape):
                raise BadAdapter(f"lora_mid.weight is {tuple(self.mid.shape)}, the weight is {tuple(shape)}")
            expect_matrix("lora_up.weight", self.up, (out, self.mid.shape[0]))
            expect_matrix("lora_down.weight", self.down, (self.mid.shape[1], inner))
            expect_kernel("lora_mid.weight", self.mid, shape)

    def _refuse_grouped(self, shape: Shape) -> None:
        """PEFT adapts a grouped convolution by an A without groups, over all inputs, and a B with them."""
        if len(shape) < 3 or min(self.up.dim(), self.down.dim()) < 2 or not self.up.shape[1]:
            return
        groups, rest = divmod(self.rank, self.up.shape[1])
        if groups > 1 and not rest and self.down.shape[1] == groups * shape[1]:
            raise BadAdapter(
                f"the factors {tuple(self.down.shape)} and {tuple(self.up.shape)} are PEFT's for a convolution of "
                f"{groups} groups, where every output reads all inputs: no weight of the layer represents that (PEFT "
                "cannot merge it either); run the model with PEFT, or leave this module out"
            )

    def weight_shape(self) -> tuple[int, ...]:
        kernel = self.down.shape[2:] if self.mid is None else self.mid.shape[2:]
        return self.up.shape[0], self.down.shape[1], *kernel

    def rows(self, start: int, stop: int, shape: Shape) -> "LoCon":
        return replace(self, up=self.up[start:stop], magnitude=self.magnitude_rows(start, stop, shape))

    def product_columns(self, start: int, stop: int, shape: Shape) -> "LoCon":
        if self.mid is not None:
            return replace(self, down=self.down[:, start:stop])
        return replace(self, down=some_inputs(self.down, start, stop, shape))

    def compact(self) -> "LoCon":
        """Without the columns of `up` that are zero: a fused adapter that was trained as several is block-sparse."""
        used = matrix(self.up).ne(0).any(dim=0)
        if self.mid is not None or bool(used.all()) or not bool(used.any()):
            return self
        alpha = self.scale * int(used.sum()) if self.alpha else None
        return replace(self, up=self.up[:, used], down=self.down[used], alpha=alpha)

    def product(self, shape: Shape) -> Tensor:
        if self.mid is None:
            return low_rank(self.up, self.down, shape)
        return tucker(self.mid, matrix(self.up), matrix(self.down))

    def add_to(self, weight: Tensor, scale: float) -> None:
        if self.mid is None:
            matrix(weight).addmm_(matrix(self.up), matrix(self.down), alpha=scale)
        else:
            super().add_to(weight, scale)

    def low_rank(self, shape: Shape) -> "LoCon":
        if self.mid is None:
            return self
        exact = self.to(torch.float64)
        assert exact.mid is not None
        return LoCon.of(*with_core(exact.mid, matrix(exact.up).t(), matrix(exact.down)), shape, like=self)

    @classmethod
    def of(cls, up: Tensor, down: Tensor, shape: Shape, like: Decomposable) -> "LoCon":
        """`(out, r)` and `(r, in/groups · κ)` for a weight of this shape, with the scale and magnitude of another."""
        ones = [1] * (len(shape) - 2)
        return cls(
            up=up.reshape([shape[0], -1, *ones]),
            down=down.reshape([-1, *shape[1:]]),
            magnitude=like.magnitude,
            alpha=like.scale * down.shape[0],
            convention=like.convention,
        )

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
