"""Matrices on the rows and the inputs of a weight: rotations, factors per channel, reflections."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from lyc_fx.algebra.action import Action, Base
from lyc_fx.algebra.added import Added
from lyc_fx.algebra.layer import Layer
from lyc_fx.algebra.maps import Map
from lyc_fx.algebra.shear import Shear


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Mapped(Action):
    """`rows · W · columns + scale · added`, each of which may be missing."""

    rows: Map | None = None
    columns: Map | None = None
    added: Added | None = None

    @property
    def name(self) -> str:
        sides = [(self.rows, "rows"), (self.columns, "columns")]
        return " and ".join(each.name or side for each, side in sides if each is not None)

    @property
    def own_pass(self) -> bool:
        return self.rows is None and isinstance(self.columns, Shear)

    def after(self, layer: Layer) -> bool:
        return (self.columns if layer.x_first else self.rows) is not None or (layer.looks_up and self.rows is not None)

    def value(self, weight: Tensor) -> Tensor:
        result = weight if self.rows is None else self.rows.rows(weight)
        result = result if self.columns is None else self.columns.columns(result)
        return result if self.added is None else result + self.added.change(weight)

    def act(self, layer: Layer, x: Tensor, base: Base, weight: Tensor | None) -> Tensor:
        y = self._outputs(layer, x, base(self._inputs(layer, x)))
        return y if self.added is None else y + self.added.beside(layer, x, base, weight)

    def _inputs(self, layer: Layer, x: Tensor) -> Tensor:
        if layer.x_first:
            return x if self.rows is None or layer.looks_up else self.rows.act(layer, x, on_rows=True, turned=True)
        return x if self.columns is None else self.columns.act(layer, x, on_rows=False, turned=False)

    def _outputs(self, layer: Layer, x: Tensor, y: Tensor) -> Tensor:
        if not layer.x_first:
            return y if self.rows is None else self.rows.act(layer, y, on_rows=True, turned=False)
        if self.rows is not None and layer.looks_up:
            y = self.rows.look_up(layer, x, y)
        return y if self.columns is None else self.columns.act(layer, y, on_rows=False, turned=True)

    def beside(self, layer: Layer, x: Tensor, base: Base, weight: Tensor | None) -> Tensor:
        """For the identity plus a low rank on the inputs: call the layer again, on what the low rank adds."""
        if not self.own_pass or not isinstance(self.columns, Shear):
            return super().beside(layer, x, base, weight)
        if layer.x_first:
            y = self.columns.add(layer, base(x), on_rows=False)
        else:
            y = base(self.columns.add(layer, x, on_rows=False))
        return y if self.added is None else y + self.added.beside(layer, x, base, weight)
