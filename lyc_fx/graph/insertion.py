"""Adapters put into a program: factors, strengths, and merged weights in the place of weights."""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import final

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from lyc_fx.adapters.padding import Room
from lyc_fx.binding.bound import Binding, Bound
from lyc_fx.binding.fitting import Weight
from lyc_fx.graph.formulas import Formulas
from lyc_fx.graph.merged_weight import MergedWeight, Term, formula_of, without_values
from lyc_fx.graph.program import BANK, same_memory
from lyc_fx.graph.rewrite import MERGED, Emit


@final
class Insertion:
    """Of one binding, into one program; with `room`, such that other adapters can take the place of these."""

    def __init__(self, gm: GraphModule, binding: Binding, room: Room | None = None) -> None:
        self._gm, self._binding, self._room, self._formulas = gm, binding, room, Formulas(gm)
        self._order = {node: position for position, node in enumerate(gm.graph.nodes)}
        self._first = next(iter(self._order))
        self._strengths: dict[str, Node] = {}
        self._copies: dict[tuple[Hashable, torch.device], nn.Parameter] = {}

    def insert(self, name: str, described: Weight, nodes: Sequence[Node]) -> MergedWeight:
        """Let all that reads these nodes, which give the weight of this name, read the merged weight instead.

        There are several where each call of a module under weight norm computes its weight anew: they share factors.
        """
        bound = self.bound(name)
        device = nodes[0].meta["val"].device
        terms = tuple(self._term(i, name, each, bound, device) for i, each in enumerate(bound))
        made = MergedWeight(terms, described.transposed, self._binding.sequential)
        factors: dict[str, Tensor] = {}
        for each, term in zip(bound, terms, strict=True):
            for number, value in self._numbers(each).items():
                factors[term.numbers[number]] = torch.tensor(value, dtype=torch.float64, device=device)
            for field, factor in each.adapter.factors().items():
                factors[term.places[field]] = self._own(factor, device)
        found: dict[str, Node] = {}
        for node in nodes:
            reader = min(node.users, key=self._order.__getitem__)
            # Early, it would hold every merged weight at once.
            emit = Emit(self._gm, at=reader, like=reader, by="splice")
            found |= {place: emit.tensor(place, factor) for place, factor in factors.items() if place not in found}
            users = list(node.users)
            result = self._formulas.merge(emit, node, made, self._strengths | found)
            result.meta[MERGED] = replace(made, formula=formula_of(result))
            for user in users:
                user.replace_input_with(node, result)
        return made

    def _own(self, factor: Tensor, device: torch.device) -> nn.Parameter:
        """A copy, since training the program must not change the adapter set.

        One for all weights with this tensor (VeRA's matrices), unless each may get another one in its place.
        """
        key = same_memory(factor) if self._room is None else None
        known = self._copies.get((key, device)) if key is not None else None
        if known is None:
            copy = factor.detach().to(device, copy=True, memory_format=torch.preserve_format)
            known = nn.Parameter(copy, requires_grad=copy.is_floating_point())
            self._copies[key, device] = known
        return known

    def bound(self, name: str) -> list[Bound]:
        """The adapters to insert for a weight: what has no effect now may have one later, where there is room."""
        if self._room is None:
            return self._binding.active(name)
        return [replace(b, adapter=self._room.padded(b.adapter)) for b in self._binding.targets.get(name, ())]

    def _term(self, i: int, name: str, bound: Bound, others: Sequence[Bound], device: torch.device) -> Term:
        path = f"{BANK}.{bound.index}.{_path(name, bound, others)}"
        places = {field: f"{path}.{field}" for field in bound.adapter.factors()}
        numbers = {number: f"{path}.{number}" for number in self._numbers(bound)}
        adapter = without_values(bound.adapter) if self._room is None else self._room.form(bound.adapter)
        share = 1.0 if numbers else bound.factor
        return Term(i, adapter, places, self._strength(bound, device), share, bound.rows, numbers)

    def _numbers(self, bound: Bound) -> dict[str, float]:
        return {} if self._room is None else self._room.numbers(bound.adapter, bound.factor)

    def _strength(self, bound: Bound, device: torch.device) -> str:
        """The buffer of an adapter set's strength, read at the top of the graph."""
        name = f"{BANK}.{bound.index}.strength"
        if name not in self._strengths:
            emit = Emit(self._gm, at=self._first, like=self._first, by="splice")
            buffer = torch.tensor(bound.strength, dtype=torch.float64, device=device)
            self._strengths[name] = emit.tensor(name, buffer)
        return name


def _path(name: str, bound: Bound, others: Sequence[Bound]) -> str:
    """Where an adapter's factors lie: below the weight's name, and what tells it from others of its set."""
    same = [other for other in others if other.index == bound.index]
    rows = "" if bound.rows is None else f".rows_{bound.rows[0]}_{bound.rows[1]}"
    several = sum(other.rows == bound.rows for other in same) > 1
    return f"{name}{rows}.{bound.adapter.name}" if several else f"{name}{rows}"
