"""Chains put into a program, in the place of layers that read a merged weight."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from lyc_fx.algebra.tensors import channels_last
from lyc_fx.graph.chains.choice import Choice
from lyc_fx.graph.chains.formula import Chain
from lyc_fx.graph.chains.reading import Reading
from lyc_fx.graph.formulas import Formulas, inputs_of, traced
from lyc_fx.graph.merged_weight import formula_of
from lyc_fx.graph.program import fake_mode
from lyc_fx.graph.readers import METADATA
from lyc_fx.graph.rewrite import MERGED, Emit, erase_unused


@final
@dataclass(frozen=True)
class Lowered:
    """What was done at one layer."""

    rules: tuple[str, ...]
    """A name for each adapter that became a chain"""
    kept: tuple[tuple[str, str], ...]
    """A name and the reason for each that stays with the weight"""


@final
class Lowering:
    """Of one program. What is alike in all but the sizes of activations is tried and traced once."""

    def __init__(self, gm: GraphModule) -> None:
        self._gm, self._formulas = gm, Formulas(gm)
        self._choices: dict[Hashable, tuple[Choice, tuple[str, ...], Graph | None]] = {}
        self._remainders: dict[tuple[Node, Choice], Node] = {}

    def lower(self, reading: Reading) -> Lowered:
        """Let the layer compute its adapters on activations, as far as there are chains."""
        site, made = reading.site, reading.made
        chain = Chain(reading.call, made, reading.turned, reading.casts, rest=False)
        inputs, tensors = reading.inputs, reading.tensors
        x = inputs["x"].meta["val"]
        alike = tuple(term.alike for term in made.terms)
        whole = (
            "bias" in inputs,
            reading.base.meta["val"].dtype,
            made.transposed,
            made.sequential,
            reading.turned,
            reading.casts,
        )
        key = chain.call.key, x.dim(), channels_last(x), x.dtype, x.device, whole, alike
        if key not in self._choices:
            self._choices[key] = self._chosen(chain, inputs, tensors)
        choice, names, graph = self._choices[key]
        rules = [f"{name} on {site.node.target}" for name in names]
        chained = tuple(rules[position] for position in choice.chained)
        kept = tuple((rule, why) for rule, why in zip(rules, choice.reasons, strict=True) if why is not None)
        if graph is not None:
            if kept:
                inputs["weight"] = self._remainder(reading, choice, tensors)
            emit = Emit(self._gm, at=site.node, like=site.node, by=" and ".join(dict.fromkeys(chained)))
            result = emit.inline(graph, inputs | inputs_of(made.terms, tensors))
            site.node.replace_all_uses_with(result, propagate_meta=False)
            erase_unused(self._gm, [site.node])
            _release(self._gm, reading)
        return Lowered(chained, kept)

    def _chosen(
        self, chain: Chain, inputs: Mapping[str, Node], tensors: Mapping[str, Node]
    ) -> tuple[Choice, tuple[str, ...], Graph | None]:
        """What becomes a chain, a name for each term, and the chain."""
        traces: dict[tuple[int, ...], Graph] = {}

        def values(of: Chain) -> dict[str, Tensor]:
            nodes = {**inputs, **inputs_of(of.made.terms, tensors)} | ({"weight": inputs["base"]} if of.rest else {})
            return {name: node.meta["val"] for name, node in nodes.items()}

        def trace(attempt: Chain) -> Graph:
            key = tuple(term.position for term in attempt.made.terms)
            if key not in traces:
                traces[key] = traced(self._gm, attempt, values(attempt))
            return traces[key]

        choice = Choice.of(chain, trace)
        with fake_mode(self._gm), torch.no_grad():
            names = tuple(action.name for action in chain.actions(values(chain)))
        return choice, names, trace(choice.applied(chain)) if choice.chained else None

    def _remainder(self, reading: Reading, choice: Choice, tensors: Mapping[str, Node]) -> Node:
        """The weight merged with the terms that stay, once for all layers that read it."""
        key = reading.merged, choice
        if key not in self._remainders:
            kept = tuple(t for t, why in zip(reading.made.terms, choice.reasons, strict=True) if why is not None)
            made = replace(reading.made, terms=kept)
            emit = Emit(self._gm, at=reading.merged, like=reading.merged, by="splice")
            node = self._formulas.merge(emit, reading.base, made, tensors)
            node.meta[MERGED] = replace(made, formula=formula_of(node))
            self._remainders[key] = node
        return self._remainders[key]


def _release(gm: GraphModule, reading: Reading) -> None:
    """Let what asks for the dtype of a merged weight alone ask the base, which has the same."""
    if not reading.merged._erased:
        for user in [user for user in reading.merged.users if user.target is METADATA]:
            user.replace_input_with(reading.merged, reading.base)
        erase_unused(gm, [reading.merged])
