"""What splice notes on the node of a merged weight: of which base, adapters and strengths it is made.

Lowering reads this, and never guesses it from operators.
"""

import hashlib
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import final

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from lyc_fx.adapters.adapter import Adapter
from lyc_fx.graph.constants import cone
from lyc_fx.graph.rewrite import EMITTED, RESHAPES

Rows = tuple[int, int]
aten = torch.ops.aten
_TIMES = (aten.mul.Tensor, aten.mul.Scalar)
_WIDE = (torch.float32, torch.float64)


@final
@dataclass(frozen=True, eq=False)
class Term:
    """One adapter of a merged weight."""

    position: int
    """Among those of the weight"""
    adapter: Adapter
    """Its factors are without values"""
    places: Mapping[str, str]
    """The name under which the program holds each factor, by its field"""
    strength: str
    """The name of the buffer of its set's strength"""
    share: float = 1.0
    """Block weight: what the strength is multiplied by for this weight"""
    rows: Rows | None = None
    """Of the weight in the adapters' layout, which it changes; None: all"""
    numbers: Mapping[str, str] = field(default_factory=dict)
    """Where adapters can be exchanged: the names of the buffers that hold `alpha` and `share`"""

    @property
    def names(self) -> Iterator[str]:
        """Of all tensors that it is made of."""
        yield self.strength
        yield from self.places.values()
        yield from self.numbers.values()

    @property
    def alike(self) -> Hashable:
        """What is the same for terms with the same formula."""
        return self.position, self.rows, self.share, tuple(self.numbers), self.adapter.structure()


def without_values(adapter: Adapter) -> Adapter:
    """An adapter with the shapes and dtypes of its factors alone."""
    empty = {name: torch.empty_like(factor, device="meta") for name, factor in adapter.factors().items()}
    return adapter.with_factors(empty)


@final
@dataclass(frozen=True)
class MergedWeight:
    """The terms of one merged weight, in the order in which they are applied."""

    terms: tuple[Term, ...]
    transposed: bool
    """Whether the weight is stored `(in, out)`, and the adapters are for `(out, in)`"""
    sequential: bool
    """Whether each adapter is applied to what the ones before it left; else all relative to the base"""
    formula: str = ""
    """`formula_of` the node when it was made"""


def formula_of(merged: Node) -> str:
    """A digest of a merged weight's formula, which tells whether a pass has changed it since.

    No-ops that canonicalize may remove do not count, nor does narrow's choice between float32 and float64.
    """
    digests: dict[Node, str] = {}
    for node in formula_nodes(merged):
        inputs = [digests.get(source, "base") for source in node.all_input_nodes]
        if _is_no_op(node):
            digests[node] = inputs[0]
        elif node.target is aten.t.default and node.args[0].target is aten.t.default:  # type: ignore[union-attr]
            digests[node] = digests.get(node.args[0].all_input_nodes[0], "base")  # type: ignore[union-attr]
        else:
            others = map_arg((node.args, node.kwargs), lambda source: digests.get(source, "base"))
            text = f"{node.op} {node.target} {others}"
            digests[node] = hashlib.sha256(text.encode()).hexdigest()
    return digests[merged]


def base_of(merged: Node) -> Node | None:
    """The node that gives the weight which a merged one is made of: all else in its formula splice has inserted.

    None where that is no longer one node.
    """
    inputs = {source for node in formula_nodes(merged) for source in node.all_input_nodes}
    bases = [source for source in inputs if not source.meta.get(EMITTED)]
    return bases[0] if len(bases) == 1 else None


def tensors_of(merged: Node, made: MergedWeight) -> dict[str, Node]:
    """The nodes that give the strengths and factors of a merged weight, by name."""
    wanted = {name for term in made.terms for name in term.names}
    return {str(node.target): node for node in cone(merged) if node.op == "get_attr" and str(node.target) in wanted}


def formula_nodes(merged: Node) -> list[Node]:
    """All nodes that splice has inserted for it, each after its inputs."""
    return cone(merged, within=lambda node: bool(node.meta.get(EMITTED)))


def _is_no_op(node: Node) -> bool:
    if node.target is aten.to.dtype:
        dtype, source = node.args[1], node.args[0]
        return dtype in _WIDE or source.meta["val"].dtype == dtype  # type: ignore[union-attr]  # a cast of a tensor
    return node.target in RESHAPES or (node.target in _TIMES and 1 in node.args[1:])
