"""LoCon: low-rank adaptation of Linear and Conv (LoRA, arXiv:2106.09685; conv and Tucker as in LyCORIS)."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from lyc_fx.adapters.adapter import Adapter
from lyc_fx.adapters.decomposed import DORA, Decomposable
from lyc_fx.algebra import Low, Shape, Structure, Tucker
from lyc_fx.algebra.tensors import matrix
from lyc_fx.errors import BadAdapter


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
    variants = {
        "": {"up": "out r 1", "down": "r in kernel"},
        "tucker": {"up": "out p 1", "down": "q in 1", "mid": "p q kernel"},
    }

    up: Tensor
    down: Tensor
    mid: Tensor | None = None

    def expression(self) -> Structure:
        if self.mid is None:
            return Low(self.up, self.down)
        return Tucker(self.mid, matrix(self.up), matrix(self.down))

    def fit(self, shape: Shape) -> None:
        self._refuse_grouped(shape)
        super().fit(shape)

    def _refuse_grouped(self, shape: Shape) -> None:
        """PEFT adapts a grouped convolution by an A without groups, over all inputs, and a B with them."""
        if self.mid is not None or len(shape) < 3 or min(self.up.dim(), self.down.dim()) < 2 or not self.up.shape[1]:
            return
        groups, rest = divmod(self.down.shape[0], self.up.shape[1])
        if groups > 1 and not rest and self.down.shape[1] == groups * shape[1]:
            raise BadAdapter(
                f"the factors {tuple(self.down.shape)} and {tuple(self.up.shape)} are PEFT's for a convolution of "
                f"{groups} groups, where every output reads all inputs: no weight of the layer represents that (PEFT "
                "cannot merge it either); run the model with PEFT, or leave this module out"
            )

    def low_rank(self, shape: Shape) -> "LoCon":
        return self if self.mid is None else super().low_rank(shape)

    @classmethod
    def of(cls, up: Tensor, down: Tensor, shape: Shape, like: Adapter) -> "LoCon":
        """`(out, r)` and `(r, in/groups · κ)` for a weight of this shape, with the scale and magnitude of another."""
        ones = [1] * (len(shape) - 2)
        return cls(
            up=up.reshape([shape[0], -1, *ones]),
            down=down.reshape([-1, *shape[1:]]),
            magnitude=like.factors().get("magnitude"),
            alpha=like.scale * down.shape[0],
            convention=like.convention,
        )
