"""splice: `W` becomes `round(W + Σ change_i(W, strength_i))` — the canonical form, weight space.

Needs no knowledge of layer kinds: after the node that gives W, the family's own formula is traced and inlined,
and all of W's users are pointed at the result. Factors become parameters `lyc_fx.<set>.<weight>.<factor>`;
each set's strength is one 0-dim float64 buffer `lyc_fx.<set>.strength`, which a program may change later.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from lyc_fx.adapters import AdapterSet
from lyc_fx.binding import Bound, Weight, bind
from lyc_fx.errors import InvalidGraph
from lyc_fx.families import Adapter, merged
from lyc_fx.layers import COMPUTED, stored_transposed
from lyc_fx.pipeline import done
from lyc_fx.program import BANK, facts, fake_mode, owner, remember, weights
from lyc_fx.rewrite import Emit


@final
@dataclass(frozen=True)
class Splice(PassBase):
    """Options: the adapter sets with their strengths; whether a key without a weight is an error."""

    stack: Sequence[tuple[AdapterSet, float]]
    strict: bool = True

    def call(self, gm: GraphModule) -> PassResult:
        if hasattr(gm, BANK):
            raise InvalidGraph("the program carries adapters already: splice them all at once, as a list of pairs")
        targets = _targets(gm)
        described = {name: _describe(node) for name, node in targets.items()}
        binding = bind(self.stack, _stored(gm) | described, strict=self.strict, aliases=facts(gm).aliases)
        traces: dict[Any, Graph] = {}
        strengths: dict[int, Node] = {}
        first = next(iter(gm.graph.nodes))
        fired, notes = 0, []
        for name, bound in binding.targets.items():
            active = [b for b in bound if b.strength != 0]
            if name not in targets:
                notes.append(f"{name} is not read by the captured graph: its adapters have no effect here")
            elif active and targets[name].users:
                for b in active:
                    if b.index not in strengths:
                        buffer = torch.tensor(b.strength, dtype=torch.float64, device=_device(gm, targets[name]))
                        strengths[b.index] = Emit(gm, at=first, like=first).tensor(f"{BANK}.{b.index}.strength", buffer)
                _splice(gm, name, targets[name], active, described[name].transposed, strengths, traces)
                fired += 1
        report = binding.report
        remember(gm, report=type(report)(report.applied, report.unused, tuple(notes)))
        return done(gm, "splice", fired)


def _targets(gm: GraphModule) -> dict[str, Node]:
    """The nodes that give a weight, by the weight's name; a computed one has the name of what it replaces."""
    found = {str(node.target): node for node in weights(gm)}
    for node in gm.graph.nodes:
        if node.op == "call_function" and node.target in COMPUTED:
            for user in node.users:
                path, _ = owner(user)
                found[f"{path}.weight" if path else "weight"] = node
    return found


def _stored(gm: GraphModule) -> dict[str, Weight]:
    """All parameters, also those that no node reads: they are known names, so that a key for them is no error."""
    known = facts(gm).aliases
    return {
        name: Weight(tuple(parameter.shape), parameter.dtype)
        for name, parameter in gm.named_parameters(remove_duplicate=False)
        if name not in known
    }


def _describe(node: Node) -> Weight:
    value: Tensor = node.meta["val"]
    return Weight(tuple(map(int, value.shape)), value.dtype, stored_transposed(node))


def _device(gm: GraphModule, node: Node) -> torch.device:
    value: Tensor = node.meta["val"]
    return value.device


def _splice(
    gm: GraphModule,
    name: str,
    weight: Node,
    bound: Sequence[Bound],
    transposed: bool,
    strengths: dict[int, Node],
    traces: dict[Any, Graph],
) -> None:
    users = list(weight.users)
    emit = Emit(gm, at=weight.next, like=users[0])
    device = _device(gm, weight)
    adapters = [b.adapter.to_device(device) for b in bound]
    key = (_describe(weight), weight.meta["val"].device, tuple(a.structure() for a in adapters))
    inputs = {"weight": weight}
    for position, (b, adapter) in enumerate(zip(bound, adapters, strict=True)):
        inputs[f"strength_{position}"] = strengths[b.index]
        for field, factor in adapter.factors().items():
            parameter = nn.Parameter(factor.detach(), requires_grad=factor.is_floating_point())
            inputs[f"{field}_{position}"] = emit.tensor(f"{BANK}.{b.index}.{name}.{field}", parameter)
    if key not in traces:
        traces[key] = _trace({n: node.meta["val"] for n, node in inputs.items()}, adapters, transposed, gm)
    result = emit.inline(traces[key], inputs)
    for user in users:
        user.replace_input_with(weight, result)


def _trace(inputs: dict[str, Tensor], adapters: Sequence[Adapter], transposed: bool, gm: GraphModule) -> Graph:
    """The formula that every road uses, as a graph with placeholders named like `inputs`."""
    names = list(inputs)

    def formula(*values: Tensor) -> Tensor:
        at = dict(zip(names, values, strict=True))
        stack = [
            (a.with_factors({f: at[f"{f}_{i}"] for f in a.factors()}), at[f"strength_{i}"])
            for i, a in enumerate(adapters)
        ]
        return merged(at["weight"], stack, transposed=transposed)

    with fake_mode(gm), torch.no_grad():
        graph = make_fx(formula, pre_dispatch=True)(*inputs.values()).graph
    graph.eliminate_dead_code()
    for name, placeholder in zip(names, list(graph.find_nodes(op="placeholder")), strict=True):
        placeholder.target = name
    return graph
