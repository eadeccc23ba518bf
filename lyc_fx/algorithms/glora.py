"""GLoRA: a low-rank map of the weight itself besides a low-rank sum (arXiv:2306.07967, as in LyCORIS)."""

from dataclasses import dataclass, replace
from typing import final

from torch import Tensor

from lyc_fx.adapters.adapter import Strength
from lyc_fx.adapters.shaped import Shaped
from lyc_fx.algebra import Low, Shape
from lyc_fx.algebra.action import Action
from lyc_fx.algebra.added import Added
from lyc_fx.algebra.mapped import Mapped
from lyc_fx.algebra.shear import Shear
from lyc_fx.algebra.tensors import matrix


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class GLoRA(Shaped):
    """`W' = W + s · alpha/r · (W·A + B)`, `A = a1 @ a2` over the input channels, `B = b1 @ b2`:
    `(W·A)[o,j,κ] = Σ_i W[o,i,κ] · A[i,j]`.

    Old files have the two matrices of each pair the other way round, `A = a2 @ a1`, `B = b2 @ b1`. Which it is
    follows from the shapes, if need be from the weight's; where both readings fit (r = in = out), it is the new one.
    """

    name = "glora"
    suffixes = {"a1": "a1.weight", "a2": "a2.weight", "b1": "b1.weight", "b2": "b2.weight"}
    variants = {
        "": {"a1": "in r 1", "a2": "r in 1", "b1": "out r 1", "b2": "r in kernel"},
        "old orientation": {"a1": "r in 1", "a2": "in r 1", "b1": "r in kernel", "b2": "out r 1"},
    }

    a1: Tensor
    a2: Tensor
    b1: Tensor
    b2: Tensor

    inputs: int | None = None
    """Of the weight, once that is known: it decides where the factors alone leave it open"""

    @property
    def _old(self) -> bool:
        """Whether each pair is stored the other way round: r is what a1 and b1 share, as columns or as rows."""
        if self.inputs is not None and self.a1.shape[0] != self.a1.shape[1]:
            return self.a1.shape[1] == self.inputs
        columns = self.a1.shape[1] == self.a2.shape[0] == self.b1.shape[1] == self.b2.shape[0]
        rows = self.a1.shape[0] == self.a2.shape[1] == self.b1.shape[0] == self.b2.shape[1]
        return rows and (not columns or self.a1.shape[0] < self.a1.shape[1])

    @property
    def kind(self) -> str:
        return "old orientation" if self._old else ""

    def _pairs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """a1, a2, b1, b2 in the new orientation."""
        return (self.a2, self.a1, self.b2, self.b1) if self._old else (self.a1, self.a2, self.b1, self.b2)

    def oriented(self, stored: Shape, transposed: bool) -> "GLoRA":
        return self if len(stored) < 2 else replace(self, inputs=stored[0 if transposed else 1])

    def action(self, strength: Strength) -> Action:
        a1, a2, b1, b2 = map(matrix, self._pairs())
        scale = strength * self.scale
        return Mapped(columns=Shear(a1, a2, scale), added=Added(Low(b1, b2), scale))
