"""What the user asks for: adapter sets, each with a strength, and how they combine."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import isfinite
from typing import Any, final, get_args

from lyc_fx.adapters import AdapterSet
from lyc_fx.chosen import Adapters, Blocks, chosen
from lyc_fx.errors import BadAdapter
from lyc_fx.families import Convention

__all__ = ["Adapters", "Blocks", "Part", "Stack", "stacked"]


@final
@dataclass(frozen=True)
class Part:
    """One adapter set of a stack."""

    adapters: AdapterSet
    strength: float
    blocks: tuple[Blocks, ...] = ()

    def factor(self, weight: str) -> float:
        """What the block strengths say of a weight."""
        product = 1.0
        for blocks in self.blocks:
            product *= next((float(f) for pattern, f in blocks.items() if fnmatchcase(weight, pattern)), 1.0)
        return product


@final
@dataclass(frozen=True)
class Stack:
    """Adapter sets in the order given.

    Not sequential: every change is relative to the base weight, and the order means nothing. Sequential: each
    set is applied to what the ones before it left.
    """

    parts: tuple[Part, ...]
    sequential: bool = False
    allow_nonfinite: bool = False
    """Whether base weights may hold NaN and infinity"""
    components: tuple[str, ...] = ()
    """Which of the components that have the same names are meant; empty: the first"""

    def order(self) -> list[int]:
        """The order of summing: by digest, so that the same adapters give the same bits in whatever order."""
        positions = list(range(len(self.parts)))
        if self.sequential or len(positions) < 2:
            return positions
        parts = self.parts
        return sorted(positions, key=lambda i: (parts[i].adapters.digest, parts[i].strength, repr(parts[i].blocks)))

    def idle_patterns(self, weights: Iterable[str]) -> list[str]:
        """Block patterns that match none of the adapted weights: most likely misspelt."""
        names = list(weights)
        patterns = dict.fromkeys(p for part in self.parts for blocks in part.blocks for p in blocks)
        return [p for p in patterns if not any(fnmatchcase(name, p) for name in names)]


def stacked(
    adapters: Adapters,
    strength: float | Blocks = 1.0,
    *,
    convention: Convention = "interpolate",
    sequential: bool = False,
    allow_nonfinite: bool = False,
    component: str | Sequence[str] | None = None,
) -> Stack:
    """Every form in which adapters and strengths may be given. `strength` multiplies all the others.

    Raises BadAdapter for a strength that is no finite number and an unknown convention, and as `chosen`.
    """
    if convention not in get_args(Convention):
        raise BadAdapter(f"there is no convention {convention!r}, only {', '.join(get_args(Convention))}")
    parts = []
    for pair in chosen(adapters):
        blocks = tuple(given for given in (pair[1], strength) if isinstance(given, Mapping))
        value = 1.0
        for given in (pair[1], strength):
            value *= 1.0 if isinstance(given, Mapping) else _number(given, pair[0].source)
        for factor in (value, *(f for each in blocks for f in each.values())):
            if not isfinite(_number(factor, pair[0].source)):
                raise BadAdapter(f"{pair[0].source}: strength {factor} is not finite")
        parts.append(Part(pair[0].in_convention(convention), value, blocks))
    components = (component,) if isinstance(component, str) else tuple(component or ())
    return Stack(tuple(parts), sequential, allow_nonfinite, components)


def _number(strength: Any, source: str) -> float:
    try:
        return float(strength)
    except (TypeError, ValueError) as error:
        raise BadAdapter(f"{source}: strength {strength!r} is no number") from error
