"""What an adapter does to a weight at a strength, and to the activations of a layer with that weight."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

from torch import Tensor
from torch.nn.functional import pad

from lyc_fx.algebra.layer import Layer, NoChain, Scale
from lyc_fx.algebra.maps import Map
from lyc_fx.algebra.shear import Shear
from lyc_fx.algebra.structure import Structure

Base = Callable[[Tensor], Tensor]
"""From x to the layer's outputs with the weight that is acted on, without the bias"""


@dataclass(frozen=True, eq=False)
class Action(ABC):
    """Abstract: a map from a weight to the adapted one."""

    @property
    @abstractmethod
    def name(self) -> str:
        """In the field's words, for the history of a program."""

    @abstractmethod
    def value(self, weight: Tensor) -> Tensor:
        """The adapted weight, in operators that autograd sees through."""

    @abstractmethod
    def act(self, layer: Layer, x: Tensor, base: Base, weight: Tensor | None) -> Tensor:
        """`layer(x, value(weight))` from `base(x) = layer(x, weight)`. Raises NoChain.

        `weight` is None where it is not stored as it is, but an adapted one itself.
        """

    @property
    def own_pass(self) -> bool:
        """Whether, beside others, it takes a pass of its own through the layer."""
        return False

    @abstractmethod
    def after(self, layer: Layer) -> bool:
        """Whether it changes the layer's outputs, so that the bias must come later."""

    def change(self, weight: Tensor) -> Tensor:
        """`value(weight) - weight`, so that several actions can be summed relative to the base."""
        return self.value(weight) - weight

    def add_into(self, weight: Tensor) -> None:
        """`weight ← value(weight)`, in place; it is contiguous, in the dtype of the factors.

        Overridden where it can do without some temporaries: writing one of a weight's size, and reading it again, costs
        more than the arithmetic.
        """
        weight.copy_(self.value(weight))

    def beside(self, layer: Layer, x: Tensor, base: Base, weight: Tensor | None) -> Tensor:
        """`layer(x, change(weight))`, beside other actions on the same weight. Raises NoChain."""
        y = base(x)

        def again(inputs: Tensor) -> Tensor:
            if inputs is not x:
                raise NoChain("other inputs than those of the adapters beside it: a second pass through the layer")
            return y

        return self.act(layer, x, again, weight) - y


@final
@dataclass(frozen=True, eq=False)
class Added(Action):
    """`W + scale · structure`"""

    structure: Structure
    scale: Scale

    @property
    def name(self) -> str:
        return self.structure.name

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
        """Of the identity plus a low rank, on the inputs: a second pass, of what that adds."""
        if not self.own_pass or not isinstance(self.columns, Shear):
            return super().beside(layer, x, base, weight)
        if layer.x_first:
            y = self.columns.add(layer, base(x), on_rows=False)
        else:
            y = base(self.columns.add(layer, x, on_rows=False))
        return y if self.added is None else y + self.added.beside(layer, x, base, weight)


@final
@dataclass(frozen=True, eq=False)
class Whole(Action):
    """A formula of the weight's values that has no form on activations, and why."""

    formula: Callable[[Tensor], Tensor]
    reason: str

    name = "a formula of the weight"

    def after(self, layer: Layer) -> bool:
        return False

    def value(self, weight: Tensor) -> Tensor:
        return self.formula(weight)

    def act(self, layer: Layer, x: Tensor, base: Base, weight: Tensor | None) -> Tensor:
        raise NoChain(self.reason)


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
