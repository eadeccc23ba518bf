"""splice: `W` becomes `round(W + Σ change_i(W, strength_i))` — the canonical form, weight space.

Needs no knowledge of layer kinds: before the first node that reads W, the family's own formula is traced and inlined,
and all of W's users are pointed at the result. Factors become parameters `lyc_fx.<set>.<weight>.<factor>`;
each set's strength is one 0-dim float64 buffer `lyc_fx.<set>.strength`, which a program may change later.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from lyc_fx.binding import Binding, Bound, bind
from lyc_fx.errors import BadAdapter, InvalidGraph
from lyc_fx.families import Change, merged
from lyc_fx.families.rounding import cast
from lyc_fx.fitting import Weight
from lyc_fx.layers import COMPUTED, read_by_linear, read_by_transposed_conv, stored_transposed
from lyc_fx.naming import projects
from lyc_fx.pipeline import done
from lyc_fx.program import BANK, aliases, facts, fake_mode, get_tensor, owner, remember, weights
from lyc_fx.rewrite import Emit
from lyc_fx.stack import Stack
from lyc_fx.twins import Twins, twins

_PARTS = ("weight_v", "parametrizations.weight.original1")
"""What a weight under weight norm is computed from: its direction"""
_NAMED = 5
"""Weights that an error names"""


@final
@dataclass(frozen=True)
class Splice(PassBase):
    """Options: the adapter sets, their strengths and how they combine; whether a key without a weight is an error."""

    stack: Stack
    strict: bool = True

    def call(self, gm: GraphModule) -> PassResult:
        if hasattr(gm, BANK):
            raise InvalidGraph("the program carries adapters already: splice them all at once, as a list of pairs")
        fake_mode(gm)
        targets = _targets(gm)
        described = {name: _describe(name, nodes[0], targets) for name, nodes in targets.items()}
        fused = twins({name: get_tensor(gm, name) for name in _stored(gm)})
        binding = bind(self.stack, _stored(gm) | described, strict=self.strict, aliases=_aliases(gm), same=fused)
        _refuse_inseparable(gm, binding)
        _refuse_unread(binding, targets, fused, strict=self.strict)
        traces: dict[Any, Graph] = {}
        strengths: dict[int, Node] = {}
        order = {node: position for position, node in enumerate(gm.graph.nodes)}
        first = next(iter(order))
        fired, notes = 0, []
        for name in binding.targets:
            active, nodes = binding.active(name), [node for node in targets.get(name, ()) if node.users]
            if not nodes:
                notes.append(f"{name} is not read by the captured graph: its adapters have no effect here")
            elif active:
                target = nodes[0]
                for b in active:
                    if b.index not in strengths:
                        buffer = torch.tensor(b.strength, dtype=torch.float64, device=_device(target))
                        emit = Emit(gm, at=first, like=first, by="splice")
                        strengths[b.index] = emit.tensor(f"{BANK}.{b.index}.strength", buffer)
                notes += _doubts(gm, target, name, binding, described[name])
                factors: dict[str, Node] = {}
                for node in nodes:  # each call of a module under weight norm computes its weight anew
                    reader = min(node.users, key=order.__getitem__)
                    _splice(
                        gm,
                        name,
                        described[name],
                        node,
                        reader,
                        active,
                        strengths,
                        factors,
                        traces,
                        sequential=binding.sequential,
                    )
                fired += 1
        remember(gm, report=replace(binding.report, notes=tuple(notes)))
        return done(gm, "splice", fired)


def _refuse_unread(binding: Binding, targets: Mapping[str, Sequence[Node]], fused: Twins, *, strict: bool) -> None:
    """Raise BadAdapter for adapters of weights that the program does not read."""
    read = {name for name, nodes in targets.items() if any(node.users for node in nodes)}
    lost = [n for n in binding.targets if n not in read and not any(p.parameter in read for p in fused.get(n, ()))]
    if lost and strict:
        named = ", ".join(lost[:_NAMED]) + (" …" if len(lost) > _NAMED else "")
        raise BadAdapter(
            f"the captured program does not read {len(lost)} of the {len(binding.targets)} adapted weights, so that "
            f"their adapters would have no effect: {named}. Capture a call that reads them, or leave them out: "
            "strict=False, or adapters.exclude"
        )


def _refuse_inseparable(gm: GraphModule, binding: Binding) -> None:
    """Raise BadAdapter for one of several names that one tensor has in one module: a graph does not tell their uses."""
    known = facts(gm).aliases
    for group in aliases(gm).values():
        for name in filter(binding.active, group):
            owner_of = name.rpartition(".")[0]
            others = [n for n in group if n != name and n not in known and n.rpartition(".")[0] == owner_of]
            if others:
                raise BadAdapter(
                    f"{name} and {', '.join(others)} are one tensor in one module, and a captured graph does not say "
                    f"which of them an operator reads: make them two before capture (model.{name} = "
                    f"nn.Parameter(model.{name}.clone())), or merge into the live model"
                )


def _doubts(gm: GraphModule, target: Node, name: str, binding: Binding, described: Weight) -> list[str]:
    """What speaks against a weight as the base of its adapters, where it has values."""
    if target.op != "get_attr" or (weight := get_tensor(gm, str(target.target)).detach()).is_meta:
        return []
    return binding.doubts(name, weight, transposed=described.transposed)


def _targets(gm: GraphModule) -> dict[str, list[Node]]:
    """The nodes that give a weight, by the weight's name; computed ones have the name of what they replace."""
    found = {str(node.target): [node] for node in weights(gm)}
    same = facts(gm).aliases
    for node in gm.graph.nodes:
        if node.op == "call_function" and node.target in COMPUTED:
            paths = dict.fromkeys(_registered(owner(user)[0], same) for user in node.users)
            for path in paths:
                found.setdefault(f"{path}.weight" if path else "weight", []).append(node)
    return found


