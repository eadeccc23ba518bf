"""A stack of adapter sets, each with a strength, and how they combine."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import isfinite
from pathlib import Path
from typing import Any, final, get_args

from lyc_fx.adapters.adapter_set import AdapterSet
from lyc_fx.binding.chosen import Adapters, Blocks, chosen
from lyc_fx.choices import Convention
from lyc_fx.errors import BadAdapter

__all__ = ["Adapters", "Blocks", "Part", "Stack", "stacked"]


@final
@dataclass(frozen=True)
class Part:
    """One adapter set of a stack."""

    adapters: AdapterSet
    strength: float
    blocks: tuple[Blocks, ...] = ()
    """Block strengths: factors by pattern over weight names, all of which are multiplied"""

    def factor(self, weight: str) -> float:
        """Return the product of the block strengths for a weight."""
        product = 1.0
        for blocks in self.blocks:
            product *= next((float(f) for pattern, f in blocks.items() if fnmatchcase(weight, pattern)), 1.0)
        return product


@final
@dataclass(frozen=True)
class Stack:
    """Adapter sets in the order given.

    If not `sequential`, every change is relative to the base weight, and the order has no effect. If `sequential`, each
    set is applied to the result of the one before.
    """

    parts: tuple[Part, ...]
    sequential: bool = False
    allow_nonfinite: bool = False
    """Whether base weights may hold NaN and infinity"""
    components: tuple[str, ...] = ()
    """The components to adapt, of those with the same parameter names; empty for the first"""

    def order(self) -> list[int]:
        """Return the positions in the order of summing: by digest, so that the result does not depend on the order."""
        positions = list(range(len(self.parts)))
        if self.sequential or len(positions) < 2:
            return positions
        parts = self.parts
        return sorted(positions, key=lambda i: (parts[i].adapters.digest, parts[i].strength, repr(parts[i].blocks)))

    def described(self) -> list[dict[str, Any]]:
        """Return names, digests and strengths of the adapters, in the order in which they are summed, JSON-ready."""
        return [
            {
                "file": Path(part.adapters.source).name,
                "sha256": part.adapters.digest,
                "strength": part.strength,
                **({"blocks": [dict(each) for each in part.blocks]} if part.blocks else {}),
            }
            for part in (self.parts[i] for i in self.order())
        ]

    def idle_patterns(self, weights: Iterable[str]) -> list[str]:
        """Return the block patterns that match none of the adapted weights, and so are probably misspelt."""
        names = list(weights)
        patterns = dict.fromkeys(p for part in self.parts for blocks in part.blocks for p in blocks)
        return [p for p in patterns if not any(fnmatchcase(name, p) for name in names)]


def stacked(
    adapters: Adapters,
    strength: float | Blocks = 1.0,
    convention: Convention = "interpolate",
    sequential: bool = False,
    *,
    allow_nonfinite: bool = False,
    component: str | Sequence[str] | None = None,
) -> Stack:
    """Make a stack from any form in which adapters and strengths may be given. `strength` multiplies all others.

    Raises BadAdapter for a strength that is not a finite number, and for an unknown convention; and as `chosen`.
    """
    if convention not in get_args(Convention):
        raise BadAdapter(f"there is no convention {convention!r}: use one of {', '.join(get_args(Convention))}")
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
        raise BadAdapter(f"{source}: strength {strength!r} is not a number") from error
