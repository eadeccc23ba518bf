"""An action on some rows alone."""

from dataclasses import dataclass, replace
from typing import final

from torch import Tensor
from torch.nn.functional import pad

from lyc_fx.algebra.action import Action, Base
from lyc_fx.algebra.added import Added
from lyc_fx.algebra.layer import Layer, NoChain


@final
@dataclass(frozen=True, eq=False)
class OfRows(Action):
    """An action on some rows of a weight, such as one part of a fused one: `W[start:stop] ← action(W[start:stop])`."""

    action: Action
    start: int
    stop: int

    @property
    def name(self) -> str:
        return f"{self.action.name} of some rows"

    @property
    def widens(self) -> bool:
        return self.action.widens

    def after(self, layer: Layer) -> bool:
        return not isinstance(self.action, Added)

    def value(self, weight: Tensor) -> Tensor:
        return weight.slice_scatter(self.action.value(weight[self.start : self.stop]), 0, self.start, self.stop)

    def act(self, layer: Layer, x: Tensor, base: Base, weight: Tensor | None) -> Tensor:
        return base(x) + self.beside(layer, x, base, weight)

    def beside(self, layer: Layer, x: Tensor, base: Base, weight: Tensor | None) -> Tensor:
        if layer.x_first or layer.groups > 1:
            raise NoChain("some rows alone, of a layer whose inputs meet the rows, or fall into groups")
        part = replace(layer, shape=(self.stop - self.start, *layer.shape[1:]))
        rows = None if weight is None else weight[self.start : self.stop]

        def of_part(inputs: Tensor) -> Tensor:
            if inputs is not x:
                raise NoChain("other inputs for some rows alone: a chain would take a second pass through the layer")
            return base(x).narrow(layer.channels, self.start, self.stop - self.start)

        y = self.action.beside(part, x, of_part, rows)
        return pad(y, [*[0, 0] * layer.dims, self.start, layer.shape[0] - self.stop])
