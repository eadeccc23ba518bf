"""Chains put into a program, in the place of layers that read a merged weight."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from lyc_fx.algebra.tensors import channels_last
from lyc_fx.graph.chains.choice import Choice, with_terms
from lyc_fx.graph.chains.formula import Chain
from lyc_fx.graph.chains.reading import Reading
from lyc_fx.graph.chains.worth import refuse_dear
from lyc_fx.graph.costs.arithmetic import flops
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
@dataclass(frozen=True)
class Found:
    """What becomes a chain at layers that are alike."""

    choice: Choice
    names: tuple[str, ...]
    """Of each adapter, in the field's words"""
    graph: Graph | None
    """The chain; None where no adapter has one"""

    @property
    def remains(self) -> bool:
        """Whether some adapters stay with the weight."""
        return any(reason is not None for reason in self.choice.reasons)


@final
class Lowering:
    """Of one program. What is alike in all but the sizes of activations is tried and traced once."""

    def __init__(self, gm: GraphModule, *, always: bool = False) -> None:
        """`always`: also where the arithmetic of a chain speaks against it."""
        self._gm, self._formulas, self._always = gm, Formulas(gm), always
        self._found: dict[Hashable, Found] = {}
        self._remainders: dict[tuple[Node, Choice], Node] = {}

    def lower(self, reading: Reading) -> Lowered:
        """Let the layer compute its adapters on activations, as far as there are chains."""
        site, made, found = reading.site, reading.made, self.chain_of(reading)
        choice, inputs, tensors = found.choice, reading.inputs, reading.tensors
        rules = [f"{name} on {site.node.target}" for name in found.names]
        chained = tuple(rules[position] for position in choice.chained)
        kept = tuple((rule, why) for rule, why in zip(rules, choice.reasons, strict=True) if why is not None)
        if found.graph is not None:
            if kept:
                inputs["weight"] = self._remainder(reading, choice, tensors)
            emit = Emit(self._gm, at=site.node, like=site.node, by=" and ".join(dict.fromkeys(chained)))
            result = emit.inline(found.graph, inputs | inputs_of(made.terms, tensors))
            site.node.replace_all_uses_with(result, propagate_meta=False)
            erase_unused(self._gm, [site.node])
            _release(self._gm, reading)
        return Lowered(chained, kept)

    def chain_of(self, reading: Reading) -> Found:
        """The chain of a layer, traced once for all layers that are alike."""
        made, inputs = reading.made, reading.inputs
        chain = Chain(reading.call, made, reading.turned, reading.casts, rest=False)
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
        if key not in self._found:
            self._found[key] = self._find(reading.site.node, chain, inputs, reading.tensors)
        return self._found[key]

    def _find(self, node: Node, chain: Chain, inputs: Mapping[str, Node], tensors: Mapping[str, Node]) -> Found:
        traces: dict[tuple[int, ...], Graph] = {}

        def values(of: Chain) -> dict[str, Tensor]:
            nodes = {**inputs, **inputs_of(of.made.terms, tensors)} | ({"weight": inputs["base"]} if of.rest else {})
            return {name: node.meta["val"] for name, node in nodes.items()}

        def trace(attempt: Chain) -> Graph:
            key = tuple(term.position for term in attempt.made.terms)
            if key not in traces:
                traces[key] = traced(self._gm, attempt, values(attempt))
            return traces[key]

        with fake_mode(self._gm), torch.no_grad():
            actions = chain.actions(values(chain))
        widens = {term.position for term, action in zip(chain.made.terms, actions, strict=True) if action.widens}

        def attempt(of: Chain) -> None:
            trace(of)
            for term in of.made.terms:
                if term.position in widens and not self._always:
                    refuse_dear(trace(with_terms(chain, [chain.made.terms.index(term)])), flops([node]))

        choice = Choice.of(chain, attempt)
        names = tuple(action.name for action in actions)
        return Found(choice, names, trace(choice.applied(chain)) if choice.chained else None)

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
