"""DoRA's action: a weight of given norms in the direction of a changed one (arXiv:2402.09353)."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lyc_fx.algebra.action import Action, Base
from lyc_fx.algebra.layer import Layer, NoChain, Scale
from lyc_fx.algebra.shapes import Shape
from lyc_fx.algebra.structure import Structure, over


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Normed(Action):
    """`V = W + scale · structure`, `ρ = m / (‖V‖ + ε)`: `W + s · (ρ · V - W)`, or from V, `V · (1 + s · (ρ - 1))`.

    The norm is taken over all dimensions but that of m.
    """

    structure: Structure
    scale: float
    magnitude: Tensor
    """m, one for each row, `(out)` or `(out, 1…)`, or each input, `(1, in/groups, 1…)`"""
    epsilon: float
    strength: Scale
    from_changed: bool
    """Whether strength 0 is V rather than W"""

    @property
    def name(self) -> str:
        return f"DoRA of {self.structure.name}"

    def axis(self, shape: Shape) -> int:
        """The dimension of the magnitudes in a weight of this shape: 0 (rows) or 1 (inputs)."""
        return int(not self.magnitude.numel() == self.magnitude.shape[0] == shape[0])

    @property
    def widens(self) -> bool:
        return self.structure.widens

    def after(self, layer: Layer) -> bool:
        return layer.looks_up or self._scales_outputs(layer)

    def value(self, weight: Tensor) -> Tensor:
        direction = weight + self.structure.value(weight.shape) * self.scale
        ratio = self._ratio(direction)
        if self.from_changed:
            return direction * (1 + self.strength * (ratio - 1))
        return weight + self.strength * (direction * ratio - weight)

    def add_into(self, weight: Tensor) -> None:
        strength = float(self.strength)
        before = weight.clone() if not self.from_changed and strength != 1 else None
        self.structure.add_to(weight, self.scale)
        ratio = self._ratio(weight)
        weight *= 1 + strength * (ratio - 1) if self.from_changed else ratio * strength
        if before is not None:
            weight.add_(before, alpha=1 - strength)

    def act(self, layer: Layer, x: Tensor, base: Base, weight: Tensor | None) -> Tensor:
        """No tensor of the weight's size is made but W itself: `‖V‖² = ‖W‖² + 2·scale·⟨W, Δ⟩ + scale²·‖Δ‖²`."""
        if weight is None:
            raise NoChain("the norms of a weight that other adapters change first are not known")
        if self.structure.full:
            raise NoChain("a full difference has no form that is smaller than the weight")
        ratio, strength = self._ratio_of(weight), self.strength
        own = 1 + strength * (ratio - 1)  # the factor of layer(x, W)
        theirs = own if self.from_changed else strength * ratio  # that of layer(x, Δ)
        if self._scales_outputs(layer):
            own, theirs = self._fitted(layer, own), self._fitted(layer, theirs)
            return base(x) * own + self.structure.act(layer, x, self.scale) * theirs
        if layer.looks_up:
            found = [layer.fitted(layer.narrow(x, each.reshape([-1, 1]))) for each in (own, theirs)]
            return base(x) * found[0] + self.structure.act(layer, x, self.scale) * found[1]
        own, theirs = self._fitted(layer, own), self._fitted(layer, theirs)
        return base(x * own) + self.structure.act(layer, x * theirs, self.scale)

    def _scales_outputs(self, layer: Layer) -> bool:
        return layer.x_first == (self.axis(layer.shape) == 1)

    def _fitted(self, layer: Layer, factors: Tensor) -> Tensor:
        groups = layer.groups if self.axis(layer.shape) else 1
        factors = factors.repeat([groups]) if groups > 1 else factors
        return layer.fitted(factors.reshape([-1] + [1] * layer.dims))

    def _ratio(self, direction: Tensor) -> Tensor:
        """ρ from V, shaped to broadcast against it."""
        axis = self.axis(direction.shape)
        others = [dim for dim in range(direction.dim()) if dim != axis]
        norm = torch.linalg.vector_norm(direction, dim=others, keepdim=True) + self.epsilon
        return self.magnitude.reshape(norm.shape) / norm

    def _ratio_of(self, weight: Tensor) -> Tensor:
        """ρ from W without forming V, as a vector."""
        weight = weight if weight.dtype.itemsize >= 4 else weight.float()  # torch promotes no float8
        axis = self.axis(weight.shape)
        dot, squares = self.structure.dot(weight, axis), self.structure.squares(weight.shape, axis)
        change = 2 * dot + self.scale * squares
        square = over(weight.square(), axis) + self.scale * change
        return self.magnitude.flatten() / (square.clamp(min=torch.finfo(square.dtype).tiny).sqrt() + self.epsilon)
