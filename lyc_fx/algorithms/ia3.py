"""IA3: one learned factor per input or output channel (arXiv:2205.05638, as in LyCORIS)."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from lyc_fx.adapters.adapter import Strength
from lyc_fx.adapters.shaped import Shaped
from lyc_fx.algebra.action import Action
from lyc_fx.algebra.mapped import Mapped
from lyc_fx.algebra.maps import Diagonal
from lyc_fx.algebra.shapes import Shape, matrix_dims


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class IA3(Shaped):
    """`W'[o,i,κ] = W[o,i,κ] · (1 + s · w[i])` on the input side, `… · (1 + s · w[o])` on the output side.

    The bias is not scaled. In a grouped convolution an input factor counts all input channels, `in`, not
    `in/groups`.
    """

    name = "ia3"
    suffixes = {"weight": "weight"}
    scalars = {"on_input": "on_input"}
    variants = {"on output": {"weight": "each out"}, "on input": {"weight": "each in"}}

    weight: Tensor
    on_input: float
    """1 for the input side, 0 for the output side"""

    @property
    def kind(self) -> str:
        return "on input" if self.on_input else "on output"

    def fit(self, shape: Shape) -> None:
        groups = self._groups(shape)
        super().fit((shape[0], shape[1] * groups, *shape[2:]) if groups > 1 and shape[0] % groups == 0 else shape)

    def mixes_rows(self, shape: Shape) -> bool:
        """The rows of each group have factors of their own."""
        return self._groups(shape) > 1

    def _groups(self, shape: Shape) -> int:
        """In how many groups of a grouped convolution the inputs have factors."""
        return self.weight.numel() // shape[1] if self.on_input and len(shape) > 1 else 1

    def action(self, strength: Strength) -> Action:
        factors = Diagonal(1 + strength * self.weight.reshape(-1))
        return Mapped(columns=factors) if self.on_input else Mapped(rows=factors)

    @classmethod
    def factor_shapes(cls, shape: Shape, layout: frozenset[str], rank: int) -> dict[str, tuple[int, ...]]:
        return {"weight": (matrix_dims(shape)[int(cls.random_scalars(rank)["on_input"])],)}

    @classmethod
    def random_scalars(cls, rank: int) -> dict[str, float]:
        return {"on_input": float(rank % 2)}
