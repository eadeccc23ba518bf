"""What a pass returned, taken into the program: any `PassBase` of torch may run, not only one that knows lyc-fx."""

from typing import Any

from torch._ops import OpOverload
from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassResult

from lyc_fx.copies import set_tensor
from lyc_fx.errors import InvalidGraph
from lyc_fx.program import facts, fake_mode, remember, tensors
from lyc_fx.propagation import propagate
from lyc_fx.show import around
from lyc_fx.steps import Step


def take(gm: GraphModule, result: PassResult | None, name: str, steps: int) -> None:
    """Give the program the graph, the tensors and the history that a pass left it without.

    A pass may return another module, None for no change, nodes without a fake value, and need not record a step
    (there were so many `steps` before it). Raises InvalidGraph where a new node refuses its arguments.
    """
    if result is not None and result.graph_module is not gm:
        _adopt(gm, result.graph_module)
    _complete(gm, name)
    if len(facts(gm).steps) == steps:
        remember(gm, steps=(*facts(gm).steps, Step(name, int(result is not None and bool(result.modified)))))


def _adopt(gm: GraphModule, made: GraphModule) -> None:
    """Another module's graph and tensors: input checks, state-dict keys and what lyc-fx remembers stay as they are."""
    own = tensors(gm)
    for name, tensor in tensors(made).items():
        if own.get(name) is not tensor:
            set_tensor(gm, name, tensor)
    codegen = gm.graph._codegen
    gm.graph = made.graph
    gm.graph._codegen = codegen


def _complete(gm: GraphModule, name: str) -> None:
    """Fake values for the calls of operators that have none."""
    known: Any = {node for node in gm.graph.nodes if "val" in node.meta}
    for node in gm.graph.nodes:
        if node in known or not isinstance(node.target, OpOverload) or not known.issuperset(node.all_input_nodes):
            continue
        try:
            propagate(node, fake_mode(gm))
        except Exception as error:  # whatever an operator's shape rule raises is a fault of the pass
            raise InvalidGraph(
                f"after pass {name}, at {node.name}: {node.target} refuses its arguments: {error}\n{around(gm, node)}"
            ) from error
        known.add(node)
