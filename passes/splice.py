"""splice: `W` becomes `round(W + Σ change_i(W, strength_i))` — the canonical form, weight space.

Needs no knowledge of layer kinds: before the first node that reads W, the family's own formula is traced and inlined,
and all of W's users are pointed at the result. Factors become parameters `lyc_fx.<set>.<weight>.<factor>`;
each set's strength is one 0-dim float64 buffer `lyc_fx.<set>.strength`, which a program may change later.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from lyc_fx.adapters.padding import Room
from lyc_fx.binding.bound import Binding
from lyc_fx.binding.fitting import Weight
from lyc_fx.binding.stack import Stack
from lyc_fx.binding.twins import Twins
from lyc_fx.errors import BadAdapter, InvalidGraph
from lyc_fx.graph.bindable import bindable
from lyc_fx.graph.insertion import Insertion
from lyc_fx.graph.merged_weight import MergedWeight
from lyc_fx.graph.pipeline import done
from lyc_fx.graph.places import Places
from lyc_fx.graph.program import BANK, aliases, facts, fake_mode, get_tensor, remember
from lyc_fx.graph.targets import targets

_NAMED = 5
"""Weights that an error names"""


@final
@dataclass(frozen=True)
class Splice(PassBase):
    """Options: the adapter sets, their strengths and how they combine; whether a key without a weight is an error; the
    room for others in their place.
    """

    stack: Stack
    strict: bool = True
    room: Room | None = None

    def call(self, gm: GraphModule) -> PassResult:
        if hasattr(gm, BANK):
            raise InvalidGraph("the program carries adapters already: splice them all at once, as a list of pairs")
        fake_mode(gm)
        found, known = targets(gm), bindable(gm)
        binding = known.bind(self.stack, strict=self.strict)
        _refuse_inseparable(gm, binding)
        _refuse_unread(binding, found, known.same, strict=self.strict)
        insertion = Insertion(gm, binding, self.room)
        fired, notes, inserted = 0, [], dict[str, MergedWeight]()
        for name in binding.targets:
            nodes = [node for node in found.get(name, ()) if node.users]
            if not nodes:
                notes.append(f"{name} is not read by the captured graph: its adapters have no effect here")
            elif insertion.bound(name):
                notes += _doubts(gm, nodes[0], name, binding, known.weights[name])
                inserted[name] = insertion.insert(name, known.weights[name], nodes)
                fired += 1
        remember(gm, report=replace(binding.report, notes=tuple(notes)), sources=_sources(self.stack))
        if self.room is not None:
            remember(gm, known=known, places=Places(self.room, inserted))
        return done(gm, "splice", fired)


def _sources(stack: Stack) -> tuple[dict[str, Any], ...]:
    """The adapters of a stack, by the positions of their sets."""
    positions = dict(zip(stack.order(), stack.described(), strict=True))
    return tuple(positions[position] for position in sorted(positions))


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
