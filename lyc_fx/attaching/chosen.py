"""What the last choice of adapters put where, so that their strengths can change alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self, final

from lyc_fx.attaching.layer_program import LayerProgram
from lyc_fx.attaching.units import Units
from lyc_fx.binding.bound import Binding, Bound
from lyc_fx.binding.report import Report
from lyc_fx.graph.places import Filled
from lyc_fx.model.weight_handle import WeightHandle


@final
@dataclass(frozen=True)
class Chosen:
    """Of one call of `Attached.set`."""

    sets: int = 0
    """How many adapter sets there are"""
    binding: Binding = field(default_factory=lambda: Binding({}, Report(())))
    weights: Mapping[str, WeightHandle] = field(default_factory=dict)
    """By name, with those of `substituted`"""
    filled: Mapping[str, tuple[LayerProgram, Sequence[Filled]]] = field(default_factory=dict)
    """By path, the program of a layer and what is in its places"""
    substituted: Units = field(default_factory=dict)
    """The modules that run with merged weights"""

    def with_strengths(self, strengths: Sequence[float]) -> Self:
        """The same with other strengths of its sets."""

        def changed(bound: Bound) -> Bound:
            return replace(bound, strength=strengths[bound.index])

        targets = {name: tuple(map(changed, each)) for name, each in self.binding.targets.items()}
        filled = {
            path: (program, [(term, bound and changed(bound)) for term, bound in each])
            for path, (program, each) in self.filled.items()
        }
        return replace(self, binding=replace(self.binding, targets=targets), filled=filled)
