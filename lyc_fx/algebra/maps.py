"""Square matrices on the rows or on the inputs of a weight, as what they do to it and to a layer's activations."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from lyc_fx.algebra.layer import Layer, NoChain


@dataclass(frozen=True, eq=False)
class Map(ABC):
    """Abstract: a square matrix M. `M · W` on the rows of a weight, `W · M` on its inputs.

    `layer(x, M·W) = M · layer(x, W)` and `layer(x, W·M) = layer(M·x, W)`. If x meets the rows of the weight
    (`x_first`), inputs and outputs change roles, and the transpose of M is applied.
    """

    name: ClassVar[str] = ""
    """In the field's words, where that is not just rows or columns"""

    @abstractmethod
    def rows(self, weight: Tensor) -> Tensor:
        """`M · W` of `(out, …)`."""

    @abstractmethod
    def columns(self, weight: Tensor) -> Tensor:
        """`W · M` of `(out, in/groups, *kernel)`."""

    @abstractmethod
    def act(self, layer: Layer, x: Tensor, *, on_rows: bool, turned: bool) -> Tensor:
        """Apply M, or its transpose if `turned`, to the channels of activations.

        `on_rows`: these channels correspond to the weight's rows, else to its inputs. Raises NoChain.
        """

    def look_up(self, layer: Layer, x: Tensor, found: Tensor) -> Tensor:
        """M on the rows `found` of a weight, whose indices are x. Raises NoChain where other rows are needed."""
        raise NoChain("an embedding reads single rows, which a rotation mixes")


@final
@dataclass(frozen=True, eq=False)
class Compose(Map):
    """`M = M_n ⋯ M_1`: of several matrices, the first acts first."""

    maps: tuple[Map, ...]

    def rows(self, weight: Tensor) -> Tensor:
        for each in self.maps:
            weight = each.rows(weight)
        return weight

    def columns(self, weight: Tensor) -> Tensor:
        for each in self.maps[::-1]:
            weight = each.columns(weight)
        return weight

    def act(self, layer: Layer, x: Tensor, *, on_rows: bool, turned: bool) -> Tensor:
        from lyc_fx.algebra.butterfly import joined  # whose stages are maps themselves

        maps = joined(self.maps)
        for each in maps[::-1] if turned else maps:
            x = each.act(layer, x, on_rows=on_rows, turned=turned)
        return x

    def look_up(self, layer: Layer, x: Tensor, found: Tensor) -> Tensor:
        for each in self.maps:
            found = each.look_up(layer, x, found)
        return found


@final
@dataclass(frozen=True, eq=False)
class Diagonal(Map):
    """A factor per channel: `(channels)`. On the inputs of a grouped convolution it may have one for each input of each
    group, or one that all groups share.
    """

    factors: Tensor

    def rows(self, weight: Tensor) -> Tensor:
        return weight * self.factors.reshape([-1] + [1] * (weight.dim() - 1))

    def columns(self, weight: Tensor) -> Tensor:
        inner, ones = weight.shape[1], [1] * (weight.dim() - 2)
        if self.factors.numel() == inner:
            return weight * self.factors.reshape([1, -1, *ones])
        by_group = self.factors.reshape([-1, 1, inner, *ones])
        return (weight.reshape([by_group.shape[0], -1, *weight.shape[1:]]) * by_group).reshape(weight.shape)

    def act(self, layer: Layer, x: Tensor, *, on_rows: bool, turned: bool) -> Tensor:
        factors = self.factors
        if not on_rows and layer.groups > 1:
            sets = factors.numel() // layer.shape[1]
            if sets not in (1, layer.groups):
                raise NoChain(f"the factor is one of {sets} groups, the layer has {layer.groups}")
            factors = factors.repeat([layer.groups]) if sets == 1 else factors
        return x * layer.fitted(factors.reshape([-1] + [1] * layer.dims))

    def look_up(self, layer: Layer, x: Tensor, found: Tensor) -> Tensor:
        return found * layer.fitted(layer.narrow(x, self.factors.reshape([-1, 1])))
