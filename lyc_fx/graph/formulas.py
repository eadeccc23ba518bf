"""Formulas of tensors as nodes of a program: traced once for all places that are alike, and inlined for each."""

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from lyc_fx.adapters.adapter import Adapter
from lyc_fx.graph.merged_weight import MergedWeight, Term
from lyc_fx.graph.program import fake_mode
from lyc_fx.graph.rewrite import Emit
from lyc_fx.merging.merged import Change, merged
from lyc_fx.numerics.rounding import cast

Formula = Callable[[Mapping[str, Tensor]], Tensor]
"""Of tensors by name"""


@final
class Formulas:
    """Of one program."""

    def __init__(self, gm: GraphModule) -> None:
        self._gm = gm
        self._traces: dict[Hashable, Graph] = {}

    def inline(self, emit: Emit, formula: Formula, inputs: Mapping[str, Node], key: Hashable) -> Node:
        """Insert the formula's operators on these nodes.

        Formulas with equal keys share one trace; they may differ only in the sizes of activations.
        """
        if key not in self._traces:
            self._traces[key] = traced(self._gm, formula, {n: node.meta["val"] for n, node in inputs.items()})
        return emit.inline(self._traces[key], inputs)

    def merge(self, emit: Emit, weight: Node, made: MergedWeight, nodes: Mapping[str, Node]) -> Node:
        """The merged weight, from the node of its base and those of the terms' tensors by name."""
        inputs = {"weight": weight} | inputs_of(made.terms, nodes)

        def formula(at: Mapping[str, Tensor]) -> Tensor:
            stack = [Change(adapter_of(term, at), strength_of(term, at), term.rows) for term in made.terms]
            transposed, sequential = made.transposed, made.sequential
            return merged(at["weight"], stack, transposed=transposed, sequential=sequential, rounding=cast)

        value = weight.meta["val"]
        alike = tuple(term.alike for term in made.terms)
        key = tuple(value.shape), value.dtype, value.device, made.transposed, made.sequential, alike
        return self.inline(emit, formula, inputs, key)


def inputs_of(terms: tuple[Term, ...], nodes: Mapping[str, Node]) -> dict[str, Node]:
    """What a formula of these terms reads, by the names that `adapter_of` and `strength_of` know."""
    found = {}
    for term in terms:
        found[f"strength_{term.position}"] = nodes[term.strength]
        found |= {f"{field}_{term.position}": nodes[place] for field, place in {**term.places, **term.numbers}.items()}
    return found


def adapter_of(term: Term, at: Mapping[str, Tensor]) -> Adapter:
    """A term's adapter with the factors that a formula reads."""
    adapter = term.adapter.with_factors({field: at[f"{field}_{term.position}"] for field in term.places})
    if "alpha" in term.numbers:
        alpha: Any = at[f"alpha_{term.position}"]  # traced: see `Adapter.scale`
        return replace(adapter, alpha=alpha)
    return adapter


def strength_of(term: Term, at: Mapping[str, Tensor]) -> Tensor:
    """A term's strength."""
    strength = at[f"strength_{term.position}"]
    share = at[f"share_{term.position}"] if "share" in term.numbers else term.share
    return strength if isinstance(share, float) and share == 1 else strength * share


def traced(gm: GraphModule, formula: Formula, inputs: Mapping[str, Tensor]) -> Graph:
    """A formula as a graph with placeholders of its inputs' names, which have fake values. Raises what it raises."""
    names = list(inputs)
    with fake_mode(gm), torch.no_grad():
        found = make_fx(lambda *values: formula(dict(zip(names, values, strict=True))), pre_dispatch=True)
        graph = found(*_apart(inputs.values())).graph
    graph.eliminate_dead_code()
    for name, placeholder in zip(names, list(graph.find_nodes(op="placeholder")), strict=True):
        placeholder.target = name
    return graph


def _apart(values: Iterable[Tensor]) -> list[Tensor]:
    """The values, none of which is the same object as another: a trace could not tell the two inputs apart."""
    found: dict[int, Tensor] = {}
    for value in values:
        if id(value) in found:
            value = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
        found[id(value)] = value
    return list(found.values())