def _aliases(gm: GraphModule) -> dict[str, str]:
    """Further names of the program's weights, also of those that it computes."""
    same = facts(gm).aliases
    computed = {
        f"{alias.removesuffix(part)}weight": f"{first.removesuffix(part)}weight"
        for alias, first in same.items()
        for part in _PARTS
        if alias.endswith(part)
    }
    return {**same, **computed}


def _registered(path: str, same: Mapping[str, str]) -> str:
    """The first path of a module that is registered under several."""
    for alias, first in same.items():
        inside = alias.removeprefix(f"{path}.")
        if inside != alias:
            return first.removesuffix(f".{inside}")
    return path


def _stored(gm: GraphModule) -> dict[str, Weight]:
    """All parameters, also those that no node reads: they are known names, so that a key for them is no error."""
    known = facts(gm).aliases
    return {
        name: Weight(tuple(parameter.shape), parameter.dtype)
        for name, parameter in gm.named_parameters(remove_duplicate=False)
        if name not in known
    }


def _describe(name: str, node: Node, names: Collection[str]) -> Weight:
    value: Tensor = node.meta["val"]
    turned = stored_transposed(node) or (value.dim() == 2 and projects(name, names) and not read_by_linear(node))
    return Weight(tuple(map(int, value.shape)), value.dtype, turned, read_by_transposed_conv(node))


def _device(node: Node) -> torch.device:
    value: Tensor = node.meta["val"]
    return value.device


def _splice(
    gm: GraphModule,
    name: str,
    described: Weight,
    weight: Node,
    reader: Node,
    bound: Sequence[Bound],
    strengths: dict[int, Node],
    factors: dict[str, Node],
    traces: dict[Any, Graph],
    *,
    sequential: bool,
) -> None:
    users = list(weight.users)
    emit = Emit(gm, at=reader, like=reader, by="splice")  # early, it would hold every merged weight at once
    adapters = [b.adapter.to_device(_device(weight)) for b in bound]
    blocks = tuple(b.factor for b in bound)
    key = (
        described,
        _device(weight),
        blocks,
        tuple((b.rows, a.structure()) for b, a in zip(bound, adapters, strict=True)),
    )
    inputs = {"weight": weight}
    for position, (b, adapter) in enumerate(zip(bound, adapters, strict=True)):
        inputs[f"strength_{position}"] = strengths[b.index]
        for field, factor in adapter.factors().items():
            place = f"{BANK}.{b.index}.{_path(name, b, bound)}.{field}"
            if place not in factors:  # a copy: training the program must not change the adapter set
                parameter = nn.Parameter(factor.detach().clone(), requires_grad=factor.is_floating_point())
                factors[place] = emit.tensor(place, parameter)
            inputs[f"{field}_{position}"] = factors[place]
    if key not in traces:

        def formula(at: dict[str, Tensor]) -> Tensor:
            stack = [
                Change(
                    adapter.with_factors({f: at[f"{f}_{i}"] for f in adapter.factors()}),
                    _times(at[f"strength_{i}"], blocks[i]),
                    b.rows,
                )
                for i, (b, adapter) in enumerate(zip(bound, adapters, strict=True))
            ]
            return merged(at["weight"], stack, transposed=described.transposed, sequential=sequential, rounding=cast)

        traces[key] = _trace(gm, formula, {n: node.meta["val"] for n, node in inputs.items()})
    result = emit.inline(traces[key], inputs)
    for user in users:
        user.replace_input_with(weight, result)


def _path(name: str, bound: Bound, others: Sequence[Bound]) -> str:
    """Where an adapter's factors lie: below the weight's name, and what tells it from others of its set."""
    same = [other for other in others if other.index == bound.index]
    rows = "" if bound.rows is None else f".rows_{bound.rows[0]}_{bound.rows[1]}"
    several = sum(other.rows == bound.rows for other in same) > 1
    return f"{name}{rows}.{bound.adapter.name}" if several else f"{name}{rows}"


def _times(strength: Tensor, factor: float) -> Tensor:
    return strength if factor == 1 else strength * factor


def _trace(gm: GraphModule, formula: Callable[[dict[str, Tensor]], Tensor], inputs: dict[str, Tensor]) -> Graph:
    """A formula of named tensors as a graph with placeholders of these names."""
    names = list(inputs)
    with fake_mode(gm), torch.no_grad():
        traced = make_fx(lambda *values: formula(dict(zip(names, values, strict=True))), pre_dispatch=True)
        graph = traced(*inputs.values()).graph
    graph.eliminate_dead_code()
    for name, placeholder in zip(names, list(graph.find_nodes(op="placeholder")), strict=True):
        placeholder.target = name
    return graph
