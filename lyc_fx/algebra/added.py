"""Sums: the action of most algorithms."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from lyc_fx.algebra.action import Action, Base
from lyc_fx.algebra.layer import Layer, NoChain, Scale
from lyc_fx.algebra.structure import Structure


@final
@dataclass(frozen=True, eq=False)
class Added(Action):
    """`W + scale · structure`"""

    structure: Structure
    scale: Scale

    @property
    def name(self) -> str:
        return self.structure.name

    @property
    def widens(self) -> bool:
        return self.structure.widens

    def after(self, layer: Layer) -> bool:
        return False

    def value(self, weight: Tensor) -> Tensor:
        return weight + self.change(weight)

    def change(self, weight: Tensor) -> Tensor:
        return self.structure.value(weight.shape) * self.scale

    def add_into(self, weight: Tensor) -> None:
        self.structure.add_to(weight, float(self.scale))

    def act(self, layer: Layer, x: Tensor, base: Base, weight: Tensor | None) -> Tensor:
        return base(x) + self.beside(layer, x, base, weight)

    def beside(self, layer: Layer, x: Tensor, base: Base, weight: Tensor | None) -> Tensor:
        if self.structure.full:
            raise NoChain("a full difference has no form that is smaller than the weight")
        return self.structure.act(layer, x, self.scale)
