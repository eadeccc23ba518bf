"""The record of what passes did: `lyc_fx.history(program)` returns one `Step` for each pass."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final


@final
@dataclass(frozen=True)
class Missed:
    """Why the rules that were tried at a node did not fire: the reason of the one that matched furthest."""

    rule: str
    """The name of that rule; empty if there is no rule for such a node"""
    node: str
    reason: str

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.node, self.rule, self.reason)))


@final
@dataclass(frozen=True)
class Step:
    """What one pass did."""

    name: str
    fired: int
    misses: tuple[Missed, ...] = ()
    """Why rules that were tried did not match"""
    rules: Mapping[str, int] = field(default_factory=dict)
    """How often each rule fired, if the pass has several"""

    def __str__(self) -> str:
        lines = [f"{self.name}: fired {self.fired} times", *(f"  {name}: {n}" for name, n in self.rules.items())]
        return "\n".join([*lines, *(f"  not: {miss}" for miss in self.misses)])
