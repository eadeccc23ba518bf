"""What an adapter does to a weight at a strength, and to the activations of a layer with that weight."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from torch import Tensor

from lyc_fx.algebra.layer import Layer, NoChain

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

        `weight` is None if an earlier adapter has already changed it, so that its values are not available.
        """

    @property
    def widens(self) -> bool:
        """Whether its chain may be more work than the layer itself (`Structure.widens`)."""
        return False

    @property
    def own_pass(self) -> bool:
        """Whether, combined with other adapters, it needs a second call of the layer on other inputs."""
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
