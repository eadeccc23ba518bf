"""The families' formula as nodes of a program: traced once for all weights that are alike, and inlined for each."""

from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from lyc_fx.binding import Binding, Bound
from lyc_fx.families import Adapter, Change, merged
from lyc_fx.families.rounding import cast
from lyc_fx.fitting import Weight
from lyc_fx.program import BANK, fake_mode
from lyc_fx.rewrite import Emit


@final
class Formulas:
    """Of one binding, for one program."""

    def __init__(self, gm: GraphModule, binding: Binding) -> None:
        self._gm, self._binding = gm, binding
        self._order = {node: position for position, node in enumerate(gm.graph.nodes)}
        self._first = next(iter(self._order))
        self._strengths: dict[int, Node] = {}
        self._traces: dict[Any, Graph] = {}

    def splice(self, name: str, described: Weight, nodes: Sequence[Node]) -> None:
        """Let all that reads these nodes, which give the weight of this name, read the merged weight instead.

        There are several where each call of a module under weight norm computes its weight anew: they share factors.
        """
        bound = self._binding.active(name)
        device = _device(nodes[0])
        adapters = [each.adapter.to_device(device) for each in bound]
        strengths = [self._strength(each, device) for each in bound]
        factors: dict[str, Node] = {}
        for node in nodes:
            reader = min(node.users, key=self._order.__getitem__)
            emit = Emit(
                self._gm, at=reader, like=reader, by="splice"
            )  # early, it would hold every merged weight at once
            inputs = {"weight": node}
            for position, (each, adapter) in enumerate(zip(bound, adapters, strict=True)):
                inputs[f"strength_{position}"] = strengths[position]
                for field, factor in adapter.factors().items():
                    place = f"{BANK}.{each.index}.{_path(name, each, bound)}.{field}"
                    if place not in factors:  # a copy: training the program must not change the adapter set
                        parameter = nn.Parameter(factor.detach().clone(), requires_grad=factor.is_floating_point())
                        factors[place] = emit.tensor(place, parameter)
                    inputs[f"{field}_{position}"] = factors[place]
            users = list(node.users)
            result = emit.inline(self._trace(described, bound, adapters, inputs), inputs)
            for user in users:
                user.replace_input_with(node, result)

    def _strength(self, bound: Bound, device: torch.device) -> Node:
        """The buffer of an adapter set's strength, at the top of the graph."""
        if bound.index not in self._strengths:
            emit = Emit(self._gm, at=self._first, like=self._first, by="splice")
            buffer = torch.tensor(bound.strength, dtype=torch.float64, device=device)
            self._strengths[bound.index] = emit.tensor(f"{BANK}.{bound.index}.strength", buffer)
        return self._strengths[bound.index]

    def _trace(
        self, described: Weight, bound: Sequence[Bound], adapters: Sequence[Adapter], inputs: dict[str, Node]
    ) -> Graph:
        """The formula as a graph with placeholders of these inputs' names."""
        structures = tuple((b.rows, b.factor, a.structure()) for b, a in zip(bound, adapters, strict=True))
        key = described, _device(inputs["weight"]), structures
        if key not in self._traces:

            def formula(at: dict[str, Tensor]) -> Tensor:
                stack = [
                    Change(
                        adapter.with_factors({f: at[f"{f}_{i}"] for f in adapter.factors()}),
                        _times(at[f"strength_{i}"], b.factor),
                        b.rows,
                    )
                    for i, (b, adapter) in enumerate(zip(bound, adapters, strict=True))
                ]
                return merged(
                    at["weight"],
                    stack,
                    transposed=described.transposed,
                    sequential=self._binding.sequential,
                    rounding=cast,
                )

            self._traces[key] = _traced(self._gm, formula, {n: node.meta["val"] for n, node in inputs.items()})
        return self._traces[key]


def _device(node: Node) -> torch.device:
    value: Tensor = node.meta["val"]
    return value.device


def _path(name: str, bound: Bound, others: Sequence[Bound]) -> str:
    """Where an adapter's factors lie: below the weight's name, and what tells it from others of its set."""
    same = [other for other in others if other.index == bound.index]
    rows = "" if bound.rows is None else f".rows_{bound.rows[0]}_{bound.rows[1]}"
    several = sum(other.rows == bound.rows for other in same) > 1
    return f"{name}{rows}.{bound.adapter.name}" if several else f"{name}{rows}"


def _times(strength: Tensor, factor: float) -> Tensor:
    return strength if factor == 1 else strength * factor


def _traced(gm: GraphModule, formula: Callable[[dict[str, Tensor]], Tensor], inputs: dict[str, Tensor]) -> Graph:
    """A formula of named tensors as a graph with placeholders of these names."""
    names = list(inputs)
    with fake_mode(gm), torch.no_grad():
        traced = make_fx(lambda *values: formula(dict(zip(names, values, strict=True))), pre_dispatch=True)
        graph = traced(*inputs.values()).graph
    graph.eliminate_dead_code()
    for name, placeholder in zip(names, list(graph.find_nodes(op="placeholder")), strict=True):
        placeholder.target = name
    return graph
