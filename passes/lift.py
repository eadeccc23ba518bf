"""lift: the adapter becomes an argument of the program.

Factors, alphas, block weights and strengths, which splice made parameters and buffers, become keyword arguments:
`adapter`, a dict of tensors, and `strengths`, a float32 number for each adapter set. What is exported from the program
then takes any adapter that has its form. See `lyc_fx.graph.slots` for their names.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from lyc_fx.errors import InvalidGraph
from lyc_fx.graph.inputs import add_inputs
from lyc_fx.graph.pipeline import done
from lyc_fx.graph.program import BANK, facts, fake, remember, tensors
from lyc_fx.graph.rewrite import Emit
from lyc_fx.graph.slots import ADAPTER, STRENGTHS, Slots

aten = torch.ops.aten


@final
@dataclass(frozen=True)
class Lift(PassBase):
    """No options."""

    def call(self, gm: GraphModule) -> PassResult:
        places, staging = facts(gm).places, facts(gm).staging
        if places is None:
            raise InvalidGraph("the program has no places for other adapters: lyc_fx.splice(…, rank=N) makes them")
        if staging is not None:
            raise InvalidGraph(
                "the program is staged: what was computed from one adapter is no input; lift before that"
            )
        slots = Slots.of(places)
        read = {
            str(node.target): node for node in gm.graph.find_nodes(op="get_attr") if str(node.target) in slots.names
        }
        lost = [name for name in slots.factors.values() if name not in read]
        if lost:
            raise InvalidGraph(
                f"the program does not read {lost[0]} any more, so that an input for it would do nothing"
            )
        held = tensors(gm)
        given: dict[str, Tensor] = {key: held[name] for key, name in slots.factors.items()}
        given |= {key: torch.zeros(len(names), dtype=torch.float64) for key, names in slots.vectors.items()}
        of_sets = torch.zeros(len(slots.strengths))
        fakes = {key: fake(gm, tensor.detach()) for key, tensor in given.items()}
        *nodes, strengths = add_inputs(gm, {ADAPTER: fakes, STRENGTHS: fake(gm, of_sets)})
        inputs = dict(zip(fakes, nodes, strict=True))
        for key, name in slots.factors.items():
            _replace(read[name], inputs[key])
        for vector, names in {
            **{inputs[key]: names for key, names in slots.vectors.items()},
            strengths: slots.strengths,
        }.items():
            for position, name in enumerate(names):
                if name in read:
                    _select(gm, read[name], vector, position, after=strengths)
        delattr(gm, BANK)
        remember(gm, slots=slots)
        return done(gm, "lift", len(slots.factors))


def _select(gm: GraphModule, number: Node, vector: Node, position: int, *, after: Node) -> None:
    """Let what reads a number read an element of a vector."""
    emit = Emit(gm, at=after.next, like=number, by="lift")
    element = emit(aten.select.int, vector, 0, position)
    if vector.meta["val"].dtype != number.meta["val"].dtype:
        element = emit(aten.to.dtype, element, number.meta["val"].dtype)
    _replace(number, element)


def _replace(node: Node, by: Node) -> None:
    node.replace_all_uses_with(by, propagate_meta=False)
    node.graph.erase_node(node)
