"""IA3: one learned factor per input or output channel (arXiv:2205.05638, as in LyCORIS)."""

from dataclasses import dataclass, replace
from typing import final

from torch import Tensor

from lyc_fx.adapters.adapter import Adapter, Strength
from lyc_fx.algebra.action import Action
from lyc_fx.algebra.mapped import Mapped
from lyc_fx.algebra.maps import Diagonal
from lyc_fx.algebra.shapes import Shape, matrix_dims
from lyc_fx.errors import BadAdapter


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class IA3(Adapter):
    """`W'[o,i,κ] = W[o,i,κ] · (1 + s · w[i])` on the input side, `… · (1 + s · w[o])` on the output side.

    The bias is not scaled. In a grouped convolution an input factor counts all input channels, `in`, not
    `in/groups`.
    """

    name = "ia3"
    suffixes = {"weight": "weight"}
    scalars = {"on_input": "on_input"}
    layouts = (frozenset({"weight"}),)
    vectors = frozenset({"weight"})

    weight: Tensor
    """`(channels)` or `(1, channels, 1…)`"""
    on_input: float
    """1 for the input side, 0 for the output side"""

    @property
    def variant(self) -> str:
        return "on input" if self.on_input else "on output"

    @property
    def uses_alpha(self) -> bool:
        return False

    def fit(self, shape: Shape) -> None:
        out, inner, _ = matrix_dims(shape)
        channels, odd = self.weight.numel(), [size for size in self.weight.shape if size != 1]
        if len(odd) > 1:
            raise BadAdapter(f"weight is {tuple(self.weight.shape)}, not one value per channel")
        if not self.on_input and channels != out:
            raise BadAdapter(f"weight has {channels} values, the layer {out} output channels")
        if self.on_input and (channels % inner or out % (channels // inner)):
            raise BadAdapter(f"weight has {channels} values, the layer {inner} input channels in each group")

    def row_step(self, shape: Shape, at_most: int) -> int | None:
        return None if self.on_input and self.weight.numel() != shape[1] else at_most

    def rows(self, start: int, stop: int, shape: Shape) -> Adapter:
        if not self.on_input:
            return replace(self, weight=self.weight.reshape(-1)[start:stop])
        if self.weight.numel() != shape[1]:  # the rows of a grouped convolution have factors of their own
            return super().rows(start, stop, shape)
        return self

    def action(self, strength: Strength) -> Action:
        factors = Diagonal(1 + strength * self.weight.reshape(-1))
        return Mapped(columns=factors) if self.on_input else Mapped(rows=factors)

    @classmethod
    def factor_shapes(cls, shape: Shape, layout: frozenset[str], rank: int) -> dict[str, tuple[int, ...]]:
        out, inner, _ = matrix_dims(shape)
        return {"weight": (inner if cls.random_scalars(rank)["on_input"] else out,)}

    @classmethod
    def random_scalars(cls, rank: int) -> dict[str, float]:
        return {"on_input": float(rank % 2)}
