"""A plan: the layers of an adapted program whose adapters run as chains on activations.

For now the default is simple: every adapted layer. (An adapter without an exact chain stays in weight space.)
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Self, final

from torch.fx import GraphModule

from lyc_fx.graph.layers import sites
from lyc_fx.graph.readers import reads_bank


@final
@dataclass(frozen=True)
class Plan:
    """The choice for each adapted layer, by the name of its node. It can be printed, and edited with `only`."""

    chains: Collection[str]
    """Layers that get a chain, if a rule has one for them"""
    kept: Collection[str] = ()
    """Layers that stay in weight space"""

    @classmethod
    def default(cls, gm: GraphModule) -> Self:
        """Make a plan with a chain for every adapted layer."""
        return cls(tuple(s.node.name for s in sites(gm.graph) if reads_bank(s.weight)))

    def only(self, *names: str) -> Self:
        """Return the same plan with chains for these layers only."""
        everything = (*self.chains, *self.kept)
        return type(self)(names, tuple(n for n in everything if n not in names))

    def __str__(self) -> str:
        return "\n".join([*(f"{n}: chain" for n in self.chains), *(f"{n}: weight space" for n in self.kept)])
